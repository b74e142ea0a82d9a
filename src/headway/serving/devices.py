"""Devices for the simulator on which lanes run at the same time: compute by share, bandwidth by demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headway.core.errors import BadInput
from headway.hardware.iteration_time import IterationTime, Load


def compute_shares(running: Mapping[str, Load], shares: Mapping[str, float]) -> dict[str, float]:
    """What each lane that runs gets: what it was given, less where that sums to more than 1, all of it when alone."""
    if len(running) == 1:
        return dict.fromkeys(running, 1.0)
    total = sum(shares[lane] for lane in running)
    return {lane: shares[lane] / max(total, 1.0) for lane in running}


@dataclass(frozen=True)
class MeasuredLanes:
    """A machine whose passes were measured with 1, 2 ... all of its cores.

    A share between two numbers of cores has the one for a part of the time and the other for the rest. Two lanes slow
    each other down in proportion to how much of their time they move memory: by `contention` where both always do.
    """

    by_cores: tuple[IterationTime, ...]
    contention: float = 0.0

    def __post_init__(self) -> None:
        if not self.by_cores or not self.contention >= 0:
            raise BadInput("a device needs its time on one core, and contention of at least 0", "measure both")

    @property
    def cost(self) -> IterationTime:
        """With all cores."""
        return self.by_cores[-1]

    def seconds(self, running: Mapping[str, Load], shares: Mapping[str, float]) -> Mapping[str, float]:
        parts = compute_shares(running, shares)
        times = {lane: self.alone(load, parts[lane]) for lane, load in running.items()}
        if len(running) == 1 or not self.contention:
            return times
        moving = {lane: self.moving(load) for lane, load in running.items()}
        total = sum(moving.values())
        return {
            lane: seconds * (1.0 + self.contention * moving[lane] * (total - moving[lane]))
            for lane, seconds in times.items()
        }

    def alone(self, load: Load, share: float) -> float:
        """Seconds on a share of the cores with nothing beside it."""
        cores = share * len(self.by_cores)
        whole = min(int(cores + 1e-9), len(self.by_cores))
        part = cores - whole
        rate = (1.0 - part) / self.by_cores[whole - 1](load) if whole else 0.0
        if part > 1e-9:
            rate += part / self.by_cores[whole](load)
        return 1.0 / max(rate, 1e-12)

    def moving(self, load: Load) -> float:
        """Share of a pass's time that reads weights or keys and values."""
        cost = self.by_cores[0]
        return min((cost.linear(1) + cost.decode * load.decode_context) / max(cost(load), 1e-12), 1.0)


@dataclass(frozen=True)
class Roofline:
    """A machine and a model by their published figures: products, attention of prompts, attention of decodes.

    Each operator takes the longer of its compute and its memory; a pass adds `overhead_s`. Lanes split the bandwidth by
    what they demand. `reach`: the share of the machine that pulls all of the bandwidth.
    """

    flops: float
    """Sustained operations per second."""
    bandwidth: float
    """Bytes per second."""
    weight_bytes: float
    token_flops: float
    """Operations of a token outside attention."""
    pair_flops: float
    """Operations of attention for each query and key."""
    kv_bytes: float
    """Bytes of keys and values of a token."""
    overhead_s: float = 0.0
    reach: float = 0.4
    query_block: int = 64
    """Queries that share one reading of the keys in a prompt's attention."""

    def operators(self, load: Load) -> tuple[tuple[float, float], ...]:
        """(compute, memory) seconds of each, with the whole machine."""
        pairs = load.chunk_work
        return (
            (self.token_flops * load.tokens / self.flops, self.weight_bytes / self.bandwidth),
            (self.pair_flops * pairs / self.flops, self.kv_bytes * pairs / self.query_block / self.bandwidth),
            (
                self.pair_flops * load.decode_context / self.flops,
                self.kv_bytes * load.decode_context / self.bandwidth,
            ),
        )

    def seconds(self, running: Mapping[str, Load], shares: Mapping[str, float]) -> Mapping[str, float]:
        work = {lane: self.operators(load) for lane, load in running.items()}
        parts = compute_shares(running, shares)

        def time(lane: str, crowd: float) -> float:
            share = parts[lane]
            pull = min(1.0, share / self.reach)
            return self.overhead_s + sum(max(c / share, m * max(crowd, 1.0 / pull)) for c, m in work[lane])

        if len(running) == 2 and sum(shares[lane] for lane in running) > 1.0 and self.overhead_s:
            # Shares that sum to more than 1 are caps: a lane is held to less only while the other really computes.
            fair = dict(parts)
            for _ in range(4):
                busy = {lane: 1.0 - self.overhead_s / time(lane, 1.0) for lane in running}
                for lane in running:
                    taken = sum(busy.values()) - busy[lane]
                    parts[lane] = shares[lane] * (1.0 - taken) + fair[lane] * taken
        alone = {lane: time(lane, 1.0) for lane in running}
        demand = sum(sum(m for _, m in work[lane]) / alone[lane] for lane in running)
        return alone if demand <= 1.0 else {lane: time(lane, demand) for lane in running}

    def __call__(self, load: Load) -> float:
        """Seconds of a pass that has the whole machine."""
        return self.seconds({"main": load}, {})["main"]

    def cost(self, most_tokens: int = 16384) -> IterationTime:
        """The same for schedulers, with the additive form they believe in."""
        knee = self.weight_bytes / self.bandwidth * self.flops / self.token_flops
        per_token = self.token_flops / self.flops
        floor = self.overhead_s + self.weight_bytes / self.bandwidth
        end = max(float(most_tokens), 2.0 * knee)
        return IterationTime(
            (0.0, knee, end),
            (floor, floor, self.overhead_s + per_token * end),
            chunk=self.pair_flops / self.flops,
            decode=self.kv_bytes / self.bandwidth,
        )
