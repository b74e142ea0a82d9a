"""How answers look on the wire: chat and plain completions, whole or as events. Every token's event is bytes joined."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec

from headway.serving.http.answers import Told, chat_logprobs, text_logprobs

_json = msgspec.json.encode
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Format:
    """The prefix of ids, the object's name whole and in pieces, and whether text is a message."""

    prefix: str
    whole: str
    piece: str
    chat: bool
    logprobs: Callable[[Sequence[Told]], dict[str, Any]]


CHAT = Format("chatcmpl-", "chat.completion", "chat.completion.chunk", True, chat_logprobs)
TEXT = Format("cmpl-", "text_completion", "text_completion", False, text_logprobs)


class Writer:
    """Writes one reply. usage: whether events carry the key `usage`."""

    def __init__(self, format: Format, model: str, usage: bool, logprobs: bool) -> None:
        self._format = format
        self._logprobs = logprobs
        self._head = {"id": format.prefix + uuid4().hex, "created": int(time.time()), "model": model}
        head = _json({**self._head, "object": format.piece, "system_fingerprint": None})[:-1]
        self._begin = b"data: " + head + b',"choices":[{"index":'
        self._content = b',"delta":{"content":' if format.chat else b',"text":'
        close = b"}" if format.chat else b""
        tail = (b'],"usage":null}' if usage else b"]}") + b"\n\n"
        self._close = close + b',"finish_reason":null,"logprobs":'
        self._plain = close + b',"finish_reason":null,"logprobs":null}' + tail
        self._tail = tail
        self._empty = b"data: " + head + b',"choices":[],"usage":'

    def first(self, index: int) -> bytes:
        """What precedes a choice's first piece."""
        if not self._format.chat:
            return b""
        delta = b',"delta":{"role":"assistant","content":""},"finish_reason":null,"logprobs":null}'
        return self._begin + str(index).encode() + delta + self._tail

    def piece(self, index: int, text: str, told: Sequence[Told]) -> bytes:
        start = self._begin + str(index).encode() + self._content + _json(text)
        if not self._logprobs:
            return start + self._plain
        return start + self._close + _json(self._format.logprobs(told)) + b"}" + self._tail

    def last(self, index: int, finish: str) -> bytes:
        """A choice's end."""
        what = b',"delta":{}' if self._format.chat else b',"text":""'
        end = b',"finish_reason":' + _json(finish) + b',"logprobs":null}'
        return self._begin + str(index).encode() + what + end + self._tail

    def usage(self, prompt: int, completion: int) -> bytes:
        """The event after all choices."""
        return self._empty + _json(usage(prompt, completion)) + b"}\n\n"

    def document(self, choices: Sequence[tuple[str, Sequence[Told], str]], prompt: int, completion: int) -> bytes:
        """A whole reply; choices: (text, log-probabilities, why it ended)."""
        made = []
        for index, (text, told, finish) in enumerate(choices):
            logprobs = self._format.logprobs(told) if self._logprobs else None
            message = {"role": "assistant", "content": text, "refusal": None}
            shown = {"message": message} if self._format.chat else {"text": text}
            made.append({"index": index, **shown, "logprobs": logprobs, "finish_reason": finish})
        head = {**self._head, "object": self._format.whole, "system_fingerprint": None}
        return _json({**head, "choices": made, "usage": usage(prompt, completion)})


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def error_event(body: bytes) -> bytes:
    """An error in the middle of a stream: OpenAI's client raises it."""
    return b"data: " + body + b"\n\n" + DONE
