"""The macro-architecture of a space, and a picture to run a network on."""

from __future__ import annotations

from torch import Tensor

from headway.vision.data import pattern
from headway.vision.search.blocks import NetSpec
from headway.vision.search.layerwise import Layerwise
from headway.vision.search.stagewise import Stagewise

Macro = Layerwise | Stagewise
"""Both have a `space`, and decode its genotypes into a `NetSpec` by `net`."""


def sample_of(spec: NetSpec, batch: int = 1) -> Tensor:
    """A made-up picture of the network's size: (batch, channels, size, size)."""
    made = pattern(spec.size)
    if spec.stem.inside != 3:
        made = made.mean(1, keepdim=True)
    return made.expand(batch, spec.stem.inside, -1, -1).contiguous()
