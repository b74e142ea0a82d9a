"""Elastic networks: sub-networks share nested weights (Once-for-All, section 3).

Width: the first channels of every weight. Depth: the first blocks of a stage. Kernel: the centre of the larger one
times a learned matrix, chained (3x3 passes through the matrix of 7 to 5 first); identity at the start.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.vision.blocks import ACTS, make_divisible
from headway.vision.search.blocks import BlockSpec, PlainNet, initialise
from headway.vision.search.space import Genotype
from headway.vision.search.stagewise import Place, Stagewise


class ElasticNorm(nn.BatchNorm2d):
    """Batch norm over the first channels; statistics of the others are left alone."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        assert self.running_mean is not None and self.running_var is not None
        return F.batch_norm(
            x,
            self.running_mean[:n],
            self.running_var[:n],
            self.weight[:n],
            self.bias[:n],
            self.training,
            self.momentum or 0.0,
            self.eps,
        )

    def slices(self, n: int) -> dict[str, Tensor]:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        return {
            "weight": self.weight[:n],
            "bias": self.bias[:n],
            "running_mean": self.running_mean[:n],
            "running_var": self.running_var[:n],
            "num_batches_tracked": self.num_batches_tracked,
        }


class ElasticBlock(nn.Module):
    """One place's largest block, run at any kernel and middle width of the space."""

    def __init__(self, spec: BlockSpec, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.spec = spec
        wide = spec.middle
        self.expand = nn.Parameter(torch.empty(wide, spec.inside, 1, 1))
        self.depthwise = nn.Parameter(torch.empty(wide, 1, max(kernels), max(kernels)))
        self.project = nn.Parameter(torch.empty(spec.out, wide, 1, 1))
        self.norms = nn.ModuleList(ElasticNorm(c, eps=spec.eps) for c in (wide, wide, spec.out))
        self.chain = tuple(pairwise(sorted(kernels, reverse=True)))
        self.matrices = nn.ParameterDict(
            {f"{big}to{small}": nn.Parameter(torch.eye(small * small)) for big, small in self.chain}
        )
        self.squeeze = nn.ModuleList()
        if spec.squeeze:
            self.squeeze.extend([nn.Conv2d(wide, spec.squeeze, 1), nn.Conv2d(spec.squeeze, wide, 1)])
        self.act = ACTS[spec.act]()
        for weight in (self.expand, self.depthwise, self.project):
            nn.init.kaiming_normal_(weight, mode="fan_out")

    def kernel(self, size: int, middle: int) -> Tensor:
        """The depthwise weight: (middle, 1, size, size)."""
        weight = self.depthwise[:middle]
        for big, small in self.chain:
            if small < size:
                break
            edge = (big - small) // 2
            centre = weight[:, :, edge : edge + small, edge : edge + small].reshape(middle, -1)
            weight = (centre @ self.matrices[f"{big}to{small}"].T).reshape(middle, 1, small, small)
        return weight

    def forward(self, x: Tensor, kernel: int, middle: int) -> Tensor:
        y = self.act(self.norms[0](F.conv2d(x, self.expand[:middle])))
        y = F.conv2d(y, self.kernel(kernel, middle), None, self.spec.stride, kernel // 2, groups=middle)
        y = self.act(self.norms[1](y))
        if len(self.squeeze):
            y = y * self._gate(y, middle)
        y = self.norms[2](F.conv2d(y, self.project[:, :middle]))
        return x + y if self.spec.residual else y

    def _gate(self, y: Tensor, middle: int) -> Tensor:
        reduce, expand = cast("list[nn.Conv2d]", list(self.squeeze))
        hidden = make_divisible(middle // 4)
        assert reduce.bias is not None and expand.bias is not None
        z = F.conv2d(y.mean((2, 3), keepdim=True), reduce.weight[:hidden, :middle], reduce.bias[:hidden])
        return F.hardsigmoid(F.conv2d(F.relu(z), expand.weight[:middle, :hidden], expand.bias[:middle]))

    def extract(self, kernel: int, middle: int) -> dict[str, Tensor]:
        """The state of the plain block (`blocks.MBConv`)."""
        made = {
            "expand.conv.weight": self.expand[:middle],
            "depthwise.conv.weight": self.kernel(kernel, middle),
            "project.conv.weight": self.project[:, :middle],
        }
        widths = (middle, middle, self.spec.out)
        for part, norm, width in zip(("expand", "depthwise", "project"), self.norms, widths, strict=True):
            made |= {f"{part}.norm.{name}": value for name, value in cast(ElasticNorm, norm).slices(width).items()}
        if len(self.squeeze):
            reduce, expand = cast("list[nn.Conv2d]", list(self.squeeze))
            hidden = make_divisible(middle // 4)
            assert reduce.bias is not None and expand.bias is not None
            made |= {
                "squeeze.fc1.weight": reduce.weight[:hidden, :middle],
                "squeeze.fc1.bias": reduce.bias[:hidden],
                "squeeze.fc2.weight": expand.weight[:middle, :hidden],
                "squeeze.fc2.bias": expand.bias[:middle],
            }
        return made

    @torch.no_grad()
    def sort_channels(self, kept: tuple[int, ...]) -> None:
        """Order middle channels by the L1 norm of their projection, the largest first.

        kept: middle widths that are trained already; channels stay within the bands that these part, so that every
        such sub-network, and the whole, computes what it did.
        """
        edges = sorted({0, *kept, self.spec.middle})
        importance = self.project.abs().sum((0, 2, 3))
        order = torch.cat([low + importance[low:high].argsort(descending=True) for low, high in pairwise(edges)])
        self.expand.copy_(self.expand[order])
        self.depthwise.copy_(self.depthwise[order])
        self.project.copy_(self.project[:, order])
        for norm in list(self.norms)[:2]:
            for value in cast(ElasticNorm, norm).slices(len(order)).values():
                if value.ndim:
                    value.copy_(value[order])
        if len(self.squeeze):
            self._sort_squeeze(order, kept)

    def _sort_squeeze(self, order: Tensor, kept: tuple[int, ...]) -> None:
        reduce, expand = cast("list[nn.Conv2d]", list(self.squeeze))
        assert reduce.bias is not None and expand.bias is not None
        reduce.weight.copy_(reduce.weight[:, order])
        expand.weight.copy_(expand.weight[order])
        expand.bias.copy_(expand.bias[order])
        edges = sorted({0, *(make_divisible(width // 4) for width in kept), self.spec.squeeze})
        importance = expand.weight.abs().sum((0, 2, 3))
        inner = torch.cat([low + importance[low:high].argsort(descending=True) for low, high in pairwise(edges)])
        reduce.weight.copy_(reduce.weight[inner])
        reduce.bias.copy_(reduce.bias[inner])
        expand.weight.copy_(expand.weight[:, inner])


class ElasticNet(nn.Module):
    """(n, c, r, r), genotype -> (n, classes) logits."""

    def __init__(self, macro: Stagewise) -> None:
        super().__init__()
        self.macro = macro
        self.stem = macro.stem.build()
        self.first = nn.Sequential(*(block.build() for block in macro.first))
        self.blocks = nn.ModuleDict({key(place): self._largest(place) for place in macro.places})
        self.last = macro.last.build() if macro.last else nn.Identity()
        self.head = macro.head.build()
        for part in (self.stem, self.first, self.last, self.head):
            initialise(part)

    def _largest(self, place: Place) -> ElasticBlock:
        macro = self.macro
        return ElasticBlock(macro.block(place, max(macro.kernels), macro.middles(place.inside)[-1]), macro.kernels)

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        x = self.first(self.stem(x))
        for place, kernel, middle in self.macro.blocks(genotype):
            x = self.blocks[key(place)](x, kernel, middle)
        return self.head(self.last(x))

    @torch.no_grad()
    def extract(self, genotype: Genotype) -> PlainNet:
        """The plain network of a genotype with copies of its slices; its batch norm wants re-calibration."""
        net = self.macro.net(genotype).build()
        state = {
            f"{part}.{name}": value
            for part in ("stem", "last", "head")
            for name, value in self.get_submodule(part).state_dict().items()
        }
        at = 0
        for block in self.first:
            state |= {f"blocks.{at}.{name}": value for name, value in block.state_dict().items()}
            at += 1
        for place, kernel, middle in self.macro.blocks(genotype):
            block = cast(ElasticBlock, self.blocks[key(place)])
            state |= {f"blocks.{at}.{name}": value for name, value in block.extract(kernel, middle).items()}
            at += 1
        net.load_state_dict({name: value.detach().clone() for name, value in state.items()})
        return net

    def sort_channels(self, expands: tuple[int, ...]) -> None:
        """Before the next smaller expansion is trained: `expands` are the ratios that are trained already."""
        for place in self.macro.places:
            kept = tuple(self.macro.middle(place.inside, e) for e in expands)
            cast(ElasticBlock, self.blocks[key(place)]).sort_channels(kept)


def key(place: Place) -> str:
    """A module's name may hold no dot."""
    return place.name.replace(".", "_")
