"""`headway search`: a network for this machine, from a space of networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli.console import Session, typed


def command(
    session: Session,
    system: Annotated[str, typer.Argument(help="SYSTEM: what searches, e.g. proxylessnas.")],
    space: Annotated[str, typer.Argument(help="SPACE: a space of this system, e.g. d400.")],
    budget: Annotated[str, typer.Option("--budget", help='Limits, e.g. "latency<=1ms, quality>=0.97".')] = "",
    data: Annotated[
        Path | None, typer.Option("--data", help="Labelled images: a .npz file with arrays images and labels.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the artifact; an older one is replaced.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE: a setting of the system.")] = None,
) -> int:
    """Search a space for the best network that the budget allows; exit 1 when none does (the nearest is saved)."""
    from headway.optimize.api import search

    result = search(
        system,
        space,
        budget,
        settings or (),
        data=data,
        output=output,
        threads=session.threads,
        seed=session.seed,
        command=typed("search"),
        progress=session.progress,
    )
    session.emit(result.as_json(), result.table(), result.target)
    return 0 if result.met else 1
