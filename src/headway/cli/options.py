"""The options that every verb has, and how a verb gets the session they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from headway.cli.console import Session

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail; errors show their traceback.")]
Threads = Annotated[int, typer.Option("--threads", min=0, max=1024, help="Threads; 0: every usable core.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda[:i].")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the python:module:function that MODEL, an artifact, was made from.")
]

COMMON: dict[str, tuple[Any, Any]] = {
    "as_json": (Json, False),
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
    "threads": (Threads, 0),
    "seed": (Seed, 0),
    "device": (Device, "cpu"),
    "allow_code": (AllowCode, False),
}
"""Arguments of `Session`: (type, default)."""


def with_session(command: Callable[..., int]) -> Callable[..., int]:
    """`command(session, ...)` as a function of its own options and the common ones."""
    signature = inspect.signature(command, eval_str=True)
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in list(signature.parameters.values())[1:]]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in COMMON.items()
    ]

    def run(**given: Any) -> int:
        session = Session(**{name: given.pop(name) for name in COMMON})
        return command(session, **given)

    run.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *common)}
    run.__doc__ = command.__doc__
    return run
