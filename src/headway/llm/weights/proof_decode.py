"""One decode step of a language model, for the proofs of weight systems to time."""

from __future__ import annotations

from typing import Any

import numpy as np

DEPTH = 64
"""Tokens in the keys and values while decoding is timed: the weights are what is compared."""


class Step:
    """One decode step after `DEPTH` tokens; the sequence is rewound, so that every step costs the same."""

    def __init__(self, model: Any) -> None:
        self.session = model.runtime.begin(DEPTH + 1)
        self.session.feed(np.arange(1, DEPTH + 1))
        self.token = np.array([DEPTH + 1])
        self.calls = 0

    def __call__(self) -> None:
        self.session.feed(self.token)
        self.session.rewind(DEPTH)
        self.calls += 1
