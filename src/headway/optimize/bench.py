"""`bench`: prefill and decode throughput of engines on the same model, prompts and threads, interleaved in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from headway.core.errors import BadInput
from headway.core.evidence import Evidence
from headway.core.measure import compare
from headway.core.progress import Progress
from headway.core.target import Target
from headway.llm.language_model import LanguageModel

DECODED = 8
"""Tokens decoded by one repetition."""

ROUNDS = 15


class Engine(Protocol):
    """An engine that runs the model; each method gives one repetition to time."""

    name: str
    version: str
    size_bytes: int
    bits: float

    def prefill(self, tokens: Any) -> Callable[[], object]: ...
    def decode(self, tokens: Any, batch: int, depth: int) -> Callable[[], object]: ...


class HeadwayEngine:
    """The native runtime; a batch is one ragged step."""

    name = "headway"

    def __init__(self, model: LanguageModel) -> None:
        from headway.core.version import __version__

        self.model, self.version = model, __version__
        self.size_bytes = model.size_bytes()
        self.bits = average_bits(model)
        self.runtime: Any = model.runtime

    def prefill(self, tokens: Any) -> Callable[[], object]:
        return lambda: self.runtime.begin(len(tokens)).feed(tokens)

    def decode(self, tokens: Any, batch: int, depth: int) -> Callable[[], object]:
        sessions = [self.runtime.begin(depth + DECODED) for _ in range(batch)]
        for session in sessions:
            session.feed(tokens[:depth])
        steps = [[np.array([token])] * batch for token in tokens[:DECODED]]

        def repeat() -> None:
            for step in steps:
                self.runtime.step(sessions, step)
            for session in sessions:
                session.rewind(depth)

        return repeat


class TorchEngine:
    """The readable module, float32, eager, with its key-value cache."""

    name = "torch"

    def __init__(self, model: LanguageModel) -> None:
        import torch

        self.torch, self.version = torch, torch.__version__
        self.module = model.module().eval()
        self.layers = len(model.architecture.layers)
        self.size_bytes = sum(p.numel() * p.element_size() for p in self.module.parameters())
        self.bits = 32.0

    def prefill(self, tokens: Any) -> Callable[[], object]:
        fed = self.torch.from_numpy(np.asarray(tokens))[None]

        def repeat() -> None:
            with self.torch.inference_mode():
                self.module.head(self.module.hidden(fed)[:, -1:])

        return repeat

    def decode(self, tokens: Any, batch: int, depth: int) -> Callable[[], object]:
        from headway.llm.reference import Cache

        fed = self.torch.from_numpy(np.asarray(tokens)).expand(batch, -1)
        cache = Cache(self.layers)
        with self.torch.inference_mode():
            self.module.hidden(fed[:, :depth], cache)

        def repeat() -> None:
            with self.torch.inference_mode():
                for at in range(DECODED):
                    self.module(fed[:, at : at + 1], cache)
            cache.rewind(depth)

        return repeat


ENGINES: dict[str, Callable[[LanguageModel], Engine]] = {"headway": HeadwayEngine, "torch": TorchEngine}


@dataclass(frozen=True)
class BenchResult:
    rows: list[dict[str, Any]]
    evidence: Evidence
    target: Target

    def as_json(self) -> dict[str, Any]:
        return {"engines": self.rows, "evidence": self.evidence.to_json()}

    def table(self) -> str:
        from headway.core.units import show

        lines = ["engine      batch  context  decode tok/s  prefill tok/s  bits   size"]
        for row in self.rows:
            lines.append(
                f"{row['engine']:<10} {row['batch']:>6} {row['context']:>8} {row['decode_tok_s']:>13.1f} "
                f"{row['prefill_tok_s']:>14.1f} {row['bits']:>5.2f}  {show(row['size_bytes'], 'B')}"
            )
        return "\n".join([*lines, "", self.evidence.table()])


def bench(
    model: LanguageModel,
    target: Target,
    *,
    against: Sequence[str] = (),
    prefill: int = 512,
    decode: int = 64,
    batches: Sequence[int] = (1,),
    context: int = 128,
    threads: int = 1,
    seed: int = 0,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> BenchResult:
    """Time engines arm against arm: Headway twice (the noise floor), and every peer.

    Raises `BadInput` for an unknown peer and for sizes beyond the model's context.
    """
    for name in against:
        if name not in ENGINES or name == "headway":
            raise BadInput(f"no peer {name!r}", f"peers are: {', '.join(n for n in ENGINES if n != 'headway')}")
    room = model.architecture.context
    if max(prefill, context + DECODED) > room:
        raise BadInput(f"{max(prefill, context + DECODED)} tokens", f"the context of {model.name} is {room}")
    progress = progress or Progress()
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, model.architecture.vocab, max(prefill, context, DECODED))
    engines = [ENGINES[name](model) for name in ("headway", *against)]
    evidence = Evidence.begin("bench", model.name, target, seed, threads)
    evidence.model = {"name": model.name, "fingerprint": model.fingerprint()}
    decode_rounds = max(rounds, -(-decode // DECODED))

    def timed(what: str, units: int, calls: dict[str, Callable[[], object]], count: int) -> Any:
        with progress.task(f"timing {what}", count) as task:
            timing = compare(calls, rounds=count, baseline="headway", seed=seed, progress=lambda *_: task.advance())
        evidence.add_timing(what, timing, unit="s/token", per_call=units)
        return timing

    read = timed("prefill", prefill, {e.name: e.prefill(tokens[:prefill]) for e in engines}, rounds)
    rows = []
    for batch in batches:
        calls = {e.name: e.decode(tokens, batch, context) for e in engines}
        wrote = timed(f"decode, batch {batch}", DECODED * batch, calls, decode_rounds)
        rows += [
            {
                "engine": engine.name,
                "version": engine.version,
                "bits": engine.bits,
                "size_bytes": engine.size_bytes,
                "threads": threads,
                "prefill_tok_s": prefill / read.median_s(engine.name),
                "decode_tok_s": DECODED * batch / wrote.median_s(engine.name),
                "batch": batch,
                "context": context,
                "samples": [DECODED * batch / seconds for seconds in wrote.samples[engine.name]],
            }
            for engine in engines
        ]
    evidence.result = {"engines": rows}
    return BenchResult(rows, evidence, target)


def average_bits(model: LanguageModel) -> float:
    """Stored bits of one weight, over all sites."""
    weights = [model.weight(site.name) for site in model.sites()]
    return 8.0 * sum(w.nbytes for w in weights) / sum(w.shape[0] * w.shape[1] for w in weights)
