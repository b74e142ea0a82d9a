"""`IterationTime`: how long one forward pass over a mixed batch takes, fitted from measured batches.

    T = linear(tokens) + chunk * sum c (context + c / 2) + decode * sum context + seq * sequences + row * sampled

`linear` is piecewise linear in the tokens of the batch: where a machine turns from reading weights to multiplying, and
how it rounds to tiles, is measured and not assumed. c are the chunk lengths of a batch (Sarathi-Serve, OSDI 2024;
Vidur, MLSys 2024: chunks' attention adds up, decodes' follows their contexts).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from headway.core.errors import BadInput

KNOTS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)


class Load(NamedTuple):
    """What one forward pass holds."""

    tokens: int
    """Rows of the batch: chunks' tokens and one for each decode."""
    chunk_work: float = 0.0
    """Sum over chunks of c (context + c / 2): pairs of a query and a key."""
    decodes: int = 0
    decode_context: int = 0
    """Tokens that the decodes attend to, summed."""
    sequences: int = 0
    sampled: int = 0
    """Rows that go through the head."""


@dataclass(frozen=True)
class IterationTime:
    """Seconds of a forward pass. `knots` rise from 0; beyond the last the last slope goes on."""

    knots: tuple[float, ...]
    values: tuple[float, ...]
    chunk: float = 0.0
    decode: float = 0.0
    sequence: float = 0.0
    row: float = 0.0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.knots))
        numbers = [*self.knots, *self.values, self.chunk, self.decode, self.sequence, self.row]
        if len(self.knots) < 2 or len(self.knots) != len(self.values) or not rising or not np.isfinite(numbers).all():
            raise BadInput("iteration time: knots must rise and have a finite value each", "fit it from measurements")

    def __call__(self, load: Load) -> float:
        return (
            self.linear(load.tokens)
            + self.chunk * load.chunk_work
            + self.decode * load.decode_context
            + self.sequence * load.sequences
            + self.row * load.sampled
        )

    def ahead(self, load: Load, passes: int) -> list[float]:
        """Of so many passes of the same decodes, whose contexts grow by a token each."""
        first = self.linear(load.tokens) + self.chunk * load.chunk_work
        sequences, rows = self.sequence * load.sequences, self.row * load.sampled
        contexts = range(load.decode_context, load.decode_context + passes * load.decodes, load.decodes)
        return [first + self.decode * context + sequences + rows for context in contexts]

    def linear(self, tokens: float) -> float:
        """The part that only the number of rows decides."""
        at = min(max(bisect_right(self.knots, tokens), 1), len(self.knots) - 1)
        low, high = self.knots[at - 1], self.knots[at]
        first, second = self.values[at - 1], self.values[at]
        return first + (second - first) * (tokens - low) / (high - low)

    @classmethod
    def from_rates(
        cls,
        weight_bytes: float,
        ops_per_token: float,
        kv_bytes: float,
        bytes_per_s: float,
        ops_per_s: float,
        overhead_s: float = 0.0,
    ) -> IterationTime:
        """A roofline, for a machine that is known by its data sheet: weights are read or multiplied, whichever takes
        longer; keys and values (`kv_bytes` for each token of a context) are read besides.
        """
        read, token = weight_bytes / bytes_per_s, ops_per_token / ops_per_s
        ridge = max(read / token, 1.0)
        floor = max(read, token)
        far = max(1e6, 2 * ridge)
        return cls(
            (0.0, ridge, far), (overhead_s + floor, overhead_s + floor, overhead_s + token * far),
            decode=kv_bytes / bytes_per_s,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {
            "knots": list(self.knots),
            "values_s": list(self.values),
            "chunk_s": self.chunk,
            "decode_s": self.decode,
            "sequence_s": self.sequence,
            "row_s": self.row,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> IterationTime:
        """Raises `BadInput` when a key is missing or no number."""
        try:
            return cls(
                tuple(float(value) for value in document["knots"]),
                tuple(float(value) for value in document["values_s"]),
                *(float(document.get(key, 0.0)) for key in ("chunk_s", "decode_s", "sequence_s", "row_s")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"not an iteration time ({error!r:.80})", "give knots and values_s, lists of numbers"
            ) from None


def fit(loads: Sequence[Load], seconds: Sequence[float]) -> IterationTime:
    """Non-negative least squares of relative errors over measured batches.

    Raises `BadInput` with fewer measurements than the form has numbers to find.
    """
    from scipy.optimize import nnls

    most = max(load.tokens for load in loads)
    seen = sorted({load.tokens for load in loads})
    knots = [0.0] + [float(knot) for knot in KNOTS[1:] if knot <= most and _near(knot, seen)]
    if knots[-1] < most:
        knots.append(float(most))
    rows = np.array([_features(load, knots) for load in loads])
    if len(rows) < rows.shape[1]:
        raise BadInput(
            f"{len(rows)} measured batches for a form of {rows.shape[1]} numbers", "measure more batches of more sizes"
        )
    wanted = np.asarray(seconds, float)
    found, _ = nnls(rows / wanted[:, None], np.ones(len(rows)), maxiter=100 * rows.shape[1])
    values = np.cumsum(found[: len(knots)])
    return IterationTime(tuple(knots), tuple(float(v) for v in values), *(float(v) for v in found[len(knots) :]))


def _near(knot: int, seen: Sequence[int]) -> bool:
    """Whether batches near this many tokens were measured: a knot nobody measured could take any value."""
    return any(0.8 * knot <= tokens <= 1.25 * knot for tokens in seen)


def _features(load: Load, knots: Sequence[float]) -> list[float]:
    """Increments between knots (so that time never falls with tokens), then the other terms."""
    steps = [1.0]
    for low, high in pairwise(knots):
        share = (load.tokens - low) / (high - low)
        steps.append(max(share, 0.0) if high == knots[-1] else min(max(share, 0.0), 1.0))
    return [*steps, load.chunk_work, float(load.decode_context), float(load.sequences), float(load.sampled)]
