"""`headway bench`: throughput and latency beside other engines, interleaved in one run; or a load run of the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headway.cli.console import Session, typed
from headway.core.errors import BadInput

if TYPE_CHECKING:
    from headway.core.recipe import Recipe
    from headway.optimize.bench import BenchResult
    from headway.optimize.load_bench import LoadResult

REQUESTS = 48
MOST_RATES = 12


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
    prefill: Annotated[int | None, typer.Option("--prefill", min=1, max=1 << 20, help="Prompt tokens; 512.")] = None,
    decode: Annotated[
        int | None, typer.Option("--decode", min=1, max=1 << 20, help="Tokens decoded in all; 64.")
    ] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Sequences (or inputs) at once, e.g. 1,4,8; 1.")] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, max=1 << 20, help="Depth when decoding; tokens an encoder reads; 128."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="UTF-8 text; perplexity is taken on its held-out part.")
    ] = None,
    windows: Annotated[
        int | None, typer.Option("--windows", min=0, help="Windows (or inputs) scored; 12; 0 = none.")
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            "--trace",
            help="A load run instead: azure-conv, azure-code, arxiv-4k, or a CSV file of requests; on the engine of "
            "headway serve and in its simulator.",
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option("--rates", help="Requests per second, e.g. 0.5,1,2; 30, 60, 90 % of what the simulator sustains."),
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=2, max=1 << 20, help="Requests at each rate; 48.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="'ttft<=300ms, latency<=60ms/token': limits of the load run.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A report (HTML).")] = None,
) -> int:
    """Measure MODEL (with a recipe) and peers, taking turns: prefill and decode tokens/s, or a module's latency.

    With --trace: how long requests wait and what is held, at several rates, beside what the simulator says.
    """
    from headway.core.files import check_file
    from headway.core.recipe import Recipe
    from headway.optimize import api

    alone = {"--against": against or None, "--prefill": prefill, "--decode": decode, "--batch": batch}
    alone |= {"--context": context, "--text": text, "--windows": windows}
    loaded = {"--rates": rates, "--requests": requests, "--budget": budget}
    for option, value in (loaded if trace is None else alone).items():
        if value is not None:
            raise BadInput(
                f"{option} {'is of a load run' if trace is None else 'does not go with --trace'}",
                "name the load with --trace, e.g. --trace azure-conv" if trace is None else f"leave {option} out",
            )
    if output is not None:
        check_file(output)
    fixed = api.read_steps(recipe) if recipe is not None else Recipe()
    if trace is not None:
        return _load_run(session, model, fixed, trace, _rates(rates), requests or REQUESTS, budget or "", output)
    return _side_by_side(
        session,
        model,
        fixed,
        [name.strip() for name in against.split(",") if name.strip()],
        {"prefill": prefill, "decode": decode, "batches": _batches(batch), "context": context, "windows": windows},
        text,
        output,
    )


def _side_by_side(
    session: Session,
    model: str,
    fixed: Recipe,
    peers: list[str],
    asked: dict[str, Any],
    text: Path | None,
    output: Path | None,
) -> int:
    from headway.core.workload import split_text
    from headway.optimize import api, engines
    from headway.optimize.bench import Load, bench

    engines.check(peers)
    given = {name: value for name, value in asked.items() if value is not None}
    load = Load(**given, text=split_text(text).heldout if text else "")
    api.use_threads(session.threads)
    original: Any = api.load(model, allow_code=session.allow_code)
    engines.check(peers, original.task)
    if original.task == "language":
        load.check(original)
    made = _made(session, original, fixed)
    run: dict[str, Any] = {"against": peers, "original": original, "threads": session.threads, "seed": session.seed}
    run |= {"target": api.machine(session.progress), "progress": session.progress}
    if original.task == "language":
        result = bench(made, load=load, **run)
    else:
        from headway.optimize.bench_modules import bench_module

        result = bench_module(made, batches=load.batches, tokens=load.context, pieces=load.windows, **run)
    _keep(session, result, fixed, output)
    return 0


def _load_run(
    session: Session,
    model: str,
    fixed: Recipe,
    source: str,
    rates: list[float] | None,
    requests: int,
    budget: str,
    output: Path | None,
) -> int:
    from headway.core.budget import Budget
    from headway.core.registry import entry
    from headway.optimize import api
    from headway.optimize.load import as_language
    from headway.optimize.load_bench import load_bench
    from headway.serving.load_run import LoadBench, check_scheduler
    from headway.serving.messages import Setup
    from headway.serving.schedulers.base import SLO
    from headway.serving.trace import named

    if session.device != "cpu":
        raise BadInput(f"--device {session.device}: load runs are on the CPU", "leave --device out")
    slo = SLO.of(Budget.parse(budget))
    for step in fixed.steps:
        if entry(step.system).card.slot == "scheduler":
            check_scheduler(step.system, step.settings)
    whole = named(source, requests, session.seed)
    api.use_threads(session.threads)
    original = as_language(api.load(model, allow_code=session.allow_code))
    trace, factor = whole.fitted(original.architecture.context)
    made = _made(session, original, fixed).with_runtime("native", session.threads)
    wanted = Setup(model, str(fixed), session.threads, session.seed, ttft_s=slo.ttft_s, tbt_s=slo.tbt_s)
    bench = LoadBench(made, wanted, trace, session.progress)
    result = load_bench(bench, api.machine(session.progress), rates, budget, source, factor)
    _keep(session, result, fixed, output)
    return 1 if result.met is False else 0


def _made(session: Session, original: Any, fixed: Recipe) -> Any:
    """The model with the recipe applied."""
    from headway.optimize import api

    if not fixed.steps:
        return original
    return api.apply(fixed, original, threads=session.threads, seed=session.seed, progress=session.progress)


def _keep(session: Session, result: BenchResult | LoadResult, fixed: Recipe, output: Path | None) -> None:
    """Into the ledger, into a report, and out to whoever asked."""
    from headway.core.ledger import Ledger
    from headway.optimize.report import write_report

    result.evidence.command = typed("bench")
    result.evidence.recipe = fixed.as_json()
    Ledger.open().append(result.evidence)
    if output is not None:
        write_report(output, [result.evidence])
    session.emit(result.as_json(), result.table(), result.target)


def _batches(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--batch {text!r} is no list of numbers", "write e.g. 1,4,8") from None
    if not all(1 <= number <= 1024 for number in batches):
        raise BadInput(f"--batch {text!r}", "numbers must lie in 1..1024")
    return batches


def _rates(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise BadInput(f"--rates {text!r} is no list of numbers", "write e.g. 0.5,1,2") from None
    if len(rates) > MOST_RATES or not all(1e-3 <= rate <= 1e6 for rate in rates):
        raise BadInput(f"--rates {text!r}", f"give at most {MOST_RATES}, in 0.001..1000000 requests per second")
    return rates
