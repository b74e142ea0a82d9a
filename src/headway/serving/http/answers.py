"""`Choice`: the tokens of one answer become text, stop texts are found, log-probabilities are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.llm.sampling import StopFinder
from headway.llm.tokenizer import Tokenizer
from headway.serving.http.errors import ApiError, internal
from headway.serving.messages import REFUSED, Token
from headway.serving.request import FINISHES

_FINISH = {"end": "stop", "length": "length", "cancelled": "stop"}


@dataclass(slots=True)
class Told:
    """One token with its log-probability, as both forms of completions need it."""

    text: str
    data: bytes
    logprob: float
    top: list[tuple[str, bytes, float]]
    offset: int


@dataclass(slots=True)
class Piece:
    """What is new of an answer since the last look."""

    text: str = ""
    told: list[Told] = field(default_factory=list)


class Choice:
    """One answer on its way. `finish` is OpenAI's word for why it ended, once it has."""

    def __init__(self, tokenizer: Tokenizer, eos: Sequence[int], stops: Sequence[str], ignore_end: bool) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset() if ignore_end else frozenset(eos)
        self._detokenizer = tokenizer.stream()
        self._stops = StopFinder(stops) if stops else None
        self._offset = 0
        self.tokens = 0
        self.finish: str | None = None

    @property
    def stopped(self) -> bool:
        """A stop text was found: the engine need not go on."""
        return self._stops is not None and self._stops.found

    def take(self, token: Token, piece: Piece) -> None:
        """Add a token to what is new. Raises `ApiError` for an answer that failed."""
        if self.finish is not None:
            return
        if token.finish not in FINISHES:
            raise _failure(token.finish)
        if token.token is not None:
            self.tokens += 1
            if token.token not in self._ends:
                self._text(self._detokenizer.feed(token.token), piece)
                if token.logprob is not None:
                    piece.told.append(self._told(token))
        if self.stopped:
            self.finish = "stop"
        elif token.finish:
            self._text(self._detokenizer.end(), piece)
            if self._stops is not None:
                piece.text += self._stops.end()
            self.finish = "stop" if self.stopped else _FINISH[token.finish]

    def _text(self, text: str, piece: Piece) -> None:
        piece.text += text if self._stops is None else self._stops.feed(text)

    def _told(self, token: Token) -> Told:
        assert token.token is not None and token.logprob is not None
        data = self._tokenizer.piece(token.token)
        text = data.decode("utf-8", "replace")
        top = [(p.decode("utf-8", "replace"), p, value) for p, value in self._top(token)]
        told = Told(text, data, token.logprob, top, self._offset)
        self._offset += len(text)
        return told

    def _top(self, token: Token) -> list[tuple[bytes, float]]:
        return [(self._tokenizer.piece(id), value) for id, value in token.top or ()]


def _failure(finish: str) -> ApiError:
    if finish.startswith(REFUSED):
        return ApiError(400, finish.removeprefix(REFUSED), code="invalid_value")
    return ApiError(400, finish, code="invalid_value") if finish.startswith("the JSON schema") else internal()


def chat_logprobs(told: Sequence[Told]) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    return {
        "content": [
            {
                "token": t.text,
                "logprob": _finite(t.logprob),
                "bytes": list(t.data),
                "top_logprobs": [
                    {"token": text, "logprob": _finite(value), "bytes": list(data)} for text, data, value in t.top
                ],
            }
            for t in told
        ],
        "refusal": None,
    }


def text_logprobs(told: Sequence[Told]) -> dict[str, Any]:
    """The `logprobs` of a plain completion's choice."""
    return {
        "tokens": [t.text for t in told],
        "token_logprobs": [_finite(t.logprob) for t in told],
        "top_logprobs": [{text: _finite(value) for text, _, value in reversed(t.top)} for t in told],
        "text_offset": [t.offset for t in told],
    }


def _finite(value: float) -> float:
    return max(value, -9999.0)  # OpenAI's own word for "never"
