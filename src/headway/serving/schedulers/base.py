"""The scheduler protocol: what a scheduler sees, and what it may decide.

A scheduler is a plain object: no clock, no threads, no torch. The same one runs in the engine and, unchanged, in the
simulator; both keep their books with `headway.serving.state.State`, which is also the view.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from headway.core.budget import Budget
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.registry import entry
from headway.core.system import YES, Context, Costs, Policy, Settings, Verdict, no
from headway.core.target import Target
from headway.hardware.iteration_time import IterationTime, Load
from headway.serving.job import Job
from headway.training.position import Piece

if TYPE_CHECKING:
    from headway.serving.tuning import Tuning


@dataclass(frozen=True)
class Limits:
    """What an engine was built for."""

    max_seqs: int = 128
    """Requests that hold pages at the same time."""
    max_len: int = 1 << 30
    """Tokens of one request, prompt and answer."""
    watermark: float = 0.01
    """Share of the pages that admission leaves free, for answers to grow."""


@dataclass(frozen=True)
class SLO:
    """Limits in seconds that the operator wants held for this share of the requests; None: no limit."""

    ttft_s: float | None = None
    tbt_s: float | None = None
    """Between any two tokens."""
    quantile: float = 0.99
    tpot_s: float | None = None
    """Between the tokens of one request, on average."""

    @classmethod
    def of(cls, budget: Budget) -> SLO:
        """The limits that a server can hold; raises `BadInput` for another metric."""
        for limit in budget.limits:
            if limit.metric not in ("ttft", "latency", "tpot"):
                raise BadInput(f"--budget: a server cannot hold {limit.metric}", "limit ttft and latency")
        return cls(budget.limit("ttft"), budget.limit("latency") or budget.limit("tpot"))

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return (self.ttft_s, self.tbt_s, self.tpot_s) != (None, None, None)


class DecodingView(Protocol):
    """The requests that generate, seen as one: a scheduler that treats them alike never walks over them."""

    @property
    def count(self) -> int: ...

    @property
    def context(self) -> int:
        """Tokens in their pages, summed."""
        ...

    @property
    def pages_needed(self) -> int:
        """New pages if each of them generates a token now."""
        ...

    def context_of(self, job: Job) -> int: ...

    def needs_page(self, job: Job) -> bool: ...

    def __iter__(self) -> Iterator[Job]: ...


class View(Protocol):
    """What a scheduler may look at. It must change nothing of it."""

    @property
    def now(self) -> float: ...

    @property
    def waiting(self) -> Sequence[Job]:
        """Requests without pages, in the order they should be served: preempted ones first, then as they came."""
        ...

    @property
    def prefilling(self) -> Sequence[Job]:
        """Requests that hold the pages of their prompt and have some of it left, oldest first. See `Job.busy`."""
        ...

    @property
    def decoding(self) -> DecodingView: ...

    @property
    def seqs(self) -> int:
        """Requests that hold pages."""
        ...

    @property
    def total_pages(self) -> int: ...

    @property
    def free_pages(self) -> int:
        """Pages that can be had now; those of the prefix tree that nobody uses count."""
        ...

    @property
    def page_tokens(self) -> int: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def slo(self) -> SLO: ...

    @property
    def cost(self) -> IterationTime: ...

    @property
    def idle(self) -> frozenset[str]:
        """Lanes that can take a batch now."""
        ...

    @property
    def tuning(self) -> Tuning | None:
        """A training job beside inference."""
        ...

    @property
    def lent(self) -> int:
        """Pages that the training job holds."""
        ...

    def pages_for(self, job: Job, tokens: int) -> int:
        """Pages to find so that `job`, which waits, can hold its first `tokens` tokens.

        Ask before its admission is planned: `job.left` is sure from then on.
        """
        ...


@dataclass(slots=True)
class Chunk:
    """The next `tokens` of a prompt. For a waiting job this is its admission: pages for `reserve` tokens are taken."""

    job: Job
    tokens: int
    reserve: int = 0
    """0: as many as it has to compute before it samples."""


ALL: Literal["all"] = "all"


@dataclass(slots=True)
class Batch:
    """One forward pass: pieces of prompts and one token each of requests that generate, together."""

    chunks: list[Chunk] = field(default_factory=list)
    decode: Literal["all"] | Sequence[Job] = ()
    extra: tuple[Piece, ...] = ()
    """Pieces of the training job, in their order, after the forward pass."""

    def __bool__(self) -> bool:
        return bool(self.chunks) or bool(self.decode) or bool(self.extra)


@dataclass(slots=True)
class Plan:
    """What to do, in this order: reject, end, preempt, then admit and start a batch on each lane named."""

    lanes: dict[str, Batch] = field(default_factory=dict)
    reject: list[tuple[Job, str]] = field(default_factory=list)
    """Waiting requests that can never be served, and why."""
    end: list[Job] = field(default_factory=list)
    """Requests to end with what they have: no page can be found for them."""
    preempt: list[Job] = field(default_factory=list)
    """Give their pages back and compute them again later; the first one is served next."""
    shares: dict[str, float] | None = None
    """Share of the machine's compute by lane; None: as before."""
    lend: int | None = None
    """Pages that the training job holds from now on (0: its sequence in work is dropped); None: as before."""

    def __bool__(self) -> bool:
        return bool(self.lanes or self.reject or self.end or self.preempt) or self.lend is not None


MAIN = "main"


