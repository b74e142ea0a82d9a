"""`headway probe`: measure this machine into a target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli.console import Session, table
from headway.core.errors import BadInput


def command(
    session: Session,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the target as JSON here too.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="In under 5 s, with fewer bursts.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Every size and unit; minutes.")] = False,
) -> int:
    """Measure memory levels, arithmetic, dispatch, RAM and instruction sets; what `predict` stands on."""
    from headway.core.files import atomic_write_text, check_file
    from headway.hardware.probe import probe
    from headway.hardware.table import probe_table

    if quick and deep:
        raise BadInput("--quick and --deep together", "choose one")
    if output is not None:
        check_file(output)
    target = probe("quick" if quick else "deep" if deep else "default", session.progress)
    if output is not None:
        atomic_write_text(output, target.dumps() + "\n")
    document = {key: value for key, value in target.to_json().items() if key != "schema"}
    session.emit(document, table(("what", "one core", "all cores", "note"), probe_table(target)), target)
    return 0
