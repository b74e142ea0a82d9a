"""`bench`: speed, bytes and perplexity of engines on one model, prompt, text and threads, interleaved in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.measure import Timing, compare
from headway.core.progress import Progress
from headway.core.statistics import perplexity_ratio
from headway.core.target import Target
from headway.core.units import show
from headway.core.workload import default_texts
from headway.llm import scoring
from headway.llm.language_model import LanguageModel
from headway.llm.scoring import I64
from headway.optimize.engines import DECODED, Engine, HeadwayEngine, check, peers
from headway.optimize.engines.base import Repeat

ROUNDS = 15
SETTLE_S = 0.02
"""Pause before each sample: OpenMP's threads spin for some milliseconds after their work is done."""
READ, READ_SHARE = "plain read", "read_share"
"""An arm that only reads the weights, and what share of its rate decoding alone reaches."""
WINDOWS = 12


@dataclass(frozen=True)
class Load:
    """What the engines are asked."""

    prefill: int = 512
    """Prompt tokens."""
    decode: int = 64
    """Tokens decoded by each engine in all, at the least."""
    batches: Sequence[int] = (1,)
    context: int = 128
    """Tokens that each sequence has read before it decodes."""
    text: str = ""
    """Perplexity is taken on it; "" = the default held-out text."""
    windows: int = WINDOWS
    """Windows of 512 tokens that are scored; 0 = no perplexity."""

    def check(self, model: LanguageModel) -> None:
        room, most = model.architecture.context, max(self.prefill, self.context + DECODED)
        if most > room:
            raise BadInput(f"{most} tokens", f"the context of {model.name} is {room}")


@dataclass(frozen=True)
class BenchResult:
    rows: list[dict[str, Any]]
    evidence: Evidence
    target: Target
    layout: Callable[[list[dict[str, Any]]], str]

    def as_json(self) -> dict[str, Any]:
        return {"engines": self.rows, "evidence": self.evidence.to_json()}

    def table(self) -> str:
        raced = [ratio for ratio in self.evidence.ratios if ratio.candidate != READ]  # reading alone is no rival
        return f"{self.layout(self.rows)}\n\n{replace(self.evidence, ratios=raced).table()}"


def language_table(rows: Sequence[Mapping[str, Any]]) -> str:
    wide = max(len(row["engine"]) for row in rows)
    lines = [f"{'engine':<{wide}}  batch  context  decode tok/s  prefill tok/s   bits     size  quality      KL"]
    for row in rows:
        quality = f"{row['quality']:.4f}  {row['kl']:.4f}" if "quality" in row else ""
        lines.append(
            f"{row['engine']:<{wide}} {row['batch']:>6} {row['context']:>8} {row['decode_tok_s']:>13.1f} "
            f"{row['prefill_tok_s']:>14.1f} {row['bits']:>6.2f} {show(row['size_bytes'], 'B'):>8}  {quality}"
        )
    shares = [row[READ_SHARE] for row in rows if READ_SHARE in row]
    return "\n".join(
        [*lines, *(f"headway reads its weights at {100 * share:.0f} % of a plain read" for share in shares)]
    )


@dataclass
class _Run:
    """Engines that take turns."""

    engines: Sequence[Engine]
    evidence: Evidence
    seed: int
    rounds: int
    progress: Progress
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def timed(
        self,
        what: str,
        units: int,
        make: Callable[[Engine], Repeat],
        rounds: int,
        besides: Mapping[str, Repeat] | None = None,
    ) -> Timing:
        with ExitStack() as stack, self.progress.task(f"timing {what}", rounds) as task:
            calls = {engine.name: make(stack.enter_context(closing(engine))) for engine in self.engines}
            timing = compare(
                {**calls, **(besides or {})},
                rounds=rounds,
                seed=self.seed,
                settle_s=SETTLE_S,
                progress=lambda *_: task.advance(),
            )
        self.evidence.add_timing(what, timing, unit="s/token", per_call=units)
        return timing

    def qualities(self, exact: LanguageModel, parts: Sequence[I64]) -> dict[str, dict[str, float]]:
        """Engine -> its perplexity, and how far it is from the file's exact value."""
        found = {}
        with ExitStack() as stack, self.progress.task("perplexity of each engine", len(parts)) as task:
            predictors = [stack.enter_context(closing(engine)).predictions for engine in self.engines]
            compared = scoring.compare_predictions(scoring.predictor(exact), predictors, parts, task.advance)
        lengths = [len(part) - 1 for part in parts]
        for engine, seen in zip(self.engines, compared, strict=True):
            ratio = perplexity_ratio(seen.candidate, seen.original, windows=lengths)
            found[engine.name] = {
                "perplexity": float(np.exp(-seen.candidate.mean())),
                "quality": seen.quality,
                "quality_low": 1.0 / ratio.high,
                "quality_high": 1.0 / ratio.low,
                "kl": seen.mean_kl,
                "top1_agreement": seen.top1_agreement,
            }
        return found


def bench(
    model: LanguageModel,
    target: Target,
    *,
    against: Sequence[str] = (),
    original: LanguageModel | None = None,
    beside: Mapping[str, LanguageModel] | None = None,
    load: Load | None = None,
    threads: int = 1,
    seed: int = 0,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> BenchResult:
    """Time engines arm against arm: Headway twice (the noise floor), and every peer.

    `original`: the unmodified model, which peers run and quality is relative to (default: `model`). `beside`: the same
    model with other recipes, by names of their own.
    Raises `BadInput` for an unknown peer and for sizes beyond the model's context.
    """
    load, original = load or Load(), original or model
    check(against, model.task)
    load.check(model)
    ours = HeadwayEngine(model.with_runtime("native", threads))
    others = [HeadwayEngine(other.with_runtime("native", threads), name) for name, other in (beside or {}).items()]
    engines: list[Engine] = [ours, *others, *peers(against, original, threads)]
    evidence = Evidence.begin("bench", model.name, target, seed, threads).about(model)
    run = _Run(engines, evidence, seed, rounds, progress or Progress())
    tokens = np.random.default_rng(seed).integers(
        0, model.architecture.vocab, max(load.prefill, load.context, DECODED), dtype=np.int64
    )
    qualities: dict[str, dict[str, float]] = {}
    if load.windows:
        parts = scoring.windows(original, load.text or default_texts().heldout)
        qualities = run.qualities(original.with_runtime("exact"), parts[: load.windows])
    read = run.timed("prefill", load.prefill, lambda e: e.prefill(tokens[: load.prefill]), rounds)
    rows = []
    for batch in load.batches:
        wrote = run.timed(
            f"decode, batch {batch}",
            DECODED * batch,
            lambda e, batch=batch: e.decode(tokens, batch, load.context),
            max(rounds, -(-load.decode // DECODED)),
            {READ: ours.read()} if batch == 1 else {},
        )
        share = {READ_SHARE: wrote.median_s(READ) / wrote.median_s("headway")} if batch == 1 else {}
        rows += [
            {
                "engine": engine.name,
                "version": engine.version,
                "bits": engine.bits,
                "size_bytes": engine.size_bytes,
                "threads": threads,
                "prefill_tok_s": load.prefill / read.median_s(engine.name),
                "decode_tok_s": DECODED * batch / wrote.median_s(engine.name),
                "batch": batch,
                "context": load.context,
                "samples": [DECODED * batch / seconds for seconds in wrote.samples[engine.name]],
                **qualities.get(engine.name, {}),
                **(share if engine.name == "headway" else {}),
            }
            for engine in engines
        ]
    evidence.result = {"engines": rows}
    return BenchResult(rows, evidence, target, language_table)
