"""`Served`: one model as the routes see it: its process, what may come in, and how text becomes tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from headway.core.errors import BadInput, HeadwayError
from headway.llm.template import ChatTemplate
from headway.llm.tokenizer import Tokenizer, TokenizerInfo, library
from headway.serving.http.admission import Admission
from headway.serving.http.backend import Backend
from headway.serving.http.errors import ApiError, unavailable
from headway.serving.messages import Ready, TokenizerText

if TYPE_CHECKING:
    from headway.serving.http.reply import Reply

T = TypeVar("T")
INLINE = 2048
"""Characters that are tokenised at once; a longer text goes to a thread."""


class Served:
    """Made when the model's process is ready for the first time."""

    def __init__(self, backend: Backend, ready: Ready, admission: Admission | None, threads: Executor) -> None:
        self.backend, self._ready, self._threads = backend, ready, threads
        self._admission = admission
        self.open: set[Reply] = set()
        self.vanished = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._tokenizer = None if ready.tokenizer is None else _tokenizer(ready.tokenizer)
        special = {} if ready.tokenizer is None else ready.tokenizer.special
        self._template = None if ready.template is None else ChatTemplate(ready.template, special)

    @property
    def ready(self) -> Ready:
        """What the process said of itself; 503 while there is none."""
        if self.backend.ready is None:
            raise unavailable("the engine is being restarted" if self.backend.restarts else "the engine is starting")
        return self.backend.ready

    @property
    def name(self) -> str:
        return self._ready.name

    @property
    def task(self) -> str:
        return self._ready.task

    @property
    def admission(self) -> Admission:
        assert self._admission is not None
        return self._admission

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None
        return self._tokenizer

    def count(self, prompt: int, completion: int) -> None:
        self.prompt_tokens += prompt
        self.completion_tokens += completion

    async def encode(self, text: str, *, start: bool = True, special: bool = True) -> list[int]:
        """Tokens of a prompt. 400 with both numbers for one that cannot fit, told without reading all of it."""
        context, tokenizer = self.ready.context, self.tokenizer
        least = tokenizer.least_tokens(text)
        if least >= context:
            raise too_long(f"at least {least}", context)
        if len(text) <= INLINE:
            return _call(tokenizer.encode, text, start=start, special=special)
        return await self._aside(lambda: _call(tokenizer.encode, text, start=start, special=special))

    async def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The text of a chat's prompt."""
        template = self._template
        if template is None:
            raise ApiError(400, f"{self.name} has no chat template; use /v1/completions", code="no_chat_template")
        return await self._aside(lambda: _call(template.render, messages))

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def too_long(tokens: int | str, context: int) -> ApiError:
    """400 that says both numbers."""
    return ApiError(
        400,
        f"the prompt has {tokens} tokens, the context is {context}; shorten it",
        param="prompt",
        code="context_length_exceeded",
    )


def _call(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
    try:
        return work(*arguments, **options)
    except BadInput as error:
        raise ApiError(400, str(error), code="invalid_value") from None
    except HeadwayError:
        raise ApiError(500, "the server failed on this request", code="internal") from None


def _tokenizer(text: TokenizerText) -> Tokenizer:
    spelling: Any = text.spelling
    info = TokenizerInfo(text.size, spelling, tuple(text.start), text.space_prefix, text.special)
    return Tokenizer(info, lambda: library().from_str(text.content))
