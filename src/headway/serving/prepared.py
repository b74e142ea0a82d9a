"""An engine for a model on this machine: its scheduler, its pages, its iteration time (measured once, remembered)."""

from __future__ import annotations

from headway.core.errors import BadInput, Lacking
from headway.core.progress import Progress
from headway.hardware.machine import read_machine
from headway.llm.language_model import LanguageModel
from headway.llm.native import PAGE_TOKENS, NativeRuntime
from headway.serving.engine import Engine
from headway.serving.measuring import iteration_time
from headway.serving.messages import Ready, Setup, TokenizerText
from headway.serving.schedulers.base import SLO, Limits, Scheduler, scheduler_system
from headway.serving.schedulers.flexllm import CoServe
from headway.serving.tuning import FineTune

DEFAULT_SCHEDULER = "sarathi-serve"
TUNER = "flexllm"
"""The scheduler where adapters are trained beside the requests."""
KV_SHARE = 0.25
"""Of the memory that is available, for keys and values, where nobody says how much."""
BUDGET_FIELDS = ("token_budget", "max_prefill_tokens")
"""What schedulers call the tokens of one iteration."""


def engine(model: LanguageModel, wanted: Setup, progress: Progress) -> Engine:
    """Raises `BadInput` for a model or a scheduler that cannot be served, `Lacking` without room for one page."""
    runtime = native(model)
    chosen = scheduler(model, wanted.batch_tokens, DEFAULT_SCHEDULER if wanted.finetune is None else TUNER)
    return Engine(
        model,
        chosen,
        pages=pages(runtime, wanted),
        cost=iteration_time(model, runtime, wanted.threads, progress),
        limits=Limits(max_seqs=wanted.max_seqs),
        slo=SLO(wanted.ttft_s, wanted.tbt_s),
        prefix=wanted.prefix,
        tuning=None if wanted.finetune is None else training(model, wanted, chosen, progress),
    )


def training(model: LanguageModel, wanted: Setup, chosen: Scheduler, progress: Progress) -> FineTune:
    """The job that runs beside the requests. Raises `BadInput` for a scheduler that leaves it no time."""
    from headway.serving.finetune import JobSettings, job

    if not isinstance(chosen, CoServe):
        raise BadInput(f"{type(chosen).__name__} gives a training job no time", "put flexllm into the recipe")
    assert wanted.finetune is not None
    return job(model, wanted.finetune, wanted.adapters, JobSettings.of(chosen.settings, wanted.seed), progress)


def native(model: LanguageModel) -> NativeRuntime:
    """Its runtime; raises `BadInput` for another than the native one."""
    runtime = model.runtime
    if not isinstance(runtime, NativeRuntime):
        raise BadInput(f"{model.name} runs on {model.runtime_kind}", "serve it with the native runtime")
    return runtime


def scheduler(model: LanguageModel, batch_tokens: int | None = None, otherwise: str = DEFAULT_SCHEDULER) -> Scheduler:
    """The one that the model carries (a recipe put it there), else the one named `otherwise`."""
    slug, given = model.scheduler or (otherwise, {})
    system = scheduler_system(slug)
    chosen = dict(given)
    if batch_tokens is not None:
        field = next((name for name in BUDGET_FIELDS if name in system.settings.model_fields), None)
        if field is None:
            raise BadInput(f"{slug} has no limit on the tokens of an iteration", "leave --max-batch-tokens out")
        chosen[field] = batch_tokens
    made: Scheduler = system.make(system.settings(**chosen))
    return made


def pages(runtime: NativeRuntime, wanted: Setup) -> int:
    """As many as the memory holds, and no more than all sequences can fill."""
    most = wanted.max_seqs * -(-runtime.architecture.context // PAGE_TOKENS)
    given = wanted.kv_bytes
    room = given if given is not None else int(read_machine().available_bytes * KV_SHARE)
    count = room // runtime.page_bytes
    if count < 1:
        error = Lacking if given is None else BadInput
        raise error(
            f"{room} bytes for keys and values hold no page of {PAGE_TOKENS} tokens",
            f"give --kv-memory of at least {runtime.page_bytes}B",
        )
    return count if given is not None else min(count, most)


def ready(engine: Engine, systems: list[str]) -> Ready:
    """What the HTTP process needs to know of it."""
    model, info = engine.model, engine.model.tokenizer.info
    return Ready(
        "language",
        model.name,
        systems,
        engine.state.limits.max_len,
        model.size_bytes(),
        model.architecture.vocab,
        list(model.architecture.eos),
        engine.state.total_pages,
        PAGE_TOKENS,
        engine.runtime.page_bytes,
        engine.state.limits.max_seqs,
        model.kv,
        engine.state.cost.as_json(),
        TokenizerText(
            model.tokenizer.backend.to_str(),
            info.size,
            info.spelling,
            list(info.start),
            info.space_prefix,
            dict(info.special),
        ),
        None if model.template is None else model.template.source,
    )
