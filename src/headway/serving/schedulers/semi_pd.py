"""`semi-pd`: prompts and answers on two lanes of one machine, their shares moved to hold both latency limits.

semi-PD (2025). One copy of the weights, one pool of pages, two workers at the same time. Open in the card, and decided
here: a window is 50 iterations of either lane; a step is 5 %, at most 4 to a window (ours: the paper gives none).
Both limits broken: nothing moves (the text; Algorithm 1 tests TTFT first). A request that has waited longer than its
limit counts as seen, or an overload would show only when it is over. `prefill_chunk="auto"` is 2,048 tokens, SGLang's
for smaller GPUs: chunks bound memory, not the answers' stall. Admission leaves pages for a part of what the answers may
still generate, which falls while all goes well and rises after a preemption (SGLang's new-token ratio: 0.7 to 0.07 over
600 iterations). A share is a number here, not a process: the switch needs no delay, and each phase takes its new share
at its own iteration's end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from pydantic import Field, model_validator

from headway.core.card import Card
from headway.core.system import Settings
from headway.hardware.iteration_time import Load
from headway.serving.job import DONE, Job
from headway.serving.schedulers.base import Plan, SchedulerSystem, View, load_of
from headway.serving.schedulers.semi_pd_control import LatencyModel, Split, Window, adjust
from headway.serving.schedulers.two_lanes import DECODE, PREFILL, TwoLanes

SYSTEM = Card(
    slug="semi-pd",
    title="semi-PD",
    paper="semi-PD: Towards Efficient LLM Serving via Phase-Wise Disaggregated Computation and Unified Storage, 2025 "
    "(arXiv 2504.19867)",
    kind="policy",
    slot="scheduler",
    summary="prefill and decode at the same time on shares of one machine, moved by feedback to hold both limits",
    claim="1.27-2.58x lower latency than SGLang; 1.55-1.72x the request rate of vLLM within limits (Llama3-8B, A100)",
    needs=("kv_cache",),
)

AUTO_CHUNK = 2048
TIGHT = 7.5
"""Limits where none are given, in latencies of a request alone (the paper's tight rule)."""
RATIO_FIRST, RATIO_LEAST, RATIO_ITERATIONS = 0.7, 0.07, 600
LOAD_WINDOWS = 4
"""Windows over which arriving work is averaged: a burst is no overload."""
LONGEST_ANSWER = 4096
"""Tokens beyond which an answer's limit says nothing of its length."""


class SemiPDSettings(Settings):
    """Settings of semi-PD."""

    ttft_slo_ms: float | None = Field(None, gt=0, description="ms to the first token; default: the server's limit")
    tpot_slo_ms: float | None = Field(None, gt=0, description="ms between two tokens; default: the server's limit")
    slo_quantile: float = Field(0.9, gt=0, le=1, description="share of requests and tokens that must hold the limits")
    x0: float = Field(80.0, gt=0, le=100, description="percent of compute for prefill at the start (released default)")
    y0: float = Field(100.0, gt=0, le=100, description="percent of compute for decode at the start (released default)")
    dynamic: bool = Field(True, description="move the split to hold the limits")
    window_iters: int = Field(50, ge=1, description="iterations between two decisions")
    step_pct: float = Field(5.0, gt=0, le=50, description="percent; one step of the split")
    max_step: int = Field(4, ge=1, description="steps of one decision at most")
    max_decode_batch: int = Field(512, ge=1, description="requests of one decode iteration")
    prefill_chunk: int | Literal["auto"] = Field("auto", description="prompt tokens of one prefill iteration")

    @model_validator(mode="after")
    def _check(self) -> SemiPDSettings:
        if self.prefill_chunk != "auto" and self.prefill_chunk < 1:
            raise ValueError("prefill_chunk must be at least 1")
        return self


class SemiPD(TwoLanes):
    """`overloaded`: at the rate last seen no split holds the limit on the first token."""

    def __init__(self, settings: SemiPDSettings) -> None:
        chunk = AUTO_CHUNK if settings.prefill_chunk == "auto" else settings.prefill_chunk
        super().__init__(chunk, settings.max_decode_batch)
        self.settings = settings
        self.current = Split(settings.x0, settings.y0)
        self.model = LatencyModel()
        self.windows: list[Window] = []
        self.overloaded = False
        self._shares: dict[str, float] = {}
        self._seen = _Seen()
        self._ratio = RATIO_FIRST

    def decide(self, view: View) -> Plan:
        self._seen.look(view)
        if self.settings.dynamic and self._seen.iterations >= self.settings.window_iters:
            self._control(view)
        plan = super().decide(view)
        self._seen.start(view, plan)
        if plan.preempt:
            self._ratio = min(self._ratio + 0.5 * RATIO_FIRST, 1.0)
        elif DECODE in plan.lanes:
            self._ratio = max(self._ratio - (RATIO_FIRST - RATIO_LEAST) / RATIO_ITERATIONS, RATIO_LEAST)
        return plan

    def split(self, view: View, plan: Plan) -> dict[str, float] | None:
        """Each lane takes the wanted share where its own batch begins."""
        wanted = {PREFILL: self.current.x / 100.0, DECODE: self.current.y / 100.0}
        new = {
            lane: wanted[lane] if lane in plan.lanes else self._shares.get(lane, wanted[lane]) for lane in self.lanes
        }
        if new == self._shares:
            return None
        self._shares = new
        return dict(new)

    def spare(self, view: View) -> int:
        decoding = view.decoding
        left = sum(min(job.prompt + job.most - decoding.context_of(job), LONGEST_ANSWER) for job in decoding)
        return super().spare(view) + int(self._ratio * left) // view.page_tokens

    def _control(self, view: View) -> None:
        seen = self._seen
        ttft_limit, tpot_limit = self.limits(view)
        window = seen.close(view, self.current, self.settings.slo_quantile, ttft_limit)
        self.model.prompt_s, self.model.token_s = seen.prompt_s, self._token_s(view)
        self.model.observe(window)
        self.windows.append(window)
        self.overloaded = window.load >= 100.0
        if not self.overloaded:
            self.current = adjust(
                window, self.model, ttft_limit, tpot_limit, self.settings.step_pct, self.settings.max_step
            )

    def limits(self, view: View) -> tuple[float, float]:
        """(TTFT, time between tokens) in seconds."""
        s = self.settings
        ttft = s.ttft_slo_ms / 1e3 if s.ttft_slo_ms else view.slo.ttft_s
        tpot = s.tpot_slo_ms / 1e3 if s.tpot_slo_ms else view.slo.tbt_s
        if ttft is None:
            ttft = TIGHT * self._seen.prompt_s if self._seen.prompt_s else float("inf")
        if tpot is None:
            tpot = TIGHT * view.cost(Load(1, 0.0, 1, 512, 1, 1))
        return ttft, tpot

    @staticmethod
    def _token_s(view: View) -> float:
        count, context = max(view.decoding.count, 1), view.decoding.context
        return view.cost(Load(count, 0.0, count, context, count, count))


class _Seen:
    """What a window shows, gathered from the view at each decision."""

    def __init__(self) -> None:
        self.iterations = 0
        self.prompt_s = 0.0
        self._began = 0.0
        self._backlog = 0.0  # seconds of work that waited when the window began
        self._launched = 0
        self._arrived: deque[tuple[float, float]] = deque(maxlen=LOAD_WINDOWS)  # (work, length) of windows, in seconds
        self._reading: list[Job] = []
        self._first: list[Job] = []  # got their first token, no second yet
        self._due: list[Job] = []  # get their second with the decodes that run
        self._ttft: list[tuple[float, int]] = []
        self._gaps: list[tuple[float, int]] = []
        self._decodes = 0  # in the batch that runs
        self._last = 0.0  # when their batch began, with which the one before ended
        self._work: list[float] = []

    def look(self, view: View) -> None:
        now = view.now
        for job in self._reading:
            if job.first is not None:
                self._ttft.append((job.first - job.arrival, 1))
                self._first.append(job)
        self._reading = [job for job in self._reading if job.first is None and job.phase != DONE]
        if DECODE not in view.idle or not self._decodes:
            return
        # A lane that was idle while nothing was there leaves no gap: then nobody decodes now.
        if view.decoding.count:
            if self._decodes > len(self._due):
                self._gaps.append((now - self._last, self._decodes - len(self._due)))
            self._gaps += [(now - job.first, 1) for job in self._due if job.first is not None]
        self._due.clear()
        self._decodes = 0

    def start(self, view: View, plan: Plan) -> None:
        self.iterations += len(plan.lanes)
        reading = plan.lanes.get(PREFILL)
        if reading is not None:
            new = [chunk.job for chunk in reading.chunks if chunk.job.first is None and chunk.job.started is None]
            self._reading += new
            self._launched += len(new)
            self._work.append(view.cost(load_of(reading, view)))
        if DECODE in plan.lanes:
            self._last = view.now
            self._decodes = view.decoding.count
            self._due, self._first = self._first, []

    def close(self, view: View, split: Split, quantile: float, ttft_limit: float) -> Window:
        """The window that ends now; the next one begins."""
        late = [(view.now - job.arrival, 1) for job in islice(view.waiting, 1024)]
        late = [wait for wait in late if wait[0] > ttft_limit]
        backlog = sum(
            view.cost(Load(job.left, job.left * (job.done + job.left / 2), 0, 0, 1, 1))
            for job in islice(view.waiting, 1024)
        )
        if self._launched:
            self.prompt_s = sum(self._work) / self._launched
        self._arrived.append((max(sum(self._work) + backlog - self._backlog, 0.0), view.now - self._began))
        work, length = (sum(values) for values in zip(*self._arrived, strict=True))
        window = Window(
            split,
            _quantile(self._ttft + late, quantile),
            _quantile(self._gaps, quantile),
            100.0 * work / max(length, 1e-9),
        )
        self._ttft, self._gaps, self._work = [], [], []
        self._began, self._backlog, self._launched, self.iterations = view.now, backlog, 0, 0
        return window


def _quantile(samples: Sequence[tuple[float, int]], q: float) -> float | None:
    """Of (value, how often)."""
    if not samples:
        return None
    rank = q * sum(count for _, count in samples)
    for value, count in sorted(samples):
        rank -= count
        if rank <= 1e-9:
            return value
    return max(samples)[0]


class SemiPDSystem(SchedulerSystem[SemiPDSettings]):
    """Phase-wise disaggregated computation over unified storage."""

    card = SYSTEM
    settings = SemiPDSettings
    scheduler = SemiPD
