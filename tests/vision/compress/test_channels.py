"""Which channels can be cut: found in networks of any kind from their calls, and nothing where a channel is mixed."""

from __future__ import annotations

import pytest
import torch
from slim_nets import SIDE, images, net
from torch import Tensor, nn

from headway.vision.compress.channels import groups_of


def test_gates_depthwise_filters_norms_and_mlps_are_followed() -> None:
    found = {group.name: group for group in groups_of(net(), images(1))}
    wide = found["blocks.0.expand"]
    assert wide.width == 64 and wide.block == "blocks.0"
    assert set(wide.makers) == {"blocks.0.expand", "blocks.0.excite"}
    assert set(wide.through) == {"blocks.0.norm1", "blocks.0.filter", "blocks.0.norm2"}
    assert set(wide.readers) == {"blocks.0.squeeze", "blocks.0.project"}
    assert wide.norms == {"blocks.0.project": "blocks.0.norm3"}
    assert found["blocks.0.squeeze"].width == 16 and not found["blocks.0.squeeze"].block
    assert found["blocks.2.mlp.0"].block == "blocks.2"
    assert found["hidden"].readers == ("out",) and not found["hidden"].block
    assert not {"stem", "blocks.0.project", "out"} & set(found)  # a residual stream, and what leaves


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 1, groups=2)
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "softmax":
            y = y.softmax(1)
        elif self.kind == "flip":
            y = y.flip(1)
        elif self.kind == "split":
            y = torch.cat(y.chunk(2, 1)[::-1], 1)
        elif self.kind == "grouped":
            y = self.grouped(y)
        elif self.kind == "stream":
            y = y + self.second(x.new_ones(1, 16, 1, 1))
        elif self.kind == "constant":
            y = y * torch.ones(1, 16, 1, 1)
        elif self.kind == "norm":
            y = nn.functional.layer_norm(y.permute(0, 2, 3, 1), (16,)).permute(0, 3, 1, 2)
        elif self.kind == "twice":
            y = self.second(self.second(y))
        elif self.kind == "pad":
            y = nn.functional.pad(y, (0, 0, 0, 0, 0, 0))
        return self.out(y)


@pytest.mark.parametrize("kind", ["softmax", "flip", "split", "grouped", "stream", "constant", "norm", "twice", "pad"])
def test_channels_that_are_mixed_or_known_elsewhere_stay(kind: str) -> None:
    assert not groups_of(Odd(kind), images(1))


def test_plain_ones_are_found_along_any_axis() -> None:
    assert [group.width for group in groups_of(Odd("plain"), images(1))] == [16]

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.one, self.two = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 24), nn.Linear(24, 12)

        def forward(self, x: Tensor) -> Tensor:
            y = self.patch(x).flatten(2).transpose(1, 2)
            return self.two(nn.functional.gelu(self.one(y))).mean(1)

    found = groups_of(Last(), torch.zeros(1, 3, SIDE, SIDE))
    assert [(group.name, group.readers) for group in found] == [("patch", ("one",)), ("one", ("two",))]
