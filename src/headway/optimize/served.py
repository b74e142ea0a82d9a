"""The process of one served model: loads it, applies the recipe, measures its iteration time, and serves.

`python -m headway.optimize.served FD` talks over the inherited socket FD (see `headway.serving.messages`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headway.core.artifact import RECIPE
from headway.core.errors import HeadwayError
from headway.core.model import Model
from headway.core.progress import Progress, Task
from headway.core.recipe import Recipe
from headway.kernels import cpu
from headway.optimize.api import apply, load, read_steps, use_threads
from headway.optimize.load import as_language
from headway.serving import prepared, worker
from headway.serving.channel import Channel, Closed
from headway.serving.embedding import Embedder
from headway.serving.grammar import Grammars
from headway.serving.messages import Doing, Failed, Setup, setup

_PR_SET_PDEATHSIG = 1
TELL_EVERY_S = 0.1


def main() -> int:
    """Serve until the HTTP process goes away; 0 then."""
    _die_with_parent()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        bodies: list[bytes] = []
        while not bodies:
            bodies += channel.receive(None)
        _serve(setup.decode(bodies[0]), channel)
    except Closed:
        pass
    return 0


def _die_with_parent() -> None:
    """When the HTTP process is killed in the middle of a long step, nobody is left behind."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _serve(wanted: Setup, channel: Channel) -> None:
    progress = _ChannelProgress(channel)
    try:
        model, systems = _load(wanted, progress)
        if model.task == "embedding":
            embedder = Embedder(model, systems)
            channel.send(embedder.ready)
            embedder.serve(channel)
            return
        engine = prepared.engine(as_language(model), wanted, progress)
    except HeadwayError as error:
        channel.send(Failed(error.what, error.mend, error.exit_code))
        return
    channel.send(prepared.ready(engine, systems))
    grammars = Grammars(engine.model)
    grammars.warm()
    worker.serve(engine, channel, grammars)


def _load(wanted: Setup, progress: Progress) -> tuple[Model, list[str]]:
    """The model, and the systems that are on in it."""
    cpu.set_threads(wanted.threads or len(os.sched_getaffinity(0)))
    artifact = Path(wanted.model) / RECIPE
    steps = Recipe.read(str(artifact)).steps if artifact.is_file() else ()
    model = load(wanted.model, allow_code=wanted.allow_code)
    if wanted.recipe is not None:
        steps += read_steps(wanted.recipe).steps
        model = apply(wanted.recipe, model, threads=wanted.threads, seed=wanted.seed, progress=progress)
    if wanted.finetune is not None:
        as_language(model)
    if model.task == "embedding" or wanted.finetune is not None:  # torch is there in any case
        use_threads(wanted.threads)
    return model, [str(step) for step in steps]


class _ChannelTask(Task):
    def __init__(self, channel: Channel, what: str, total: float | None) -> None:
        self._channel, self._what, self._total = channel, what, total or 0.0
        self._done, self._told = 0.0, 0.0

    def advance(self, steps: float = 1) -> None:
        self._done += steps
        if time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            self._channel.send(Doing(self._what, self._done, self._total))

    def say(self, text: str) -> None:
        self._what = text
        self.advance(0)


class _ChannelProgress(Progress):
    """Tells the HTTP process, which shows it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        task = _ChannelTask(self._channel, what, total)
        task.advance(0)
        yield task

    def note(self, text: str) -> None:
        self._channel.send(Doing(text, note=True))


if __name__ == "__main__":
    sys.exit(main())
