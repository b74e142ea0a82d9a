"""`headway bench`: throughput and latency beside other engines, interleaved in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headway.cli.console import Session
from headway.core.errors import BadInput


def command(
    session: Session,
    model: Annotated[str, typer.Argument(help="MODEL: a language model, or a module.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Systems to apply first.")] = None,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            help="Peers: llama.cpp, llama.cpp:Q4_0, llama.cpp:all, torch, torch:bf16, transformers; of a module: "
            "torch, onnxruntime. Comma-separated.",
        ),
    ] = "",
    prefill: Annotated[int, typer.Option("--prefill", min=1, max=1 << 20, help="Prompt tokens.")] = 512,
    decode: Annotated[int, typer.Option("--decode", min=1, max=1 << 20, help="Tokens decoded in all.")] = 64,
    batch: Annotated[str, typer.Option("--batch", help="Sequences (or inputs) at once, e.g. 1,4,8.")] = "1",
    context: Annotated[
        int, typer.Option("--context", min=1, max=1 << 20, help="Depth when decoding; tokens an encoder reads.")
    ] = 128,
    text: Annotated[
        Path | None, typer.Option("--text", help="UTF-8 text; perplexity is taken on its held-out part.")
    ] = None,
    windows: Annotated[int, typer.Option("--windows", min=0, help="Windows (or inputs) scored; 0 = none.")] = 12,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A report (HTML).")] = None,
) -> int:
    """Measure MODEL (with a recipe) and peers, taking turns: prefill and decode tokens/s, or a module's latency."""
    from headway.core.files import check_file
    from headway.core.ledger import Ledger
    from headway.core.recipe import Recipe
    from headway.core.workload import split_text
    from headway.optimize import api, engines
    from headway.optimize.bench import Load, bench
    from headway.optimize.report import write_report

    if output is not None:
        check_file(output)
    try:
        batches = [int(part) for part in batch.split(",")]
    except ValueError:
        raise BadInput(f"--batch {batch!r} is no list of numbers", "write e.g. 1,4,8") from None
    if not all(1 <= number <= 1024 for number in batches):
        raise BadInput(f"--batch {batch!r}", "numbers must lie in 1..1024")
    peers = [name.strip() for name in against.split(",") if name.strip()]
    engines.check(peers)
    load = Load(prefill, decode, batches, context, split_text(text).heldout if text else "", windows)
    api.use_threads(session.threads)
    fixed = api.read_steps(recipe) if recipe is not None else Recipe()
    original: Any = api.load(model)
    engines.check(peers, original.task)
    if original.task == "language":
        load.check(original)
    made: Any = original
    if fixed.steps:
        made = api.apply(fixed, original, threads=session.threads, seed=session.seed, progress=session.progress)
    run: dict[str, Any] = {"against": peers, "original": original, "threads": session.threads, "seed": session.seed}
    run |= {"target": api.machine(session.progress), "progress": session.progress}
    if original.task == "language":
        result = bench(made, load=load, **run)
    else:
        from headway.optimize.bench_modules import bench_module

        result = bench_module(made, batches=batches, tokens=context, pieces=windows, **run)
    result.evidence.recipe = fixed.as_json()
    Ledger.open().append(result.evidence)
    if output is not None:
        write_report(output, [result.evidence])
    session.emit(result.as_json(), result.table(), result.target)
    return 0
