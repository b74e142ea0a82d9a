"""The `[workload]` table of a problem: what requests look like, from a trace file, a length table or log-normals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from headway.core.errors import BadInput
from headway.core.system import Problem
from headway.serving.schedulers.base import SLO
from headway.serving.trace import Trace, generate, read_csv

SAMPLE = 20_000
"""Requests drawn to find the shares of buckets."""


class SLOTable(Problem):
    """`[slo]`: limits in milliseconds that a share of the requests must hold."""

    ttft_ms: float | None = Field(None, gt=0, description="to the first token")
    tpot_ms: float | None = Field(None, gt=0, description="per token after the first, on average over a request")
    tbt_ms: float | None = Field(None, gt=0, description="between any two tokens")
    quantile: float = Field(0.99, gt=0, lt=1, description="share of the requests that must hold them")

    @model_validator(mode="after")
    def _check(self) -> SLOTable:
        if self.ttft_ms is None and self.tpot_ms is None and self.tbt_ms is None:
            raise ValueError("give ttft_ms, tpot_ms or tbt_ms")
        return self

    def slo(self) -> SLO:
        def seconds(value: float | None) -> float | None:
            return None if value is None else value / 1e3

        return SLO(seconds(self.ttft_ms), seconds(self.tbt_ms), self.quantile, seconds(self.tpot_ms))


class LogNormal(Problem):
    """Lengths in tokens whose logarithm is normal."""

    median: float = Field(ge=1, description="tokens")
    sigma: float = Field(ge=0, le=4, description="standard deviation of the logarithm")
    most: int = Field(ge=1, description="tokens; longer draws are cut to it")

    def draw(self, count: int, random: np.random.Generator) -> Any:
        values = self.median * np.exp(self.sigma * random.standard_normal(count))
        return np.clip(np.rint(values), 1, self.most).astype(np.int64)


class Part(Problem):
    """A kind of request: `share` of all of them. One of trace, lengths, or prompt with output."""

    share: float = Field(1.0, gt=0, description="weight of this part among the parts")
    trace: str | None = Field(None, description="CSV file with arrived_s, context_tokens, generated_tokens")
    lengths: str | None = Field(None, description="a length table: azure-conv, azure-code, arxiv-4k")
    prompt: LogNormal | None = Field(None, description="prompt lengths")
    output: LogNormal | None = Field(None, description="answer lengths")
    factor: float = Field(1.0, gt=0, description="lengths are multiplied by it")
    most_prompt: int | None = Field(None, ge=1, description="tokens; longer prompts are cut")
    most_output: int | None = Field(None, ge=1, description="tokens; longer answers are cut")

    @model_validator(mode="after")
    def _check(self) -> Part:
        drawn = self.prompt is not None and self.output is not None
        if (self.trace is not None) + (self.lengths is not None) + drawn != 1:
            raise ValueError("give one of trace, lengths, or prompt with output")
        return self

    def sizes(self, count: int, folder: Path, random: np.random.Generator) -> tuple[Any, Any]:
        """(prompts, outputs) of `count` requests; a trace's rows are drawn with replacement."""
        trace = self.source(count, folder, random)
        return trace.prompt, trace.output

    def as_it_came(self, count: int, folder: Path, seed: int) -> Trace:
        """The first `count` requests in the pattern of arrivals of their source; log-normals: Poisson, one a second."""
        if self.trace is not None:
            whole = read_csv(folder / self.trace)
            found = Trace(whole.arrival[:count], whole.prompt[:count], whole.output[:count])
        elif self.lengths is not None:
            found = generate(self.lengths, count, 1.0, seed)
        else:
            return mixed([self], count, folder, seed)
        return self._scaled(found)

    def _scaled(self, trace: Trace) -> Trace:
        return trace.scaled(self.factor, self.most_prompt or 1 << 30, self.most_output or 1 << 30)

    def source(self, count: int, folder: Path, random: np.random.Generator) -> Trace:
        """`count` requests of these sizes, at one per second."""
        if self.trace is not None:
            whole = read_csv(folder / self.trace)
            rows = random.integers(0, len(whole), count)
            found = Trace(np.arange(count, dtype=float), whole.prompt[rows], whole.output[rows])
        elif self.lengths is not None:
            found = generate(self.lengths, count, 1.0, int(random.integers(1 << 31)))
        else:
            assert self.prompt is not None and self.output is not None
            sizes = self.prompt.draw(count, random), self.output.draw(count, random)
            found = Trace(np.arange(count, dtype=float), *sizes)
        return self._scaled(found)


def mixed(parts: list[Part], count: int, folder: Path, seed: int) -> Trace:
    """`count` requests of all parts, in random order, Poisson at one per second. Raises `BadInput` without parts."""
    if not parts:
        raise BadInput("a workload without parts", "give at least one [[workload]] table")
    random = np.random.default_rng(seed)
    weights = np.array([part.share for part in parts])
    which = random.choice(len(parts), count, p=weights / weights.sum())
    prompt, output = np.empty(count, np.int64), np.empty(count, np.int64)
    for at, part in enumerate(parts):
        rows = np.flatnonzero(which == at)
        if len(rows):
            prompt[rows], output[rows] = part.sizes(len(rows), folder, random)
    return Trace(np.cumsum(random.exponential(1.0, count)), prompt, output)
