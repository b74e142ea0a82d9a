"""How wide each group of channels becomes: what a narrower one costs less, and what it loses, both measured; then the
allocation with the least summed loss, exactly (a knapsack over shares of the cost).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.interrupts import check
from headway.core.measure import compare
from headway.core.progress import Progress
from headway.vision.compress.channels import Group
from headway.vision.compress.cutting import Kept, Moments, cut
from headway.vision.compress.distil import apart
from headway.vision.count import count

CostKind = Literal["latency", "macs"]
LEVELS = 4
"""Widths of a group that are looked at: so many equal steps."""
MULTIPLE = 16
"""Widths are multiples of this, of 8 or of 4 in narrow groups: kernels pad channels."""
ROUNDS = 9
LIMIT_S = 2.0
"""Of one group's interleaved timing."""
BINS = 4000
TRIES = 3
ABOVE = 0.01
"""Share by which a network may cost more than asked, when its parts do not add up."""
Runs = Callable[[nn.Module], Callable[[Tensor], Any]]
"""Gives a network's own fastest way to run."""


@dataclass(frozen=True)
class Width:
    """One width of a group: share of the whole network's cost that it saves, and divergence that it brings."""

    channels: int
    saved: float
    lost: float


Table = Mapping[str, Sequence[Width]]
"""By name of the group, the whole width first."""


@dataclass(frozen=True)
class Ground:
    """What widths are measured on."""

    module: nn.Module
    groups: Sequence[Group]
    moments: Moments
    order: Mapping[str, Tensor]
    """Channels of each group, those to keep first."""
    teacher: Callable[[Tensor], Any]
    images: Tensor
    sample: Tensor
    task: str
    cost: CostKind
    runs: Runs
    seed: int = 0

    def kept(self, widths: Mapping[str, int]) -> Kept:
        return {name: self.order[name][:width].sort().values for name, width in widths.items()}

    def made(self, widths: Mapping[str, int]) -> nn.Module:
        return cut(self.module, self.groups, self.kept(widths), self.moments)[0]

    def shares(self, networks: Sequence[nn.Module]) -> list[float]:
        """Cost of each network over that of the whole one."""
        if self.cost == "macs":
            whole = count(self.module, self.sample).layer_macs
            return [count(network, self.sample).layer_macs / whole for network in networks]
        calls = {"whole": self.module, **{str(n): network for n, network in enumerate(networks)}}
        arms = {name: _call(self.runs(network), self.sample) for name, network in calls.items()}
        timing = compare(arms, rounds=ROUNDS, baseline="whole", seed=self.seed, warmup=1, time_limit_s=LIMIT_S)
        return [timing.comparison(str(n)).ratio.value for n in range(len(networks))]


def _call(run: Callable[[Tensor], Any], sample: Tensor) -> Callable[[], object]:
    return lambda: run(sample)


def candidates(group: Group) -> list[int]:
    """Widths to look at, the whole one first; 0 where its block can be left out."""
    multiple = MULTIPLE
    while multiple > 1 and group.width < LEVELS * multiple:
        multiple //= 2
    steps = [group.width * level / LEVELS for level in range(LEVELS - 1, 0, -1)]
    rounded = [max(multiple, round(step / multiple) * multiple) for step in steps]
    return list(dict.fromkeys([group.width, *(w for w in rounded if w < group.width), *([0] if group.block else [])]))


def measured(ground: Ground, progress: Progress | None = None) -> Table:
    """What every width of every group saves and loses alone."""
    found: dict[str, list[Width]] = {}
    for group in (progress or Progress()).track(ground.groups, "what narrower channels cost and lose"):
        check()
        widths = candidates(group)[1:]
        networks = [ground.made({group.name: width}) for width in widths]
        lost = [apart(ground.runs(network), ground.teacher, ground.images, ground.task) for network in networks]
        saved = [max(0.0, 1.0 - share) for share in ground.shares(networks)]
        found[group.name] = [Width(group.width, 0.0, 0.0), *map(Width, widths, saved, lost)]
    return found


def allocated(table: Table, saving: float) -> dict[str, int]:
    """The width of each group with the least summed loss that saves so much of the cost; {} where none does."""
    bins = round(saving * BINS)
    least = np.full(bins + 1, np.inf)
    least[0] = 0.0
    taken = []
    for widths in table.values():
        best, pick = np.full(bins + 1, np.inf), np.zeros(bins + 1, int)
        back = np.zeros(bins + 1, int)
        for number, width in enumerate(widths):
            step = int(width.saved * BINS)
            at = np.minimum(np.arange(bins + 1) + step, bins)
            lost = least + width.lost
            for here, there in enumerate(at):
                if lost[here] < best[there]:
                    best[there], pick[there], back[there] = lost[here], number, here
        least = best
        taken.append((pick, back))
    if not np.isfinite(least[bins]):
        return {}
    found, left = dict[str, int](), bins
    for (name, widths), (pick, back) in zip(reversed(list(table.items())), reversed(taken), strict=True):
        found[name] = widths[pick[left]].channels
        left = int(back[left])
    return {name: found[name] for name in table}


def searched(ground: Ground, table: Table, keep: float) -> tuple[dict[str, int], float]:
    """Widths whose network costs `keep` of the whole, and what it costs; raises `BadInput` where none does."""
    saving, best = 1.0 - keep, (dict[str, int](), 1.0)
    for _ in range(TRIES):
        widths = allocated(table, min(saving, 1.0))
        if not widths:
            break
        share = ground.shares([ground.made(widths)])[0]
        best = widths, share
        if share <= keep + ABOVE or share >= 1.0:
            break
        saving *= (1.0 - keep) / (1.0 - share)
    if not best[0]:
        raise _unreached(ground, keep, 1.0 - sum(max(width.saved for width in widths) for widths in table.values()))
    return best


def _unreached(ground: Ground, keep: float, least: float) -> BadInput:
    return BadInput(
        f"slimming: keep={keep:g} cannot be reached: {max(least, 0.0):.2f} of the {ground.cost} would be left",
        f"ask for keep={max(least, 0.0) + 0.1:.1f} or more",
    )


def uniform(ground: Ground, keep: float) -> tuple[dict[str, int], float]:
    """Every group as wide as any other, in shares of its own width; raises `BadInput` where that costs more still."""
    low, high = 0.0, 1.0
    for _ in range(7):
        share = (low + high) / 2
        widths = {group.name: max(1, round(share * group.width)) for group in ground.groups}
        if ground.shares([ground.made(widths)])[0] <= keep:
            low = share
        else:
            high = share
    widths = {group.name: max(1, round(low * group.width)) for group in ground.groups}
    share = ground.shares([ground.made(widths)])[0]
    if low == 0.0 and share > keep + ABOVE:
        raise _unreached(ground, keep, share)
    return widths, share


def ordered(moments: Moments, groups: Sequence[Group], by: str, seed: int) -> dict[str, Tensor]:
    """Channels of each group by importance, the greatest first; or drawn (`random`)."""
    generator = torch.Generator().manual_seed(seed)
    if by == "random":
        return {group.name: torch.randperm(group.width, generator=generator) for group in groups}
    return {group.name: moments.importance[group.name].argsort(descending=True, stable=True) for group in groups}
