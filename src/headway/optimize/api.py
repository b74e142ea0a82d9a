"""The Python face: `load`, `optimize`, `apply`, `prove`. The command line calls nothing else."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from headway.core import proof as proofs
from headway.core.budget import Budget, Objective
from headway.core.cache import StepCache
from headway.core.errors import BadInput, extras_named, need_extra
from headway.core.evidence import Evidence
from headway.core.files import atomic_write_json, read_toml
from headway.core.ledger import Ledger
from headway.core.model import Model
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.core.registry import BrokenPlugIn, Entry, entry, systems
from headway.core.system import Context, PlanContext
from headway.core.target import Target
from headway.core.workload import Workload
from headway.optimize.applying import apply_recipe, calibrates, check, check_sites
from headway.optimize.load import load
from headway.optimize.request import Request, check_output, refuse, refuse_for
from headway.optimize.subject import Split, Subject
from headway.optimize.workloads import check_sources, make_workload, on_sample

__all__ = ["Proof", "apply", "load", "optimize", "plan", "prove", "search", "use_threads"]

MOST_THREADS = 1024


def use_threads(threads: int) -> int:
    """Set how many threads torch and the native kernels use; 0: every usable core. Gives the number.

    Raises `BadInput` for a number that no machine has.
    """
    import os

    from headway.kernels import cpu

    if not 0 <= threads <= MOST_THREADS:
        raise BadInput(f"threads={threads}", f"give 0..{MOST_THREADS}; 0: every usable core")
    count = threads or len(os.sched_getaffinity(0))
    cpu.set_threads(count)
    try:
        import torch
    except ModuleNotFoundError:
        return count
    torch.set_num_threads(count)
    return count


def machine(progress: Progress | None = None) -> Target:
    """This machine, measured once and remembered."""
    from headway.hardware.probe import current_target

    return current_target(progress)


@extras_named()
def optimize(
    model: Any,
    *,
    budget: str | Budget = "",
    minimize: str | Objective = "latency",
    sample: Any = None,
    recipe: str | Recipe = "",
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    target: Target | None = None,
    workload: Workload | None = None,
    text: str | Path | None = None,
    data: Any = None,
    quality: str = "",
    context: int = 0,
    time_s: float = 240.0,
    output: str | Path | None = None,
    threads: int = 0,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
    allow_code: bool = False,
) -> Any:
    """Bring a model under a budget; gives a `Result` (see `headway.optimize.result`).

    The workload is made of `text`, `data`, `quality` and `context` (see `make_workload`) unless given whole.
    `allow_code`: as of `load`. Everything is validated before anything is loaded or run. Raises `BadInput` for what
    cannot be asked.
    """
    began = time.monotonic()
    own = quality or (workload.quality if workload is not None and ":" in workload.quality else "")
    parsed = budget if isinstance(budget, Budget) else Budget.parse(budget, own_quality=bool(own))
    objective = minimize if isinstance(minimize, Objective) else Objective.parse(minimize)
    if not 0 < time_s < math.inf:
        raise BadInput(f"time_s={time_s}", "give seconds to search, e.g. 240")
    fixed = Recipe.read(recipe)
    folder = None if output is None else Path(output)
    refuse(fixed, budget=parsed, objective=objective, only=only, without=without, output=folder)
    check_sources(text=text, data=data, quality=quality)
    if find_spec("optuna") is None:  # imported only after minutes of measuring
        raise need_extra("optuna", "search")
    from headway.optimize.pipeline import optimize as run

    count = use_threads(threads)
    progress = progress or Progress()
    loaded = load(model, sample, allow_code=allow_code)
    refuse_for(loaded, parsed, bool(own))
    check_sites(fixed, loaded)
    given = workload or make_workload(loaded, text=text, data=data, quality=quality, context=context)
    if is_bare(loaded, given):
        raise BadInput(f"{loaded.name} brings no data of its own", "give inputs with --data FILE or data=[...]")
    subject, inputs = _judged(loaded, given, calibrated=True)
    return run(
        Request(
            subject,
            target or machine(progress),
            parsed,
            objective,
            inputs,
            fixed,
            only=only,
            without=without,
            time_s=time_s,
            began=began,
            threads=count,
            seed=seed,
            output=folder,
            command=command,
            progress=progress,
        )
    )


@extras_named()
def plan(
    model: Any,
    *,
    budget: str = "",
    minimize: str = "latency",
    recipe: str | Recipe = "",
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    target: Target | None = None,
    text: str | Path | None = None,
    data: Any = None,
    quality: str = "",
    context: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
    allow_code: bool = False,
) -> Any:
    """`--dry-run`: what the model with the recipe will need here or on `target`, predicted (a `dry_run.Plan`).

    What only a search heeds is checked as `optimize` would.
    """
    parsed = Budget.parse(budget, own_quality=bool(quality))
    fixed = Recipe.read(recipe)
    refuse(fixed, budget=parsed, objective=Objective.parse(minimize), only=only, without=without)
    check_sources(text=text, data=data, quality=quality)
    from headway.optimize.dry_run import dry_run

    count = use_threads(threads)
    loaded = load(model, allow_code=allow_code)
    refuse_for(loaded, parsed, bool(quality))
    check_sites(fixed, loaded)
    given = make_workload(loaded, text=text, data=data, quality=quality, context=context)
    if is_bare(loaded, given):
        given = on_sample(loaded, given)
    return dry_run(loaded, parsed, target or machine(progress), given, fixed, count)


@extras_named()
def plan_problem(
    slug: str,
    problem: str | Path | None,
    settings: Sequence[str] = (),
    *,
    trace: str | Path | None = None,
    output: str | Path | None = None,
    threads: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], str]:
    """A planner's plan for a problem file, as a JSON document and for people; written to `output` if that is given.

    settings: `field=value` each, in the grammar of recipes. trace: the problem's `trace`, a path from here; it may be
    all that there is of a problem. Everything is checked before anything runs. Raises
    `BadInput` for a system that is no planner, and for a problem that breaks a rule.
    """
    found = entry(slug)
    if found.card.kind != "planner":
        planners = ", ".join(sorted(s for s, other in systems().items() if other.card.kind == "planner"))
        raise BadInput(f"{slug} makes no plans", f"planners are: {planners}")
    values = Recipe.parse(f"{slug}({', '.join(settings)})").steps[0].settings
    planner: Any = found.load()
    parsed = planner.settings.parse(values, slug)
    if problem is None and trace is None:
        raise BadInput("no problem", f"give one: headway plan {slug} PROBLEM.toml")
    document = read_toml(problem) if problem is not None else {}
    if trace is not None:
        document["trace"] = str(Path(trace).absolute())
    if output is not None and (not Path(output).parent.is_dir() or Path(output).is_dir()):
        raise BadInput(f"cannot write {str(output)!r}", "name a file in a folder that is there")
    count = use_threads(threads)
    progress = progress or Progress()

    def made(model: str, recipe: str) -> Model:
        loaded: Model = load(model)
        return apply(recipe, loaded, threads=count, seed=seed, progress=progress) if recipe else loaded

    source = problem if problem is not None else "--trace"
    folder = Path(problem).parent if problem is not None else Path()
    context = PlanContext(made, folder, str(source), count, seed, progress)
    plan = {"schema": PLAN_SCHEMA, "system": slug, **planner.plan(document, parsed, context)}
    if output is not None:
        atomic_write_json(output, plan)
    return plan, planner.table(plan)


PLAN_SCHEMA = 1


def search(
    slug: str,
    space: str,
    budget: str = "",
    settings: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    target: Target | None = None,
    threads: int = 0,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
) -> Any:
    """A network found in a space of a system under a budget (a `NetworkResult`), saved to `output` if that is given.

    settings: `field=value` each, in the grammar of recipes. data: a `.npz` file with `images` and `labels`; else the
    images that the space is made for. Raises `BadInput` for what cannot be asked, before anything is run.
    """
    from headway.optimize.network_search import checked, search_network

    path, folder = (None if given is None else Path(given) for given in (data, output))
    checked(slug, space, budget, settings, path, folder)
    count = use_threads(threads)
    progress = progress or Progress()
    return search_network(
        slug,
        space,
        budget,
        settings,
        data=path,
        output=folder,
        target=target or machine(progress),
        threads=count,
        seed=seed,
        command=command,
        progress=progress,
    )


def is_bare(model: Model, workload: Workload) -> bool:
    """Whether nobody gave this module inputs besides its sample."""
    return model.task != "language" and workload.data is None and getattr(model, "workload_of", None) is None


def read_steps(recipe: str | Recipe) -> Recipe:
    """A recipe that somebody asked to apply, every setting checked; raises `BadInput` for a blank one."""
    if isinstance(recipe, str) and not recipe.strip():
        raise BadInput("the recipe is empty", 'name systems, e.g. "lut-gemm(bits=4)", or write "(unmodified)"')
    parsed = Recipe.read(recipe)
    refuse(parsed)
    return parsed


def _bare_note(model: Model, recipe: Recipe, judged: bool) -> str:
    """What must be said of a module that was given no inputs: its sample stands in for them."""
    does = ["calibrated"] * calibrates(recipe) + ["judged"] * judged
    if not does:
        return ""
    return f"{model.name} was {' and '.join(does)} on its own sample alone: give inputs with --data FILE or data=[...]"


@extras_named()
def apply(
    recipe: str | Recipe,
    model: Any,
    *,
    sample: Any = None,
    workload: Workload | None = None,
    text: str | Path | None = None,
    data: Any = None,
    threads: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    allow_code: bool = False,
) -> Model:
    """The model with the recipe applied; no search, nothing measured.

    What calibrates does so on a part of `text` or `data` (see `make_workload`), else on the model's own data, else on
    the sample it was loaded with, which a warning says.
    """
    parsed = read_steps(recipe)
    check_sources(text=text, data=data)
    count = use_threads(threads)
    loaded = load(model, sample, allow_code=allow_code)
    check_sites(parsed, loaded)
    given = workload or make_workload(loaded, text=text, data=data)
    inputs: Sequence[tuple[Any, ...]] = ()
    if calibrates(parsed):
        if is_bare(loaded, given):
            given, note = on_sample(loaded, given), _bare_note(loaded, parsed, judged=False)
            if progress is None:
                warnings.warn(note, stacklevel=3)  # past the decorator
            else:
                progress.note(note)
        from headway.optimize.subjects import make_subject

        inputs = make_subject(loaded, given).calibration()
    progress = progress or Progress()
    return apply_recipe(parsed, loaded, Context(machine(progress), inputs, StepCache(), count, seed, progress))


@extras_named()
def apply_and_save(
    recipe: str | Recipe,
    model: Any,
    output: str | Path,
    *,
    workload: Workload | None = None,
    text: str | Path | None = None,
    data: Any = None,
    threads: int = 0,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
    allow_code: bool = False,
) -> Any:
    """Apply one recipe, measure it beside the unmodified model on held-out data and save the artifact: a `Result`.

    A module without inputs is calibrated and judged on its sample, which a note in the evidence says.
    """
    parsed = read_steps(recipe)
    check_output(Path(output))
    check_sources(text=text, data=data)
    from headway.optimize.pipeline import measure_recipe

    count = use_threads(threads)
    progress = progress or Progress()
    loaded = load(model, allow_code=allow_code)
    given = workload or make_workload(loaded, text=text, data=data)
    notes = []
    if is_bare(loaded, given):
        given = on_sample(loaded, given)
        notes = [_bare_note(loaded, parsed, judged=True)]
        progress.note(notes[0])
    subject, inputs = _judged(loaded, given, calibrated=calibrates(parsed))
    here = machine(progress)
    check(parsed, loaded, here)
    request = Request(
        subject,
        here,
        calibration=inputs,
        recipe=parsed,
        searches=False,
        threads=count,
        seed=seed,
        output=Path(output),
        command=command,
        notes=notes,
        progress=progress,
    )
    return measure_recipe(request)


def _judged(model: Model, workload: Workload, calibrated: bool) -> tuple[Subject, Sequence[tuple[Any, ...]]]:
    """The subject and its calibration inputs; what is too short or too long is refused before anything is measured."""
    from headway.optimize.subjects import make_subject

    subject = make_subject(model, workload)
    for split in get_args(Split):
        subject.units(split)
    return subject, subject.calibration() if calibrated else ()


@dataclass(frozen=True)
class Proof:
    """One proof that ran here."""

    entry: Entry
    baseline: str
    evidence: Evidence
    target: Target

    @property
    def met(self) -> bool:
        return self.evidence.met

    def as_json(self) -> dict[str, Any]:
        card = self.entry.card
        return {
            "system": card.slug,
            "claim": card.claim,
            "baseline": self.baseline,
            "bars": [bar.as_json() for bar in self.evidence.bars],
            "met": self.met,
            "evidence": self.evidence.to_json(),
        }

    def table(self) -> str:
        card = self.entry.card
        return "\n".join(
            [f"{card.slug}: {card.title}", f"claim: {card.claim}", f"against: {self.baseline}", self.evidence.table()]
        )


@extras_named()
def prove(
    *slugs: str,
    quick: bool = False,
    model: str = "",
    threads: int = 0,
    seed: int = 0,
    command: str = "",
    progress: Progress | None = None,
    allow_code: bool = False,
) -> list[Proof]:
    """Run the proofs of these systems (all that ship one, when none is named); each is kept in the ledger."""
    chosen = [entry(slug) for slug in slugs] or [
        found for found in systems().values() if found.proof_module is not None
    ]
    for found in chosen:
        if found.proof_module is None:
            raise BadInput(f"{found.card.slug} ships no proof", "see: headway systems")
    count = use_threads(threads)
    progress = progress or Progress()
    ledger = Ledger.open()  # one that cannot be written is found before minutes of measuring
    target = machine(progress)
    done = []
    for found in chosen:
        context = proofs.ProofContext(target, partial(load, allow_code=allow_code), model, quick, count, seed, progress)
        try:
            evidence, baseline = proofs.run(found, context)
        except BrokenPlugIn as error:
            if slugs:
                raise
            progress.note(f"left out: {error}")
            continue
        evidence.command = command
        if quick:
            evidence.notes.append("a quick proof: fewer rounds and less text, wider intervals")
        ledger.append(evidence)
        done.append(Proof(found, baseline, evidence, target))
    return done
