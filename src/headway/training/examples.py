"""`Example`: one sequence to learn from, and what is skipped, cut or refused on the way in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput

I64 = npt.NDArray[np.int64]
TooLong = Literal["split", "error"]


@dataclass(frozen=True, eq=False)
class Example:
    """Token ids (T,), and for each whether it is to be learnt (the first never is: nothing comes before it)."""

    tokens: I64
    learn: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, tokens: Sequence[int] | I64, learn: Sequence[bool] | None = None) -> Example:
        """learn None: all tokens. Raises `BadInput` when the two differ in length."""
        ids = np.asarray(tokens, np.int64)
        wanted = np.ones(len(ids), bool) if learn is None else np.asarray(learn, bool)
        if ids.ndim != 1 or wanted.shape != ids.shape:
            raise BadInput(f"{wanted.size} marks for {ids.size} tokens", "give one for each token")
        return cls(ids, wanted)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> int:
        """Tokens that count in the loss."""
        return int(self.learn[1:].sum())


def prepare(
    examples: Iterable[Example], vocab: int, max_seq: int, too_long: TooLong = "split"
) -> tuple[list[Example], list[str]]:
    """What is trained on, and a warning for each that is left out.

    Raises `BadInput` for a token outside the vocabulary, for one that is too long (`too_long="error"`), and when
    nothing is left.
    """
    if max_seq < 2:
        raise BadInput(f"max_seq={max_seq}", "a sequence needs at least 2 tokens")
    kept: list[Example] = []
    warnings: list[str] = []
    for at, example in enumerate(examples):
        if len(example) and not 0 <= example.tokens.min() <= example.tokens.max() < vocab:
            raise BadInput(f"example {at}: a token id lies outside the vocabulary", f"ids are 0..{vocab - 1}")
        if len(example) > max_seq and too_long == "error":
            raise BadInput(f"example {at} has {len(example)} tokens", f"give at most {max_seq}, or let it be split")
        if len(example) < 2:
            warnings.append(f"example {at} has {len(example)} tokens: nothing to predict, it is left out")
            continue
        parts = [
            Example(example.tokens[low : low + max_seq], example.learn[low : low + max_seq])
            for low in range(0, len(example), max_seq)
        ]
        useful = [part for part in parts if len(part) > 1 and part.labels]
        if not useful:
            warnings.append(f"example {at}: no token of it is to be learnt, it is left out")
        kept += useful
    if not kept:
        raise BadInput("no example is left to train on", "give texts of at least 2 tokens, some of them to be learnt")
    return kept, warnings
