"""`Adapters`: trainable low-rank pairs beside frozen linears, and the file format that PEFT reads and writes.

    y = x W^T + (alpha / r) (x A^T) B^T,   A (r, in) as Kaiming draws it, B (out, r) zero: training begins at the model.

A folder holds `adapter_config.json` and `adapter_model.safetensors` with, for each pair,
`base_model.model.model.layers.{i}.{linear}.lora_A.weight` and `...lora_B.weight` (LoRA, arXiv 2106.09685).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headway.core.errors import BadInput
from headway.core.files import atomic_write_bytes, atomic_write_json, make_folder, read_json
from headway.training.stack import LINEARS, Stack

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers."
NAME = re.compile(re.escape(PREFIX) + r"(\d+)\.((?:self_attn|mlp)\.\w+)\.lora_([AB])\.weight")

Site = tuple[int, str]
"""Layer and linear."""


@dataclass(frozen=True)
class LoraSettings:
    """An adapter counts alpha / rank times. targets: linears by their last name, "down_proj", or whole."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("down_proj",)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Pair:
    """A (rank, in) and B (out, rank)."""

    a: Tensor
    b: Tensor

    def like(self) -> Pair:
        """Zeros of the same shapes: a gradient, a moment."""
        return Pair(torch.zeros_like(self.a), torch.zeros_like(self.b))

    def copy(self) -> Pair:
        return Pair(self.a.clone(), self.b.clone())


class Adapters:
    """The pairs by (layer, linear), their values changed in place by an optimiser step only."""

    def __init__(self, settings: LoraSettings, pairs: Mapping[Site, Pair]) -> None:
        self.settings = settings
        self.pairs = dict(pairs)

    @classmethod
    def fresh(cls, stack: Stack, settings: LoraSettings, seed: int = 0) -> Adapters:
        """Raises `BadInput` for a target that the model has not, or a rank that is none."""
        generator = torch.Generator().manual_seed(seed)
        pairs = {}
        for layer, block in enumerate(stack.blocks):
            for linear in linears_of(settings.targets):
                out, width = block.linears[linear].shape
                check_rank(settings.rank, out, width, linear)
                bound = 1.0 / math.sqrt(width)  # kaiming_uniform_(a=sqrt(5)), as PEFT
                a = torch.rand((settings.rank, width), generator=generator).mul_(2.0 * bound).sub_(bound)
                pairs[layer, linear] = Pair(a.to(stack.dtype), torch.zeros(out, settings.rank, dtype=stack.dtype))
        return cls(settings, pairs)

    @property
    def lowest(self) -> int:
        """The lowest layer that has one."""
        return min(layer for layer, _ in self.pairs)

    @property
    def nbytes(self) -> int:
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.pairs.values())

    def copy(self) -> Adapters:
        return Adapters(self.settings, {site: pair.copy() for site, pair in self.pairs.items()})

    def save(self, folder: str | Path, base: str = "") -> None:
        """Write a folder that PEFT loads, over an older one; `base` names the model it belongs to."""
        from safetensors.torch import save

        folder = make_folder(folder)
        tensors = {}
        for (layer, linear), pair in self.pairs.items():
            at = f"{PREFIX}{layer}.{linear}"
            tensors[f"{at}.lora_A.weight"] = pair.a.to(torch.float32).contiguous()
            tensors[f"{at}.lora_B.weight"] = pair.b.to(torch.float32).contiguous()
        atomic_write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
        document = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": sorted({linear.rpartition(".")[2] for _, linear in self.pairs}),
        }
        atomic_write_json(folder / CONFIG, document)

    @classmethod
    def load(cls, folder: str | Path, stack: Stack) -> Adapters:
        """Raises `BadInput` for a file that is no LoRA adapter of this model."""
        folder = Path(folder)
        settings = _settings(folder, read_json(folder / CONFIG))
        halves: dict[Site, dict[str, Tensor]] = {}
        for name, tensor in _tensors(folder / WEIGHTS).items():
            found = NAME.fullmatch(name)
            if found is None or found[2] not in LINEARS or int(found[1]) >= len(stack.blocks):
                raise BadInput(f"{folder}: the tensor {name[:80]!r} belongs to no linear here", "load its own model")
            halves.setdefault((int(found[1]), found[2]), {})[found[3]] = tensor.to(stack.dtype)
        if not halves:
            raise BadInput(f"{folder / WEIGHTS} holds no adapter", "save it again with PEFT")
        pairs = {}
        for (layer, linear), half in sorted(halves.items()):
            out, width = stack.blocks[layer].linears[linear].shape
            shapes = {"A": (settings.rank, width), "B": (out, settings.rank)}
            for letter, shape in shapes.items():
                if letter not in half or tuple(half[letter].shape) != shape:
                    has = tuple(half[letter].shape) if letter in half else "missing"
                    raise BadInput(
                        f"{folder}: lora_{letter} of layer {layer} {linear} is {has}", f"it must be {shape} here"
                    )
            pairs[layer, linear] = Pair(half["A"].contiguous(), half["B"].contiguous())
        return cls(settings, pairs)


def linears_of(targets: Sequence[str]) -> list[str]:
    """Whole names of the linears. Raises `BadInput` listing what there is."""
    found: list[str] = []
    for target in targets:
        linear = next((name for name in LINEARS if target in (name, name.rpartition(".")[2])), None)
        if linear is None:
            why = ": it is tied or frozen" if target in ("lm_head", "embed_tokens") else ""
            names = ", ".join(name.rpartition(".")[2] for name in LINEARS)
            raise BadInput(f"no adapter on {target!r}{why}", f"targets are: {names}")
        if linear not in found:
            found.append(linear)
    if not found:
        raise BadInput("no target of the adapters", "give e.g. down_proj")
    return found


def check_rank(rank: int, out: int, width: int, linear: str) -> None:
    if not 1 <= rank <= min(out, width):
        raise BadInput(f"rank {rank} on {linear} of {out} x {width}", f"it must be 1..{min(out, width)}")


def _settings(folder: Path, document: Any) -> LoraSettings:
    def value(key: str, kind: type | tuple[type, ...], default: Any) -> Any:
        found = document.get(key, default) if isinstance(document, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise BadInput(f"{folder / CONFIG}: {key}={found!r:.60}", "save the adapter again with PEFT")
        return found

    if value("peft_type", str, None) != "LORA":
        raise BadInput(f"{folder / CONFIG}: {document['peft_type']!r:.40} is not LORA", "only LoRA adapters are read")
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if document.get(key):
            raise BadInput(f"{folder / CONFIG}: {key} is set", "only plain LoRA adapters are read")
    rank = value("r", int, None)
    alpha = float(value("lora_alpha", (int, float), None))
    if rank < 1 or not math.isfinite(alpha):
        raise BadInput(f"{folder / CONFIG}: r={rank}, lora_alpha={alpha}", "both must be positive numbers")
    targets = value("target_modules", list, ["down_proj"])
    return LoraSettings(rank, alpha, tuple(str(target) for target in targets))


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    from headway.core.files import read_bytes

    try:
        return load(read_bytes(path, limit=4 << 30))
    except (SafetensorError, ValueError) as error:
        raise BadInput(f"{path}: {error!s:.100}", "save the adapter again with PEFT") from None
