"""How the next token is chosen from the logits; every parameter is bounded, every draw can be repeated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024


@dataclass(frozen=True)
class Sampling:
    """Applied in this order: repetition penalty, temperature, top-k, top-p, min-p; then one draw.

    Raises `BadInput` for a value outside its bounds.
    """

    temperature: float = 0.0
    """0 takes the most likely token (the lowest id of equals)."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 = all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens whose probabilities reach this sum."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the most likely one."""
    repetition_penalty: float = 1.0
    """Divide the positive logits of tokens seen so far by it, multiply the negative ones (CTRL, section 4.1)."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""

    def __post_init__(self) -> None:
        _real("temperature", self.temperature, 0.0, 100.0)
        _whole("top_k", self.top_k, 0, (1 << 31) - 1)
        _real("top_p", self.top_p, 0.0, 1.0)
        _real("min_p", self.min_p, 0.0, 1.0)
        _real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _whole("seed", self.seed, 0, (1 << 63) - 1)
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise BadInput(f"stop={self.stop!r:.80}", "give a list of texts")
        if len(self.stop) > MAX_STOPS:
            raise BadInput(f"{len(self.stop)} stop texts", f"give at most {MAX_STOPS}")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise BadInput(f"stop text {text!r:.80}", f"give texts of 1..{MAX_STOP_CHARACTERS} characters")
        object.__setattr__(self, "stop", tuple(self.stop))


def _real(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type,operator]
        raise BadInput(f"{name}={value!r:.80}", f"it must be a number in {low:g}..{high:g}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise BadInput(f"{name}={value!r:.80}", f"it must be a whole number in {low}..{high}")


class Sampler:
    """Draws the tokens of one answer: the same seed and the same logits give the same tokens."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else None

    def pick(self, logits: F32) -> int:
        """logits: (vocab,) -> a token id. Raises `BadInput` when they hold NaN."""
        if self._seen:
            logits = penalised(logits, self._seen, self._sampling.repetition_penalty)
        token = self._greedy(logits) if self._sampling.temperature == 0.0 else self._drawn(logits)
        if self._seen is not None:
            self._seen.add(token)
        return token

    @staticmethod
    def _greedy(logits: F32) -> int:
        token = int(logits.argmax())
        if math.isnan(logits[token]):  # argmax stops at the first NaN
            raise BadInput("the model gave a logit that is not a number", "check its weights")
        return token

    def _drawn(self, logits: F32) -> int:
        tokens, probabilities = candidates(logits, self._sampling)
        edges = probabilities.cumsum()
        drawn = int(edges.searchsorted(self._random.random() * edges[-1], side="right"))
        return int(tokens[min(drawn, len(tokens) - 1)])


def penalised(logits: F32, seen: set[int], penalty: float) -> F32:
    """A copy of the logits with the tokens in `seen` made less likely (penalty > 1)."""
    index = np.fromiter(seen, np.int64, len(seen))
    logits = logits.copy()
    values = logits[index]
    logits[index] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def candidates(logits: F32, sampling: Sampling) -> tuple[npt.NDArray[np.int64], F64]:
    """The tokens that may be drawn, most likely first (the lower id of equals), and their probabilities' weights."""
    top = float(logits.max())
    if not math.isfinite(top):
        raise BadInput("the model gave a logit that is not a number", "check its weights")
    with np.errstate(over="ignore"):  # the least temperatures leave the most likely token alone
        weights = np.exp((logits.astype(np.float64) - top) / sampling.temperature)
    order = _most_likely_first(logits, weights, sampling)
    weights = weights[order]
    keep = len(order)
    if sampling.top_p < 1.0:
        sums = weights.cumsum()
        keep = int(sums.searchsorted(sampling.top_p * sums[-1])) + 1
    if sampling.min_p > 0.0:
        keep = min(keep, int((weights >= sampling.min_p).sum()))
    keep = max(keep, 1)
    return order[:keep], weights[:keep]


def _most_likely_first(logits: F32, weights: F64, sampling: Sampling) -> npt.NDArray[np.int64]:
    """All tokens that top-k and a weight above zero leave, sorted."""
    count = len(logits)
    if 0 < sampling.top_k < count:
        edge = np.partition(logits, count - sampling.top_k)[count - sampling.top_k]
        left = np.flatnonzero(logits >= edge)
        return left[np.argsort(-logits[left], kind="stable")][: sampling.top_k]
    floor = sampling.min_p if sampling.top_p == 1.0 else 0.0  # top-p counts what min-p will drop
    left = np.flatnonzero(weights >= floor) if floor > 0.0 else np.flatnonzero(weights > 0.0)
    return left[np.argsort(-logits[left], kind="stable")]


class StopFinder:
    """Lets text through until one of the stop texts appears in it, wherever tokens are cut."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The part of all text so far that is now certain to precede every stop text and was not returned before."""
        if self.found:
            return ""
        self._held += text
        first = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=-1)
        if first >= 0:
            self.found = True
            out, self._held = self._held[:first], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def end(self) -> str:
        """The text that was held back, when no stop text came."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` (and is shorter than it)."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
