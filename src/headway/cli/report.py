"""`headway report`: one HTML file from evidence, that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli.console import Session
from headway.core.errors import BadInput


def command(
    session: Session,
    files: Annotated[list[Path] | None, typer.Argument(help="evidence.json files or artifact folders.")] = None,
    ledger: Annotated[bool, typer.Option("--ledger", help="Everything this machine's ledger holds.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file.")] = Path("report.html"),
) -> int:
    """Make a report from evidence: Pareto front, distributions, recipe, how to redo it."""
    from headway.core.evidence import Evidence
    from headway.core.files import check_file
    from headway.core.ledger import Ledger
    from headway.optimize.report import write_report

    check_file(output)
    if not files and not ledger:
        raise BadInput("no evidence named", "give evidence.json files or artifact folders, or --ledger")
    found = [Evidence.load(path / "evidence.json" if path.is_dir() else path) for path in files or ()]
    if ledger:
        found += Ledger.open_to_read().all()
    if not found:
        raise BadInput("the ledger is empty", "run: headway optimize, prove or bench first")
    write_report(output, found)
    session.emit({"report": str(output), "evidence": len(found)}, f"wrote {output} from {len(found)} experiments")
    return 0
