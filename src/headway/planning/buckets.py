"""Buckets of request sizes: a request belongs to the first whose edges cover its prompt and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.serving.trace import Trace

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

IN_EDGES = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
OUT_EDGES = (25, 100, 250, 500, 1000, 2000)
"""Tokens; the sizes that Mélange's released profiles have (arXiv 2404.14527), carried on for long prompts."""


@dataclass(frozen=True)
class Buckets:
    """Upper edges in tokens, rising. Tables by bucket have a row for each of prompts, a column for each of answers."""

    in_edges: tuple[int, ...] = IN_EDGES
    out_edges: tuple[int, ...] = OUT_EDGES

    def __post_init__(self) -> None:
        for name, edges in (("in_edges", self.in_edges), ("out_edges", self.out_edges)):
            if not edges or edges[0] < 1 or any(a >= b for a, b in pairwise(edges)):
                raise BadInput(
                    f"{name} {list(edges)} do not rise from at least 1", "give whole tokens, the smallest first"
                )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.in_edges), len(self.out_edges)

    def covering(self, trace: Trace) -> Buckets:
        """As many of these as a trace needs, with one more at its longest request where none is large enough."""
        return Buckets(
            *(
                _covering(e, int(v.max()))
                for e, v in zip((self.in_edges, self.out_edges), (trace.prompt, trace.output), strict=True)
            )
        )

    def rows(self, prompt: npt.ArrayLike) -> I64:
        """Row of each prompt length; those beyond the last edge are in the last row."""
        return np.minimum(np.searchsorted(self.in_edges, prompt), len(self.in_edges) - 1)

    def columns(self, output: npt.ArrayLike) -> I64:
        return np.minimum(np.searchsorted(self.out_edges, output), len(self.out_edges) - 1)

    def shares(self, trace: Trace) -> F64:
        """Share of a trace's requests by bucket; sums to 1."""
        counts = np.zeros(self.shape)
        np.add.at(counts, (self.rows(trace.prompt), self.columns(trace.output)), 1.0)
        return counts / len(trace)

    def name(self, row: int, column: int) -> str:
        """A bucket, for people."""
        before = self.in_edges[row - 1] if row else 0
        above = self.out_edges[column - 1] if column else 0
        return (
            f"prompts of {before + 1}-{self.in_edges[row]} and answers of {above + 1}-{self.out_edges[column]} tokens"
        )


def _covering(edges: tuple[int, ...], longest: int) -> tuple[int, ...]:
    kept = tuple(edge for at, edge in enumerate(edges) if not at or edges[at - 1] < longest)
    return kept if kept[-1] >= longest else (*kept, longest)
