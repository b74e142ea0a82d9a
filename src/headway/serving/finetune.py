"""A training job for a served model: its data from a JSON lines file, its adapters into a folder at each step.

A line is {"text": ...}, all of which is learnt, or {"prompt": ..., "completion": ...}, whose completion is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.core.errors import BadInput
from headway.core.files import read_bytes
from headway.core.progress import Progress
from headway.llm.language_model import LanguageModel
from headway.llm.native import NativeRuntime
from headway.serving.schedulers.flexllm import FlexLLMSettings
from headway.serving.tuning import FineTune, kv_pages, measure_pieces
from headway.training.adamw import AdamWSettings
from headway.training.examples import Example, TooLong, prepare
from headway.training.layer import Remat
from headway.training.lora import CONFIG, Adapters, LoraSettings
from headway.training.token_trainer import TokenTrainer

MOST_BYTES = 1 << 30
WINDOWS = (16, 64, 256)
"""Tokens of the windows whose time is measured, and the longest sequence."""


@dataclass(frozen=True)
class JobSettings:
    """What is trained and how; defaults are those of the paper's card, the learning rate is ours."""

    lora: LoraSettings = field(default_factory=LoraSettings)
    optimiser: AdamWSettings = field(default_factory=AdamWSettings)
    steps: int = 100
    accum: int = 8
    max_seq: int = 1024
    too_long: TooLong = "split"
    remat: Remat = "light"
    seed: int = 0

    @classmethod
    def of(cls, s: FlexLLMSettings, seed: int = 0) -> JobSettings:
        """What a recipe says of the training."""
        lora, optimiser = LoraSettings(s.rank, s.alpha, s.targets), AdamWSettings(lr=s.lr)
        return cls(lora, optimiser, s.steps, s.accum, s.max_seq, remat=s.remat, seed=seed)


def job(
    model: LanguageModel,
    data: str | Path,
    output: str | Path,
    settings: JobSettings | None = None,
    progress: Progress | None = None,
) -> FineTune:
    """Ready for `Engine(tuning=...)`. After each step the adapters are in `output`, in PEFT's format.

    Adapters that are there already are trained on, with the rank and targets they have. Raises `BadInput` for a file
    without examples, a target that is not there, a network the trainer does not cover.
    """
    from headway.llm.trainable import stack_of

    s, progress = settings or JobSettings(), progress or Progress()
    runtime = model.runtime
    if not isinstance(runtime, NativeRuntime):
        raise BadInput(f"{model.name} runs on {model.runtime_kind}", "serve it with the native runtime")
    most = min(s.max_seq, model.architecture.context)
    examples, warnings = prepare(read(model, data), model.architecture.vocab, most, s.too_long)
    for warning in warnings:
        progress.note(f"{data}: {warning}")
    stack = stack_of(model)
    if (Path(output) / CONFIG).is_file():
        adapters = Adapters.load(output, stack)
        progress.note(f"training goes on from the adapters in {output}")
    else:
        adapters = Adapters.fresh(stack, s.lora, s.seed)
    trainer = TokenTrainer(stack, adapters, examples, s.accum, s.steps, s.optimiser, s.remat)
    longest = trainer.position.length
    windows = sorted({min(size, longest) for size in (*WINDOWS, longest)})
    with progress.task("measuring training"):
        cost = measure_pieces(trainer, windows, rounds=2)
    kv_bytes = 2 * stack.sizes.kv_size * len(stack.blocks) * stack.head.itemsize

    def publish(version: int, adapters: Adapters) -> None:
        adapters.save(output, model.name)

    return FineTune(trainer, cost, kv_pages(kv_bytes, runtime.page_bytes), publish)


def read(model: LanguageModel, path: str | Path) -> Iterator[Example]:
    """The examples of a file, in its order. Raises `BadInput` naming the line that is none."""
    for at, line in enumerate(read_bytes(path, limit=MOST_BYTES).splitlines(), 1):
        if line.strip():
            yield _example(model, _document(path, at, line))


def _document(path: str | Path, at: int, line: bytes) -> dict[str, str]:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    keys = set(found) if isinstance(found, dict) else set()
    if keys not in ({"text"}, {"prompt", "completion"}) or not all(isinstance(value, str) for value in found.values()):
        raise BadInput(
            f"{path}: line {at}: {line[:60].decode(errors='replace')!r}",
            'write {"text": ...} or {"prompt": ..., "completion": ...}, of strings',
        )
    return dict(found)


def _example(model: LanguageModel, document: dict[str, str]) -> Example:
    """An end token closes it, where the model has one."""
    prompt = model.encode(document.get("prompt", ""), special=False)
    rest = model.encode(document.get("completion", document.get("text", "")), start=False, special=False)
    rest += list(model.architecture.eos[:1])
    return Example.of(prompt + rest, [False] * len(prompt) + [True] * len(rest))
