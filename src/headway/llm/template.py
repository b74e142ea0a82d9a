"""`ChatTemplate`: messages to the text a chat model was trained on, rendered where a hostile template can do no harm.

The template comes with the model and is not trusted. It is rendered by `template_worker.py`, a process with
nothing in it but minijinja, bounded in fuel, processor time, memory and output; only the values named in `render`
reach it, as JSON.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.core.errors import BadInput, Lacking, need_extra

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_MESSAGES = 1 << 14
MAX_REQUEST_BYTES = 64 << 20

ROOM_BYTES = 24 << 20
"""Memory the worker may map beyond what it starts with, for requests of usual size."""
USUAL_BYTES = 1 << 19
SECONDS = 0.05
"""Processor time of one rendering of usual size; real templates take under 5 ms."""
WAIT_S = 10.0
"""On a machine so busy that the worker gets no time, give up after this long."""
FUEL = 200_000
"""minijinja's unit: an instruction, or 16 bytes of text made."""

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_WORKER = Path(__file__).with_name("template_worker.py")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template as transformers writes them, and the special tokens it may print by name."""

    source: str
    special: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.source) > MAX_TEMPLATE_CHARACTERS:
            raise BadInput(
                f"a chat template of {len(self.source)} characters", f"the limit is {MAX_TEMPLATE_CHARACTERS}"
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
    ) -> str:
        """The prompt for `messages` (each at least `role` and `content`).

        Raises `BadInput` with the template's own words where it refuses them, where it is broken, and where it
        takes more time or memory than any honest template needs.
        """
        values = {
            **self.special,
            "messages": checked_messages(messages),
            "add_generation_prompt": bool(add_generation_prompt),
            "tools": None if tools is None else list(tools),
            "documents": None if documents is None else list(documents),
        }
        if enable_thinking is not None:
            values["enable_thinking"] = bool(enable_thinking)
        return _text(_RENDERER.ask(self._plain_source(), values))

    def _plain_source(self) -> str:
        """Without the tags that mark assistant text for training."""

        def as_if(tag: re.Match[str]) -> str:
            return f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}"

        return _GENERATION.sub(as_if, self.source)


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain objects; raises `BadInput` naming the first that is not one with a role."""
    if isinstance(messages, str | Mapping) or len(messages) > MAX_MESSAGES or not len(messages):
        raise BadInput("messages are a list", f"give 1..{MAX_MESSAGES} objects with role and content")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadInput(f"message {index} has no role", "give objects with role and content")
    return [dict(message) for message in messages]


def _text(reply: Mapping[str, Any]) -> str:
    if "refused" in reply:
        raise BadInput(f"the chat template refuses the messages: {reply['refused']!s:.300}", "change the messages")
    if "error" in reply:
        raise BadInput(f"the chat template fails: {reply['error']!s:.300}", "correct the model's chat template")
    return str(reply["text"])


class _Renderer:
    """Keeps one worker for the renderings of usual size; a larger one gets its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._owner = 0

    def ask(self, template: str, values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            size = len(json.dumps(values))
            request = {
                "template": template,
                "values": values,
                "fuel": FUEL + size,
                "longest": USUAL_BYTES + 4 * size,
            }
            line = json.dumps(request, allow_nan=False).encode()
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadInput("a message has a lone surrogate", "give text that UTF-8 can hold") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInput(
                f"the messages are not JSON values: {error}", "give texts, numbers, lists, objects"
            ) from None
        if len(line) > MAX_REQUEST_BYTES:
            raise BadInput(f"messages of {len(line)} bytes", f"the limit is {MAX_REQUEST_BYTES}")
        if len(line) > USUAL_BYTES:
            worker = _Worker(ROOM_BYTES + 24 * len(line), SECONDS + len(line) / 10e6)
            try:
                return worker.ask(line)
            finally:
                worker.stop()
        with self._lock:
            return self._usual().ask(line)

    def _usual(self) -> _Worker:
        if self._worker is None or self._owner != os.getpid() or not self._worker.alive:
            if self._worker is not None and self._owner == os.getpid():
                self._worker.stop()
            self._worker, self._owner = _Worker(ROOM_BYTES, SECONDS), os.getpid()
        return self._worker

    def stop(self) -> None:
        if self._worker is not None and self._owner == os.getpid():
            self._worker.stop()
        self._worker = None


class _Worker:
    """The other end of one `template_worker.py`."""

    def __init__(self, room_bytes: int, seconds: float) -> None:
        command = [sys.executable, "-I", str(_WORKER), str(room_bytes), str(seconds)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                process_group=0,  # a terminal's Ctrl-C is for us: the end of its standard input ends it
            )
        except OSError as error:
            raise Lacking(f"cannot start the template process: {error}", "free memory or processes") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: bytes) -> dict[str, Any]:
        """The reply to one request; a worker that dies of it is a template that asks for too much."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            for data in (line, b"\n"):
                view = memoryview(data)
                while view:
                    view = view[self._process.stdin.write(view) :]
            reply = self._read_line(self._process.stdout.fileno())
        except BrokenPipeError:
            reply = b""
        if reply.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(reply)
            return answer
        self.stop()
        if self._process.returncode == 1:
            _explain_start()
        return {"error": "it takes more time or memory than a chat template may"}

    def _read_line(self, descriptor: int) -> bytes:
        reply = bytearray()
        while not reply.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], WAIT_S)
            data = os.read(descriptor, 1 << 16) if ready else b""
            if not data:
                break
            reply += data
        return bytes(reply)

    def stop(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def _explain_start() -> None:
    """Raise `Lacking` when the worker cannot start at all."""
    try:
        import minijinja  # noqa: F401
    except ImportError:
        raise need_extra("minijinja", "llm") from None


_RENDERER = _Renderer()
atexit.register(_RENDERER.stop)
