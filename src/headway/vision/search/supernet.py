"""The layer-wise supernet: every candidate of every layer with weights of its own; a policy says how they are mixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from headway.vision.search.blocks import PlainNet, initialise
from headway.vision.search.cost_table import CostTable
from headway.vision.search.images import Split
from headway.vision.search.layerwise import Layerwise
from headway.vision.search.space import Genotype
from headway.vision.search.train import channels_last

Mix = Callable[[int, nn.ModuleList, Tensor], Tensor]
"""(layer, its candidates, input) -> output."""


class SuperNet(nn.Module):
    """(n, c, r, r) -> (n, classes) logits under a `Mix`. A candidate that leaves the block out is the identity."""

    def __init__(self, macro: Layerwise) -> None:
        super().__init__()
        self.macro = macro
        self.stem = macro.stem.build()
        self.first = nn.Sequential(*(block.build() for block in macro.first))
        self.layers = nn.ModuleList()
        for layer in macro.layers:
            ops = [macro.op(layer, name) for name in layer.ops]
            self.layers.append(nn.ModuleList(nn.Identity() if op is None else op.build() for op in ops))
        self.last = macro.last.build() if macro.last else nn.Identity()
        self.head = macro.head.build()
        initialise(self)

    def forward(self, x: Tensor, mix: Mix) -> Tensor:
        x = self.first(self.stem(x))
        for index, ops in enumerate(self.layers):
            x = mix(index, cast(nn.ModuleList, ops), x)
        return self.head(self.last(x))

    def indices(self, genotype: Genotype) -> list[int]:
        """Which candidate of each layer a genotype takes."""
        return [layer.ops.index(str(genotype[str(i)])) for i, layer in enumerate(self.macro.layers, 1)]

    def genotype(self, indices: Sequence[int]) -> Genotype:
        return {str(i): layer.ops[k] for i, (layer, k) in enumerate(zip(self.macro.layers, indices, strict=True), 1)}

    def extract(self, genotype: Genotype) -> PlainNet:
        """The plain network of one path, with copies of its weights."""
        net = self.macro.net(genotype).build()
        state = {
            f"{part}.{name}": value
            for part in ("stem", "last", "head")
            for name, value in self.get_submodule(part).state_dict().items()
        }
        chosen = [cast(nn.ModuleList, ops)[k] for ops, k in zip(self.layers, self.indices(genotype), strict=True)]
        kept = [*self.first, *(op for op in chosen if not isinstance(op, nn.Identity))]
        for index, block in enumerate(kept):
            state |= {f"blocks.{index}.{name}": value for name, value in block.state_dict().items()}
        net.load_state_dict({name: value.clone() for name, value in state.items()})
        return net


def one_path(indices: Sequence[int]) -> Mix:
    """Run one candidate of each layer; the others are not touched, so their gradients stay None."""
    return lambda layer, ops, x: cast(Tensor, ops[indices[layer]](x))


def layer_costs(macro: Layerwise, table: CostTable) -> tuple[list[Tensor], float]:
    """Microseconds of every candidate by layer, and of what is fixed."""
    size = macro.layers_in_use()[0][1]
    fixed = table.offset
    for part in (macro.stem, *macro.first):
        fixed += table.of(part.key(size))
        size = -(-size // part.stride)
    found = []
    for layer in macro.layers:
        ops = [macro.op(layer, name) for name in layer.ops]
        found.append(torch.tensor([0.0 if op is None else 1e6 * table.of(op.key(size)) for op in ops]))
        size = -(-size // layer.stride)
    for part in (macro.last, macro.head):
        if part is not None:
            fixed += table.of(part.key(size))
    return found, 1e6 * fixed


@torch.no_grad()
def path_accuracy(net: SuperNet, indices: Sequence[int], split: Split, batch: int = 250) -> float:
    """Accuracy of one path by the batches' own statistics: those kept in a supernet are of a mixture of paths."""
    states = [(norm, norm.track_running_stats) for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm, _ in states:
        norm.track_running_stats = False
    was = net.training
    net.train()
    right = 0
    try:
        for images, labels in zip(split.images.split(batch), split.labels.split(batch), strict=True):
            right += int((net(channels_last(images), one_path(indices)).argmax(1) == labels).sum())
    finally:
        net.train(was)
        for norm, tracked in states:
            norm.track_running_stats = tracked
    return right / len(split)
