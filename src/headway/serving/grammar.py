"""Answers held to a JSON schema: llguidance says which tokens may come next, in microseconds for each token.

A schema is compiled on a thread of its own, which lets go of the interpreter while it works, under limits of the
library's own that end any schema in well under a second.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

from headway.core.errors import BadInput, need_extra
from headway.llm.language_model import LanguageModel
from headway.llm.runtime import F32
from headway.serving.request import Constraint

LEXER_FUEL = 1_000_000
"""At most some 20 ms of work at compile time."""
STEP_FUEL = 100_000
"""At most some 7 ms for one token."""
STEP_ITEMS = 50_000
ROW_ITEMS = 10_000
"""Ways in which an answer may go on: objects of many properties that may be left out have many."""
STATES = 50_000
"""Some 2 kB each."""
KEPT = 64
"""Compiled schemas kept for those who ask again."""


class JsonConstraint:
    """One answer's place in a schema."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab

    def mask(self, logits: F32) -> F32:
        """See `Constraint`. Raises `BadInput` when the schema asks for more work than a token may take."""
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _too_complex()
        bits = np.unpackbits(allowed, count=self._vocab, bitorder="little")
        return np.where(bits.view(bool), logits, np.float32(-np.inf))

    def accept(self, token: int) -> bool:
        if not self._matcher.consume_token(token):
            raise _too_complex()  # no other token was allowed
        return bool(self._matcher.is_stopped())


class Grammars:
    """Compiles schemas for one model."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._tokenizer: Any = None
        self._compiled = lru_cache(KEPT)(self._compile)

    def start(self, schema: str) -> Future[Constraint]:
        """The constraint of a schema (as `headway.serving.schema.checked` gives it), or `BadInput`, in a while."""
        return self._thread.submit(self._make, schema)

    def warm(self) -> None:
        """Read the vocabulary before anybody waits for it; without the library, later errors say so."""
        self._thread.submit(self._vocabulary)

    def _make(self, schema: str) -> Constraint:
        return JsonConstraint(self._compiled(schema).deep_copy(), self._model.architecture.vocab)

    def _compile(self, schema: str) -> Any:
        tokenizer = self._vocabulary()
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=LEXER_FUEL,
            step_lexer_fuel=STEP_FUEL,
            step_max_items=STEP_ITEMS,
            max_lexer_states=STATES,
            max_items_in_row=ROW_ITEMS,
            verbose_errors=False,
        )
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        except ValueError as error:
            raise _refused(str(error)) from None
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        if warnings := matcher.get_grammar_warnings():
            raise _refused(warnings[0])
        return matcher

    def _vocabulary(self) -> Any:
        if self._tokenizer is None:
            try:
                from llguidance import LLTokenizer, TokenizerWrapper
            except ModuleNotFoundError:
                raise need_extra("llguidance", "serve") from None
            ends = list(self._model.architecture.eos)
            wrapped = TokenizerWrapper(_Vocabulary(self._model))
            self._tokenizer = LLTokenizer(wrapped, n_vocab=self._model.architecture.vocab, eos_token=ends)
        return self._tokenizer

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Vocabulary:
    """What the library asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, model: LanguageModel) -> None:
        self._tokenizer = model.tokenizer
        self.eos_token_id = model.architecture.eos[0]
        self.special_token_ids = sorted(model.tokenizer.special_ids)
        self.tokens = [model.tokenizer.piece(token) for token in range(model.architecture.vocab)]

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._tokenizer.encode(plain, start=False, special=False)


def _too_complex() -> BadInput:
    return BadInput("the JSON schema is too complex", "give a simpler one")


def _refused(why: str) -> BadInput:
    return BadInput(f"the JSON schema cannot be kept: {' '.join(why.split()):.200}", "simplify it")
