"""`headway optimize`: the main path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from headway.cli.console import Session, typed
from headway.core.errors import BadInput


def command(
    session: Session,
    model: Annotated[str, typer.Argument(help="MODEL: a packaged name, folder, .gguf file, artifact, timm:NAME ...")],
    budget: Annotated[str, typer.Option("--budget", help='e.g. "latency<=6ms/token, quality>=0.95".')] = "",
    minimize: Annotated[str, typer.Option("--minimize", help="latency, memory, size or energy.")] = "latency",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the artifact.")] = None,
    time: Annotated[
        str,
        typer.Option(
            "--time",
            help="How long to measure and search, e.g. 90s; a quarter at most calibrates. The proof comes on top.",
        ),
    ] = "4m",
    recipe: Annotated[str, typer.Option("--recipe", help="Fixed part that every candidate begins with.")] = "",
    only: Annotated[str | None, typer.Option("--only", help="Systems to choose from, comma-separated.")] = None,
    without: Annotated[str | None, typer.Option("--without", help="Systems to leave out, comma-separated.")] = None,
    target: Annotated[Path | None, typer.Option("--target", help="Plan for this measured machine (--dry-run).")] = None,
    context: Annotated[int, typer.Option("--context", min=0, help="Tokens in the context when decoding.")] = 0,
    text: Annotated[Path | None, typer.Option("--text", help="Text like what the model will see.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Inputs of a module: .npy or .safetensors.")] = None,
    quality: Annotated[str, typer.Option("--quality", help="Your own judge: module:function.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Predict only: bytes by owner, and what would hold.")
    ] = False,
) -> int:
    """Bring MODEL under a budget: search, measure, prove; write an artifact and a report.

    Exit code 0 when the budget is met on held-out data, 1 when it is not (the nearest is still written).
    """
    from headway.core.target import Target
    from headway.optimize import api

    if target is not None and not dry_run:
        raise BadInput("--target plans for another machine", "add --dry-run: measuring needs that machine itself")
    seconds = parse_time(time)
    shared: dict[str, Any] = {
        "budget": budget,
        "minimize": minimize,
        "recipe": recipe,
        "only": names("--only", only),
        "without": names("--without", without),
        "target": None if target is None else Target.load(target),
        "text": text,
        "data": data,
        "quality": quality,
        "context": context,
        "threads": session.threads,
        "progress": session.progress,
        "allow_code": session.allow_code,
    }
    if dry_run:
        planned = api.plan(model, **shared)
        session.emit(planned.as_json(), planned.table(), planned.target)
        return 0 if planned.met else 1
    result = api.optimize(
        model,
        output=output,
        time_s=seconds,
        seed=session.seed,
        command=typed("optimize"),
        **shared,
    )
    session.emit(result.as_json(), result.table(), result.target)
    return 0 if result.met else 1


def names(option: str, text: str | None) -> list[str]:
    """A comma-separated list; raises `BadInput` for an option that was given and holds nothing."""
    found = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not found:
        raise BadInput(f"{option} names no system", f"name one, e.g. {option} lut-gemm, or leave {option} out")
    return found


def parse_time(text: str) -> float:
    """Seconds from `90s`, `5m`, `1h` or a plain number of seconds; raises `BadInput`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?\s*", text)
    if not match or float(match[1]) <= 0:
        raise BadInput(f"--time {text!r} is no time", "write e.g. 90s or 5m")
    return float(match[1]) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, None: 1}[match[2]]
