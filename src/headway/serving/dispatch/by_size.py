"""Routing by size: each bucket of prompt lengths goes to the types of instance that a plan gave it to.

The router of Mélange (arXiv 2404.14527). Shares are kept evenly (the type that is furthest behind its share is next),
so that no burst meets one type by chance; within a type the instance with the least outstanding load takes the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.serving.dispatch.base import Call, Dispatcher, FleetView, alive

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RoutingTable:
    """What a plan says of each bucket of prompt lengths."""

    edges: tuple[int, ...]
    """Longest prompt of each bucket, in tokens; longer ones than the last belong to it."""
    kinds: tuple[str, ...]
    shares: F64
    """(buckets, kinds): rows sum to 1."""
    loads: F64
    """(buckets, kinds): share of an instance that one such request per second takes; infinite: it cannot serve it."""

    def __post_init__(self) -> None:
        shape = (len(self.edges), len(self.kinds))
        sums = self.shares.sum(axis=1) if self.shares.ndim == 2 else np.zeros(0)
        if self.shares.shape != shape or self.loads.shape != shape or not np.allclose(sums, 1.0, atol=1e-6):
            raise BadInput("routing table: shares and loads do not match the edges and kinds", "make the plan again")

    def as_json(self) -> dict[str, Any]:
        """Loads that are infinite are null."""
        loads = [[value if np.isfinite(value) else None for value in row] for row in self.loads.tolist()]
        return {"edges": list(self.edges), "kinds": list(self.kinds), "shares": self.shares.tolist(), "loads": loads}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RoutingTable:
        """Raises `BadInput` when a key is missing or of another shape."""
        try:
            loads = [[np.inf if value is None else float(value) for value in row] for row in document["loads"]]
            return cls(
                tuple(int(edge) for edge in document["edges"]),
                tuple(str(kind) for kind in document["kinds"]),
                np.array(document["shares"], float),
                np.array(loads, float),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"not a routing table ({error!r:.80})", "make the plan again") from None


class BySize(Dispatcher):
    """Follows a routing table. Kinds whose instances are all gone leave their share to the others."""

    def __init__(self, table: RoutingTable) -> None:
        self.table = table
        self._credit = np.zeros_like(table.shares)
        self._outstanding: dict[int, float] = {}

    def route(self, call: Call, fleet: FleetView) -> int:
        row = self._row(call)
        kinds: Sequence[str] = self.table.kinds
        living: dict[int, list[int]] = {}
        for at in alive(fleet):
            if fleet.instances[at].kind in kinds:
                living.setdefault(kinds.index(fleet.instances[at].kind), []).append(at)
        able = [kind for kind in living if np.isfinite(self.table.loads[row, kind])] or list(living)
        if not able:
            raise BadInput("no instance is of a kind that the routing table names", f"kinds are: {', '.join(kinds)}")
        credit = self._credit[row]
        share = self.table.shares[row, able]
        total = share.sum()
        credit[able] += share / total if total > 0 else 1.0 / len(able)
        kind = max(able, key=lambda k: (credit[k], -k))
        credit[kind] -= 1.0
        chosen = min(living[kind], key=lambda at: (self._outstanding.get(at, 0.0), at))
        self._outstanding[chosen] = self._outstanding.get(chosen, 0.0) + self._load(row, kind)
        return chosen

    def done(self, call: Call, instance: int, fleet: FleetView) -> None:
        kind = self.table.kinds.index(fleet.instances[instance].kind)
        self._outstanding[instance] -= self._load(self._row(call), kind)

    def _row(self, call: Call) -> int:
        return min(int(np.searchsorted(self.table.edges, call.job.prompt)), len(self.table.edges) - 1)

    def _load(self, row: int, kind: int) -> float:
        load = float(self.table.loads[row, kind])
        return load if np.isfinite(load) else 1.0
