"""SESR in 8 bits: learned ranges, and an inference in integers (the released `quantize_utils.py`).

Weights: -127 to 127 times a scale of each output channel; values between layers: 0 to 255 less a zero point, an
integer so that the zeros around a picture are exact, times a scale. Ranges begin at the first batch's and are learned:
rounding passes gradients through, clipping passes them to the ranges, both ways. PReLU becomes ReLU.

`Quantised` simulates while it trains. In `eval` every convolution multiplies and adds integers, held in floats that
represent them exactly, so sums are the same in any order and a tile's pixels are those of the whole picture. The 1/2
that is taken from the input is rounded to the input's own steps in both.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headway.core.cache import StepCache
from headway.core.progress import Progress
from headway.vision.quantizers import LEVELS, SMALLEST, Range, symmetric_codes
from headway.vision.superres.linear_block import LinearBlock
from headway.vision.superres.network import SESR, depth_to_space
from headway.vision.superres.photos import NAMES, pairs
from headway.vision.superres.training import Recipe, train, trained

WEIGHT = 127
"""Largest code of a weight, narrow range."""
EXACT = 1 << 24
"""Integers up to here are exact in float32, up to 2^53 in float64."""


class QuantisedConvolution(nn.Module):
    """A convolution without bias whose weight is rounded to 8 bits per output channel, its ranges learned."""

    def __init__(self, layer: nn.Module) -> None:
        """layer: a `LinearBlock`, trained further as such, or a plain convolution."""
        super().__init__()
        self.layer = layer
        self.range = nn.Parameter(self.weight().detach().flatten(1).abs().amax(1).clamp_min(SMALLEST))

    def weight(self) -> Tensor:
        """(out, inside, k, k), not rounded."""
        return self.layer.collapse()[0] if isinstance(self.layer, LinearBlock) else self.layer.weight  # type: ignore

    def scale(self) -> Tensor:
        """Size of a step of each output channel."""
        return self.range.abs().clamp_min(SMALLEST) / WEIGHT

    def codes(self) -> Tensor:
        """The weight in steps."""
        return symmetric_codes(self.weight(), self.scale()[:, None, None, None], WEIGHT)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.codes() * self.scale()[:, None, None, None]
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def exact(self, steps: Tensor, scale: Tensor) -> Tensor:
        """Of an input of `steps` whole steps of size `scale`: the sum is one of integers, then scaled once."""
        codes = self.codes()
        worst = LEVELS * WEIGHT * codes[0].numel()
        kind = torch.float32 if worst < EXACT else torch.float64
        total = F.conv2d(steps.to(kind), codes.to(kind), padding=codes.shape[-1] // 2).to(steps.dtype)
        return total * (scale * self.scale())[:, None, None]


class Quantised(nn.Module):
    """`SESR` in 8 bits: (n, 1, h, w) in [0, 1] -> (n, 1, scale h, scale w)."""

    def __init__(self, network: SESR) -> None:
        """network: trained; its layers are taken over, its slopes left out."""
        super().__init__()
        self.scale = network.scale
        self.radius = network.radius
        self.first = QuantisedConvolution(network.first)
        self.blocks = nn.ModuleList(QuantisedConvolution(block) for block in network.blocks)
        self.last = QuantisedConvolution(network.last)
        self.given, self.start = Range(), Range()
        self.middle = nn.ModuleList(Range() for _ in network.blocks)
        self.sum, self.change, self.end = Range(), Range(), Range()

    def half(self) -> Tensor:
        """1/2 in steps of the input."""
        return (0.5 / self.given.scale_zero()[0]).round().detach()

    def forward(self, x: Tensor) -> Tensor:
        y = self._simulated(x) if self.training else self._exact(x)
        for _ in range(self.scale // 2):
            y = depth_to_space(y)
        return y if self.training else y.clamp(0.0, 1.0)

    def _simulated(self, x: Tensor) -> Tensor:
        x = self.given(x)
        h = start = self.start(self.first(x - self.half() * self.given.scale_zero()[0]))
        for block, place in zip(self.blocks, self.middle, strict=True):
            h = place(torch.relu(block(h)))
        y = self.change(self.last(self.sum(h + start)))
        return self.end(y + x)

    def _exact(self, x: Tensor) -> Tensor:
        def value(place: Range, steps: Tensor) -> Tensor:
            return steps * place.scale_zero()[0]

        given = self.given.steps(x)
        h = start = self.start.steps(self.first.exact(given - self.half(), self.given.scale_zero()[0]))
        before: Range = self.start
        for block, place in zip(self.blocks, self.middle, strict=True):
            assert isinstance(block, QuantisedConvolution) and isinstance(place, Range)
            h = place.steps(torch.relu(block.exact(h, before.scale_zero()[0])))
            before = place
        total = self.sum.steps(value(before, h) + value(self.start, start))
        change = self.change.steps(self.last.exact(total, self.sum.scale_zero()[0]))
        return value(self.end, self.end.steps(value(self.change, change) + value(self.given, given)))


def fine_tuning(recipe: Recipe) -> Recipe:
    """A fifth of the steps at a fifth of the rate."""
    return replace(recipe, steps=max(1, recipe.steps // 5), lr=recipe.lr / 5)


def quantised(
    variant: str,
    scale: int,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    cache: StepCache | None = None,
    progress: Progress | None = None,
) -> Quantised:
    """`trained` by the recipe, then further in 8 bits; cached."""
    recipe, cache = recipe or Recipe(), cache or StepCache()
    network = Quantised(trained(variant, scale, recipe, seed=seed, cache=cache, progress=progress))
    key = cache.key("sesr-int8", variant, scale, asdict(recipe), seed, NAMES["train"])

    def build(folder: Path) -> None:
        train(network, pairs("train", scale), scale, fine_tuning(recipe), seed=seed, progress=progress)
        save_file(network.state_dict(), folder / "weights.safetensors")

    network.load_state_dict(load_file(cache.folder(key, build) / "weights.safetensors"))
    return network.eval()
