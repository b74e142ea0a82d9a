"""`headway prove`: a system's proof on this machine: the paper's figure, ours and the bar."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headway.cli.console import Session, typed
from headway.core.errors import BadInput


def command(
    session: Session,
    names: Annotated[list[str] | None, typer.Argument(help="Systems to prove.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every system that ships a proof.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds, less text: wider intervals.")] = False,
    model: Annotated[str, typer.Option("--model", help="MODEL to prove on, where the proof allows it.")] = "",
) -> int:
    """Run proofs against their baselines, interleaved; exit 1 when a bar is missed."""
    from headway.optimize.api import prove

    if names and every:
        raise BadInput(f"prove: --all proves every system, and {names[0]!r} names one", "leave one of the two out")
    if not names and not every:
        raise BadInput("name systems, or --all", "e.g. headway prove lut-gemm")
    proofs = prove(
        *(names or ()),
        quick=quick,
        model=model,
        threads=session.threads,
        seed=session.seed,
        command=typed("prove"),
        progress=session.progress,
        allow_code=session.allow_code,
    )
    documents = [proof.as_json() for proof in proofs]
    document: dict[str, Any] = {"proofs": documents, "met": all(proof.met for proof in proofs)}
    session.emit(document, "\n\n".join(proof.table() for proof in proofs), proofs[0].target if proofs else None)
    return 0 if document["met"] else 1
