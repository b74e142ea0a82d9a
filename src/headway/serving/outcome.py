"""`Outcome`: what a load run gave, of the engine or of the simulator: the same figures from the same fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from headway.hardware.iteration_time import Load
from headway.serving.job import Job
from headway.serving.trace import Trace

F64 = npt.NDArray[np.float64]


class Record(Protocol):
    """What takes down a load run."""

    def end(self, job: Job) -> None:
        """A request is over."""
        ...

    def reject(self, job: Job) -> None: ...

    def batch(self, now: float, load: Load, seconds: float) -> None: ...

    def take_gaps(self, gaps: list[tuple[float, int]]) -> None: ...

    def finish_run(self, now: float, unfinished: int) -> object: ...


@dataclass
class Totals:
    """A record that keeps nothing of single requests, for work whose requests are not known before it runs."""

    ended: int = 0
    rejected: int = 0
    iterations: int = 0
    busy_s: float = 0.0
    """Time of batches, summed over lanes and instances."""
    end_s: float = 0.0
    unfinished: int = 0

    def end(self, job: Job) -> None:
        self.ended += job.first is not None
        self.rejected += job.first is None

    def reject(self, job: Job) -> None:
        self.rejected += 1

    def batch(self, now: float, load: Load, seconds: float) -> None:
        self.iterations += 1
        self.busy_s += seconds

    def take_gaps(self, gaps: list[tuple[float, int]]) -> None:
        gaps.clear()

    def finish_run(self, now: float, unfinished: int) -> Self:
        self.end_s, self.unfinished = now, unfinished
        return self


@dataclass
class Outcome:
    """Times in seconds; NaN where a request did not get that far."""

    arrival: F64
    prompt: npt.NDArray[np.int64]
    delay: F64
    """From arrival to admission."""
    ttft: F64
    """From arrival to the first token."""
    finish: F64
    """From arrival to the last token."""
    generated: npt.NDArray[np.int64]
    preemptions: npt.NDArray[np.int64]
    rejected: int = 0
    iterations: int = 0
    busy_s: float = 0.0
    """Time of batches, summed over lanes."""
    end_s: float = 0.0
    unfinished: int = 0
    tokens: int = 0
    """Rows computed, recomputed ones included."""
    _gaps: list[tuple[F64, F64]] = field(default_factory=list, repr=False)

    @classmethod
    def begin(cls, trace: Trace) -> Self:
        count = len(trace)
        nothing = np.full(count, np.nan)
        return cls(
            trace.arrival,
            trace.prompt,
            nothing.copy(),
            nothing.copy(),
            nothing.copy(),
            np.zeros(count, np.int64),
            np.zeros(count, np.int64),
        )

    def end(self, job: Job, at: int | None = None) -> None:
        """A request is over; `at` is its place in the trace, by default its id."""
        at = job.id if at is None else at
        if job.first is None:
            self.rejected += 1
            return
        assert job.finished is not None and job.started is not None
        self.delay[at] = job.started - job.arrival
        self.ttft[at] = job.first - job.arrival
        self.finish[at] = job.finished - job.arrival
        self.generated[at] = job.generated
        self.preemptions[at] = job.preemptions

    def reject(self, job: Job) -> None:
        self.rejected += 1

    def batch(self, now: float, load: Load, seconds: float) -> None:
        self.iterations += 1
        self.busy_s += seconds
        self.tokens += load.tokens

    def take_gaps(self, gaps: list[tuple[float, int]]) -> None:
        """Move (seconds between two tokens of one request, how often) in here."""
        if gaps:
            table = np.array(gaps, float)
            self._gaps.append((table[:, 0], table[:, 1]))
            gaps.clear()

    @property
    def gaps(self) -> tuple[F64, F64]:
        """Seconds between two tokens of one request, and how often each was seen."""
        if not self._gaps:
            return np.empty(0), np.empty(0)
        if len(self._gaps) > 1:
            values, counts = zip(*self._gaps, strict=True)
            self._gaps = [(np.concatenate(values), np.concatenate(counts))]
        return self._gaps[0]

    def finish_run(self, now: float, unfinished: int) -> Self:
        self.end_s, self.unfinished = now, unfinished
        return self

    def gap_quantile(self, q: float) -> float:
        """Quantile of the time between tokens over all pairs of tokens; NaN without any."""
        values, counts = self.gaps
        if not len(values):
            return float("nan")
        order = np.argsort(values)
        sums = np.cumsum(counts[order])
        return float(values[order][np.searchsorted(sums, q * sums[-1], side="left").clip(0, len(order) - 1)])

    def ttft_quantile(self, q: float) -> float:
        """Quantile of the time to the first token over all requests that got one; NaN without any."""
        got = self.ttft[~np.isnan(self.ttft)]
        return float(np.quantile(got, q)) if len(got) else float("nan")

    @property
    def tpot(self) -> F64:
        """Seconds per token after the first, by request; NaN where there is none."""
        after = np.where(self.generated > 1, self.generated - 1, 1)
        return np.where(self.generated > 1, (self.finish - self.ttft) / after, np.nan)

    def tpot_quantile(self, q: float) -> float:
        """Quantile of `tpot` over all requests that have one; NaN without any."""
        got = self.tpot
        got = got[~np.isnan(got)]
        return float(np.quantile(got, q)) if len(got) else float("nan")

    @property
    def gap_mean(self) -> float:
        values, counts = self.gaps
        return float((values * counts).sum() / counts.sum()) if len(values) else float("nan")

    def summary(self) -> dict[str, Any]:
        """The figures people compare."""
        done = ~np.isnan(self.finish)
        delay, ttft = self.delay[done], self.ttft[done]
        return {
            "requests": len(self.arrival),
            "finished": int(done.sum()),
            "rejected": self.rejected,
            "unfinished": self.unfinished,
            "preemptions": int(self.preemptions.sum()),
            "iterations": self.iterations,
            "seconds": self.end_s,
            "output_tok_s": float(self.generated.sum() / max(self.end_s, 1e-9)),
            "total_tok_s": float((self.generated[done].sum() + self.prompt[done].sum()) / max(self.end_s, 1e-9)),
            "delay_p50_s": float(np.median(delay)) if len(delay) else float("nan"),
            "ttft_mean_s": float(ttft.mean()) if len(ttft) else float("nan"),
            "ttft_p50_s": self.ttft_quantile(0.5),
            "ttft_p99_s": self.ttft_quantile(0.99),
            "tbt_mean_s": self.gap_mean,
            "tbt_p50_s": self.gap_quantile(0.5),
            "tbt_p99_s": self.gap_quantile(0.99),
            "tbt_max_s": self.gap_quantile(1.0),
        }
