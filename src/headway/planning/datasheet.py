"""A machine known by its data sheet, and what a language model takes on it: rooflines, no measurement.

td = max((W + B kv (i + o / 2)) / bandwidth, 2 P B / compute) + 3 ms      a step of B decodes
tp = 2 P i / compute + 2 ms                                               a prompt of i tokens
time per token = td + B tp / o;  throughput = the most of B / (o time per token) that holds the limit
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.hardware.iteration_time import IterationTime

DECODE_OVERHEAD_S = 3e-3
PROMPT_OVERHEAD_S = 2e-3
PAGE_TOKENS = 16


@dataclass(frozen=True)
class ServedModel:
    """What a model costs: bytes of its weights, operations (2 for each weight) and bytes of KV for each token."""

    weight_bytes: float
    ops_per_token: float
    kv_bytes: float


LLAMA2_7B = ServedModel(2 * 6.74e9, 2 * 6.74e9, 2 * 32 * 4096 * 2)
"""In float16 (arXiv 2307.09288, table 1: 32 layers of width 4096, every head with its own keys and values)."""


@dataclass(frozen=True)
class DataSheet:
    """What a vendor promises, and the share of it that kernels get."""

    memory_bytes: float
    bytes_per_s: float
    ops_per_s: float
    compute_efficiency: float = 0.6
    bandwidth_efficiency: float = 0.75
    memory_share: float = 0.9
    """Of the memory, for weights and keys and values."""

    def kv_tokens(self, model: ServedModel) -> int:
        """Tokens whose keys and values fit beside the weights; 0 where the weights do not fit."""
        return max(int((self.memory_share * self.memory_bytes - model.weight_bytes) / model.kv_bytes), 0)

    def iteration_time(self, model: ServedModel) -> IterationTime:
        return IterationTime.from_rates(
            model.weight_bytes,
            model.ops_per_token,
            model.kv_bytes,
            self.bytes_per_s * self.bandwidth_efficiency,
            self.ops_per_s * self.compute_efficiency,
            DECODE_OVERHEAD_S,
        )

    def throughput(self, model: ServedModel, prompt: int, output: int, tpot_s: float) -> float:
        """Requests per second of one size with a steady batch, in closed form; 0: the limit cannot be held."""
        most = int((self.memory_share * self.memory_bytes - model.weight_bytes) / (model.kv_bytes * (prompt + output)))
        if most < 1:
            return 0.0
        batch = np.arange(1, most + 1)
        compute = self.ops_per_s * self.compute_efficiency
        read = (model.weight_bytes + batch * model.kv_bytes * (prompt + output / 2)) / (
            self.bytes_per_s * self.bandwidth_efficiency
        )
        step = np.maximum(read, model.ops_per_token * batch / compute) + DECODE_OVERHEAD_S
        token = step + batch * (model.ops_per_token * prompt / compute + PROMPT_OVERHEAD_S) / output
        held = token <= tpot_s
        return float((batch / (output * token))[held].max()) if held.any() else 0.0
