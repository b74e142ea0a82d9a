"""One answer: prefill, then a token at a time until an end token, a stop text or the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from headway.core.errors import BadInput
from headway.llm.sampling import Sampler, Sampling, StopFinder

if TYPE_CHECKING:
    from headway.llm.language_model import LanguageModel

PREFILL = 512
"""Prompt tokens fed at once."""


@dataclass(frozen=True)
class Generation:
    """`tokens` include the end token where one came; `text` has neither it nor a stop text."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish: Literal["end", "stop", "length"]

    def __str__(self) -> str:
        return self.text


def check_room(model: LanguageModel, prompt: int, max_tokens: int | None, default: int = 128) -> int:
    """The number of tokens to generate; raises `BadInput` with both numbers where the context cannot hold them."""
    context = model.architecture.context
    if prompt < 1:
        raise BadInput("the prompt is empty", "give at least one token")
    if prompt >= context:
        raise BadInput(f"the prompt has {prompt} tokens, the context {context}", "shorten it")
    if max_tokens is None:
        return min(default, context - prompt)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise BadInput(f"max_tokens={max_tokens!r:.80}", "it must be a whole number from 1")
    if prompt + max_tokens > context:
        raise BadInput(
            f"{prompt} tokens of prompt and max_tokens={max_tokens} exceed the context of {context}",
            f"ask for at most {context - prompt}",
        )
    return max_tokens


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int | None = None,
    stream: Callable[[str], object] | None = None,
    ignore_end: bool = False,
) -> Generation:
    """`stream` is called with each piece of text as soon as it is certain; the pieces joined are `text`.

    `ignore_end` goes on past end tokens (for benchmarks).
    """
    limit = check_room(model, len(prompt), max_tokens)
    ends = () if ignore_end else model.architecture.eos
    sampler = Sampler(sampling, prompt)
    detokenizer, stops = model.tokenizer.stream(), StopFinder(sampling.stop)
    pieces: list[str] = []

    def emit(text: str) -> None:
        if text:
            pieces.append(text)
            if stream is not None:
                stream(text)

    session = model.runtime.begin(len(prompt) + limit)
    fed = np.asarray(prompt, np.int64)
    for at in range(0, len(fed), PREFILL):
        logits = session.feed(fed[at : at + PREFILL])
    tokens: list[int] = []
    finish: Literal["end", "stop", "length"] = "length"
    while True:
        token = sampler.pick(logits)
        tokens.append(token)
        if token in ends:
            finish = "end"
            break
        emit(stops.feed(detokenizer.feed(token)))
        if stops.found:
            finish = "stop"
            break
        if len(tokens) == limit:
            break
        logits = session.feed(np.array([token], np.int64))
    if finish != "stop":
        emit(stops.feed(detokenizer.end()))
        finish = "stop" if stops.found else finish
        emit(stops.end())
    return Generation("".join(pieces), tuple(tokens), len(prompt), finish)
