"""`headway serve`: an OpenAI-compatible HTTP server over one or several models."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headway.cli.console import Session
from headway.core.errors import BadInput, need_extra
from headway.core.progress import Progress, Task

if TYPE_CHECKING:
    from headway.serving.http.server import Running
    from headway.serving.messages import Doing
    from headway.serving.server_plan import ServerPlan

MODEL_PROCESS = ["-m", "headway.optimize.served"]
PACKAGES = ("msgspec", "uvicorn", "starlette", "httptools", "prometheus_client", "llguidance", "tokenizers")


def command(
    session: Session,
    models: Annotated[
        list[str] | None, typer.Argument(help="MODEL...: language models, and embedders such as minilm-l6.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Systems to apply first, a scheduler among them.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A plan of headway plan serving, instead of MODEL and settings.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="'ttft<=300ms, latency<=60ms/token': what to hold.")] = "",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="One key a line.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name clients use for this server; repeatable.")
    ] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option("--max-batch-tokens", min=1, max=1 << 20, help="Tokens of one iteration.")
    ] = None,
    max_seqs: Annotated[
        int | None, typer.Option("--max-seqs", min=1, max=1024, help="Requests that run at once; default 32.")
    ] = None,
    kv_memory: Annotated[
        str | None, typer.Option("--kv-memory", help="For keys and values, e.g. 2GB; default: a share of what is free.")
    ] = None,
    cache_per_key: Annotated[
        bool, typer.Option("--cache-per-key", help="Share prompts' pages only under the same API key.")
    ] = False,
    finetune: Annotated[
        Path | None,
        typer.Option("--finetune", help="JSON lines to train low-rank adapters on, in the time that requests leave."),
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option("--adapters", help="Folder for the adapters, written at each step; see --finetune.")
    ] = None,
    drain: Annotated[str, typer.Option("--drain", help="How long open streams may go on after SIGTERM.")] = "30s",
) -> int:
    """Serve models over HTTP as OpenAI does, until SIGTERM or Ctrl-C; streams that are open then finish first."""
    planned = _plan(plan, models, (recipe, budget or None, max_batch_tokens, max_seqs, kv_memory))
    _check_packages(training=finetune is not None)
    trained = _training(finetune, adapters, models)
    from headway.core.budget import Budget
    from headway.core.recipe import Recipe
    from headway.optimize.api import read_steps
    from headway.serving.http.keys import Keys
    from headway.serving.http.server import QUEUE_S, Options, serve
    from headway.serving.messages import Setup
    from headway.serving.schedulers.base import SLO

    if session.device != "cpu":
        raise BadInput(f"--device {session.device}: the server runs on the CPU", "leave --device out")
    limits = SLO.of(Budget.parse(budget))
    ttft, tbt = limits.ttft_s, limits.tbt_s
    if recipe is not None:
        read_steps(recipe)
        recipe = str(Recipe.read(recipe))
    options = Options(
        host,
        port,
        Keys.read(api_key_file) if api_key_file is not None else Keys([]),
        tuple(allow_host or ()),
        QUEUE_S if ttft is None else ttft,
        _quantity(drain, "--drain", "time", "30s"),
        cache_per_key,
    )
    kv_bytes = None if kv_memory is None else int(_quantity(kv_memory, "--kv-memory", "bytes", "2GB"))
    setups = [
        Setup(
            model,
            recipe,
            session.threads,
            session.seed,
            kv_bytes,
            max_batch_tokens,
            max_seqs or 32,
            ttft,
            tbt,
            allow_code=session.allow_code,
            **trained,
        )
        for model in models or ()
    ]
    if planned is not None:
        most, slo = planned.limits, planned.slo
        held = slo.tbt_s or slo.tpot_s
        steps, seed = planned.recipe, session.seed
        limited = (most.threads, seed, most.kv_bytes, None, most.max_seqs, slo.ttft_s, held)
        setups = [Setup(planned.model, steps, *limited, allow_code=session.allow_code)]
    with ExitStack() as stack:
        shown = _Shown(session.progress, stack)

        def ready(running: Running) -> None:
            shown.end()
            _announce(session, running)

        return serve(setups, [sys.executable, *MODEL_PROCESS], options, tell=shown, ready=ready)


def _plan(path: Path | None, models: list[str] | None, settings: tuple[object, ...]) -> ServerPlan | None:
    """The plan to run, if one is given; raises `BadInput` for both a plan and what it holds, and for neither."""
    from headway.optimize.api import read_steps
    from headway.serving.server_plan import ServerPlan

    if path is None:
        if not models:
            raise BadInput("serve: no MODEL", "name one, e.g. headway serve smollm2-135m, or give --plan FILE")
        return None
    if models or any(value is not None for value in settings):
        raise BadInput("--plan says what to serve and how", "leave MODEL and the settings that a plan holds out")
    found = ServerPlan.read(path)
    read_steps(found.recipe)
    return found


def _announce(session: Session, running: Running) -> None:
    models = list(running.site.models)
    text = f"headway: serving {', '.join(models)} on {running.address} (Ctrl-C ends it)"
    session.emit({"address": running.address, "models": models}, text, one_line=True)
    sys.stdout.flush()


def _quantity(text: str, option: str, dimension: str, example: str) -> float:
    from headway.core.units import Quantity, QuantityError

    try:
        found = Quantity.parse(text)
    except QuantityError as error:
        raise BadInput(f"{option}: {error}", f"write e.g. {example}") from None
    if found.dimension != dimension or not found.value > 0:
        raise BadInput(f"{option} {text!r} is no {dimension}", f"write e.g. {example}")
    return found.value


def _training(data: Path | None, adapters: Path | None, models: list[str] | None) -> dict[str, str]:
    """The fields of `Setup` that say what is trained; raises `BadInput` for half a job, or one of several models."""
    if data is None and adapters is None:
        return {}
    if data is None or adapters is None:
        raise BadInput("--finetune and --adapters belong together", "give the examples and the folder for the adapters")
    if models is None or len(models) != 1:
        raise BadInput("--finetune trains adapters of one model", "serve that model alone, without --plan")
    if not data.is_file():
        raise BadInput(f"--finetune {data}: no such file", "give a file of JSON lines")
    return {"finetune": str(data.resolve()), "adapters": str(adapters.resolve())}


def _check_packages(training: bool) -> None:
    """Raise `Lacking` naming the extra before anything is loaded."""
    from importlib.util import find_spec

    for package in PACKAGES:
        if find_spec(package) is None:
            raise need_extra(package, "serve")
    if training and find_spec("torch") is None:
        raise need_extra("torch", "torch")


class _Shown:
    """Shows what a model's process says of its start."""

    def __init__(self, progress: Progress, stack: ExitStack) -> None:
        self._progress, self._stack = progress, stack
        self._what, self._done = "", 0.0
        self._task: Task | None = None

    def __call__(self, doing: Doing) -> None:
        if doing.note:
            self._progress.note(doing.what)
            return
        if doing.what != self._what:
            self.end()
            self._what, self._done = doing.what, 0.0
            self._task = self._stack.enter_context(self._progress.task(doing.what, doing.total or None))
        assert self._task is not None
        self._task.advance(doing.done - self._done)
        self._done = doing.done

    def end(self) -> None:
        self._stack.close()
        self._what, self._task = "", None
