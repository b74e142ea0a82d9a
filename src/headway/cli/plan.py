"""`headway plan`: a problem to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli.console import Session


def command(
    session: Session,
    system: Annotated[str, typer.Argument(help="SYSTEM: a planner, e.g. melange or serving.")],
    problem: Annotated[Path | None, typer.Argument(help="PROBLEM: a .toml file.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write the plan (JSON).")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="The problem's trace; without PROBLEM: all of it.")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE: a setting of the planner.")] = None,
) -> int:
    """Make a plan for a problem; exit 1 when no plan does all that is asked (the nearest is still written)."""
    from headway.optimize.api import plan_problem

    plan, text = plan_problem(
        system,
        problem,
        settings or (),
        trace=trace,
        output=output,
        threads=session.threads,
        seed=session.seed,
        progress=session.progress,
    )
    session.emit(plan, text if output is None else f"{text}\n{output} written")
    return 0 if plan["met"] else 1