class Scheduler(ABC):
    """Chooses the next batch. State it keeps between calls is its own."""

    lanes: tuple[str, ...] = (MAIN,)
    """Lanes whose batches run at the same time over one set of weights and pages."""
    tunes: bool = False
    """Whether it gives a training job any work."""
    steady: bool = False
    """Whether, once it runs all decodes alone, it goes on so until somebody comes, ends or needs a page.

    The simulator then asks it once for many passes.
    """

    @property
    def starved(self) -> str:
        """Why a training job does not run; "" when it does, or there is none."""
        return ""

    @abstractmethod
    def decide(self, view: View) -> Plan:
        """Called while a lane is idle and a request, or a training job, is there.

        An empty plan waits for the next event.
        """


def load_of(batch: Batch, view: View) -> Load:
    """What a batch asks of the machine, for `view.cost`."""
    tokens, attended, sampled = 0, 0.0, 0
    for chunk in batch.chunks:
        job = chunk.job
        tokens += chunk.tokens
        attended += chunk.tokens * (job.done + chunk.tokens / 2)
        sampled += chunk.tokens >= job.left
    decoding = view.decoding
    if batch.decode == ALL:
        decodes, context = decoding.count, decoding.context
    else:
        decodes = len(batch.decode)
        context = sum(decoding.context_of(job) for job in batch.decode)  # type: ignore[arg-type]
    return Load(tokens + decodes, attended, decodes, context, len(batch.chunks) + decodes, sampled + decodes)


def never_fits(view: View, job: Job, whole: bool = False) -> str:
    """Why an empty engine could not hold this request (`whole`: with its answer); "" when it could."""
    tokens = job.prompt + job.most if whole else job.target
    pages = -(-tokens // view.page_tokens)
    if job.target >= view.limits.max_len:
        return f"its {job.target} tokens exceed the limit of {view.limits.max_len}"
    return f"its {tokens} tokens need {pages} pages, there are {view.total_pages}" if pages > view.total_pages else ""


def refuse_oversized(view: View, plan: Plan, whole: bool = False) -> None:
    """Reject the requests at the head of the queue that an empty engine could not hold; `whole`: with their answer."""
    for job in view.waiting:
        why = never_fits(view, job, whole)
        if not why:
            return
        plan.reject.append((job, why))


def admit_whole(
    view: View, plan: Plan, free: int, max_tokens: int, max_seqs: int = 1 << 60, reserve_all: bool = False
) -> list[Chunk]:
    """Whole prompts from the queue while pages, tokens and places last, never skipping one; the first may be longer.

    free: pages there are. reserve_all: take pages for the whole answer at once. A prompt is left over from its
    admission when pages it shares went to another one of the same plan.
    """
    chunks = [Chunk(job, job.left) for job in view.prefilling if not job.busy]
    refused = len(plan.reject)
    watermark = 0 if reserve_all else int(view.limits.watermark * view.total_pages)
    seqs, tokens = view.seqs, sum(chunk.tokens for chunk in chunks)
    places = min(max_seqs, view.limits.max_seqs)
    for at, job in enumerate(view.waiting):
        if at < refused:
            continue
        reserve = job.prompt + job.most if reserve_all else job.target
        pages = view.pages_for(job, reserve)
        if seqs >= places or pages + (watermark if seqs else 0) > free or (chunks and tokens + job.left > max_tokens):
            break
        chunks.append(Chunk(job, job.left, reserve))
        tokens += job.left
        free -= pages
        seqs += 1
    return chunks


def make_room(view: View, plan: Plan) -> int:
    """Preempt requests, the newest first, until every other decode can grow by a token; pages then left over.

    A request that cannot grow although it holds pages alone ends with what it has.
    """
    decoding = view.decoding
    free, needed = view.free_pages, decoding.pages_needed
    if needed <= free:
        return free - needed
    holders = sorted((job for job in (*decoding, *view.prefilling) if not job.busy), key=lambda j: (j.arrival, j.id))
    preempted: list[Job] = []
    while needed > free and holders:
        victim = holders.pop()
        needed -= decoding.needs_page(victim)
        free += victim.pages - len(victim.shared)
        alone = not holders and view.seqs == len(preempted) + 1
        if alone and decoding.needs_page(victim) and not preempted:
            plan.end.append(victim)
        else:
            preempted.append(victim)
    plan.preempt.extend(reversed(preempted))  # the oldest of them is served first
    return max(free - needed, 0)


S = TypeVar("S", bound=Settings)


class SchedulerSystem(Policy[S]):
    """A system of this slot: `make` gives the plain object, `plug` lets a model carry the choice."""

    def applies(self, model: Model, target: Target) -> Verdict:
        return YES if model.task == "language" else no("only requests to language models are scheduled")

    def predict(self, model: Model, target: Target, settings: S) -> Costs:
        return Costs(size_bytes=float(model.size_bytes()))

    def plug(self, model: Model, settings: S, context: Context) -> Model:
        from headway.llm.language_model import LanguageModel

        assert isinstance(model, LanguageModel)
        return model.with_scheduler(self.card.slug, settings.model_dump(mode="json", exclude_defaults=True))

    scheduler: Callable[[S], Scheduler]
    """The class of the plain object: it takes the settings."""

    def make(self, settings: S) -> Scheduler:
        """The scheduler, for one engine or one simulation."""
        return type(self).scheduler(settings)


def scheduler_system(slug: str) -> SchedulerSystem[Any]:
    """The system of that name. Raises `BadInput` for one that is no scheduler."""
    found = entry(slug)
    if found.card.slot != "scheduler":
        raise BadInput(f"{slug} is no scheduler", "name one, e.g. sarathi-serve; see: headway systems")
    system: Any = found.load()
    return system  # type: ignore[no-any-return]


def of_one_lane(made: Scheduler, slug: str) -> Scheduler:
    """What was made of a system, for a simulated device of one lane. Raises `BadInput` when it has several."""
    if len(made.lanes) > 1:
        raise BadInput(f"{slug} runs several lanes", "name a scheduler of one lane, e.g. sarathi-serve")
    return made
