"""`serve`: from models and an address to a running server, and its end: SIGTERM lets every stream finish."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp

from headway.core.errors import BadInput
from headway.serving.http.admission import Admission
from headway.serving.http.app import Site
from headway.serving.http.backend import Backend
from headway.serving.http.errors import unavailable
from headway.serving.http.guard import Names, is_loopback
from headway.serving.http.keys import Keys
from headway.serving.http.metrics import Record
from headway.serving.http.protocol import Connection
from headway.serving.http.served import Served
from headway.serving.messages import Doing, Setup

QUEUE_S = 10.0
"""The longest wait for a first token that is promised, where no budget says so."""
THREADS = 4
SWITCH_S = 0.0005
"""A thread that tokenises gives the event loop its turn this soon."""


@dataclass(frozen=True)
class Options:
    """How to serve."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys = field(default_factory=lambda: Keys([]))
    names: Sequence[str] = ()
    """Further names under which clients may ask."""
    queue_s: float = QUEUE_S
    drain_s: float = 30.0
    salted: bool = False


@dataclass
class Running:
    """A server that answers."""

    address: str
    site: Site
    backends: list[Backend]
    server: _Server

    def drain(self) -> None:
        """No more connections; the server ends when all streams have."""
        self.site.draining = True
        self.server.should_exit = True


def serve(
    setups: Sequence[Setup],
    command: Sequence[str],
    options: Options,
    *,
    tell: Callable[[Doing], None] = lambda doing: None,
    ready: Callable[[Running], None] = lambda running: None,
) -> int:
    """Serve until SIGTERM or SIGINT; 0, or 130 after SIGINT. Raises `BadInput` and `Lacking` before it serves."""
    sys.setswitchinterval(SWITCH_S)
    listener = bind(options)
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(setups, command, options, listener, tell, ready))


def bind(options: Options) -> socket.socket:
    """A listening socket. Raises `BadInput` for an address that must not or cannot be used."""
    if not is_loopback(options.host) and not options.keys:
        raise BadInput(
            f"--host {options.host} can be reached from other machines and there is no API key",
            "give --api-key-file FILE, or serve on 127.0.0.1",
        )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host.strip("[]"), options.port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInput(f"cannot listen on {options.host}:{options.port}: {error}", "choose another --port") from None
    listener.setblocking(False)
    return listener


async def _serve(
    setups: Sequence[Setup],
    command: Sequence[str],
    options: Options,
    listener: socket.socket,
    tell: Callable[[Doing], None],
    ready: Callable[[Running], None],
) -> int:
    loop = asyncio.get_running_loop()
    stop, asked = asyncio.Event(), []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda number=number: (asked.append(number), stop.set()))
    threads = ThreadPoolExecutor(THREADS, "text")
    backends: list[Backend] = []
    try:
        site = await _until(stop, _site(setups, command, options, threads, tell, backends))
        if site is None:
            return _code(asked)
        host, port = listener.getsockname()[:2]
        server = _server(site.app(options.keys, Names.of(options.host, options.names)), options.drain_s)
        running = Running(f"http://{f'[{host}]' if ':' in host else host}:{port}", site, backends, server)
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        ready(running)
        await _until(stop, asyncio.shield(serving))
        if not serving.done():
            running.drain()
            stop.clear()
            await _drain(site, serving, stop, options.drain_s)
        await serving
        return _code(asked)
    finally:
        await asyncio.gather(*(backend.stop() for backend in backends))
        threads.shutdown(wait=False, cancel_futures=True)


async def _site(
    setups: Sequence[Setup],
    command: Sequence[str],
    options: Options,
    threads: ThreadPoolExecutor,
    tell: Callable[[Doing], None],
    backends: list[Backend],
) -> Site:
    """Start every model, one after the other: they measure themselves."""
    models: dict[str, Served] = {}
    records: dict[str, Record] = {}
    for setup in setups:
        record = Record()
        backend = Backend(command, setup, record, tell)
        backends.append(backend)
        found = await backend.start()
        if found.name in models:
            raise BadInput(f"two models are called {found.name}", "serve them on two ports")
        if found.task == "language":
            record.admission = Admission(found, options.queue_s)
        models[found.name] = Served(backend, found, record.admission, threads)
        records[found.name] = record
    return Site(models, records, salted=options.salted)


async def _drain(site: Site, serving: asyncio.Task[None], stop: asyncio.Event, limit_s: float) -> None:
    """Streams finish, at most until the limit or a second signal; those that are left get an error's end."""
    await _until(stop, asyncio.wait({serving}, timeout=limit_s))
    for served in site.models.values():
        for reply in list(served.open):
            reply.interrupt(unavailable("the server is shutting down"))


async def _until(stop: asyncio.Event, work):  # type: ignore[no-untyped-def]
    """What `work` gives, or None when `stop` is set before."""
    task, stopped = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return None


def _code(asked: list[int]) -> int:
    return 130 if signal.SIGINT in asked else 0


class _Server(uvicorn.Server):
    """Signals are ours."""

    def capture_signals(self):  # type: ignore[no-untyped-def]
        return nullcontext()


def _server(app: ASGIApp, drain_s: float) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(drain_s) + 5,
            proxy_headers=False,
        )
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
