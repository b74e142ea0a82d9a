"""`headway apply`: one recipe on one model, no search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli.console import Session, typed


def command(
    session: Session,
    recipe: Annotated[str, typer.Argument(help='RECIPE: a .toml file, or in place: "lut-gemm(bits=3)".')],
    model: Annotated[str, typer.Argument(help="MODEL: a packaged name, folder, .gguf file or artifact.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the artifact; an older one is replaced.")],
    text: Annotated[
        Path | None, typer.Option("--text", help="Text to calibrate and judge a language model on.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Inputs of a module: .npy or .safetensors.")] = None,
) -> int:
    """Apply a recipe and save the artifact, with what was measured of it beside the unmodified model."""
    from headway.optimize.api import apply_and_save

    result = apply_and_save(
        recipe,
        model,
        output,
        text=text,
        data=data,
        threads=session.threads,
        seed=session.seed,
        command=typed("apply"),
        progress=session.progress,
        allow_code=session.allow_code,
    )
    session.emit(result.as_json(), result.table(), result.target)
    return 0
