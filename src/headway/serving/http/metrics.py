"""What a server counts: for Prometheus, and for the live page. Distributions have fixed buckets, a count each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from headway.serving.http.backend import Watcher
from headway.serving.messages import Stats, Training

if TYPE_CHECKING:
    from headway.serving.http.admission import Admission
    from headway.serving.http.served import Served

TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 20.0, 40.0)
GAP_S = (0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.024, 0.032, 0.048, 0.064, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


class Distribution:
    """Counts of values by bucket; `edges` are upper bounds in seconds, the last bucket has none."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.edges, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """The upper edge of the bucket it lies in; None without values."""
        wanted, seen = q * self.count, 0
        if not wanted:
            return None
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            seen += count
            if seen >= wanted:
                return min(edge, 2 * self.edges[-1])
        return None

    def as_json(self) -> dict[str, Any]:
        return {
            "edges_s": list(self.edges),
            "counts": self.counts,
            "p50_s": self.quantile(0.5),
            "p99_s": self.quantile(0.99),
        }


class Record(Watcher):
    """Of one model."""

    def __init__(self) -> None:
        self.ttft = Distribution(TTFT_S)
        self.gap = Distribution(GAP_S)
        self.steps = 0
        self.rows = 0
        self.busy_s = 0.0
        self.restarts = 0
        self.refused = 0
        self.admission: Admission | None = None

    def stepped(self, stats: Stats) -> None:
        self.steps += 1
        self.rows += stats.rows
        self.busy_s += stats.seconds
        if self.admission is not None:
            self.admission.observe(stats)

    def first_token(self, seconds: float) -> None:
        self.ttft.add(seconds)

    def next_token(self, seconds: float) -> None:
        self.gap.add(seconds)

    def restarted(self) -> None:
        self.restarts += 1


class Collector:
    """Prometheus' view of all models, made when it asks."""

    def __init__(self, models: dict[str, Served], records: dict[str, Record]) -> None:
        self._models, self._records = models, records

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        counters = {
            "headway_prompt_tokens": "tokens of prompts",
            "headway_completion_tokens": "tokens generated",
            "headway_steps": "forward passes",
            "headway_rows": "tokens computed by forward passes",
            "headway_busy_seconds": "time of forward passes",
            "headway_engine_restarts": "times that the engine's process was started again",
            "headway_refused_requests": "requests turned away because the queue was full",
            "headway_vanished_clients": "clients that went away before their answer was done",
        }
        gauges = {
            "headway_waiting_requests": "requests that hold no pages",
            "headway_prefilling_requests": "requests whose prompt is being read",
            "headway_decoding_requests": "requests that generate",
            "headway_kv_pages": "pages of keys and values",
            "headway_kv_pages_used": "pages that requests hold",
            "headway_kv_pages_cached": "pages that are kept for prompts that begin alike",
            "headway_predicted_wait_seconds": "predicted wait of a request that comes now",
        }
        counting = {name: CounterMetricFamily(name, what, labels=["model"]) for name, what in counters.items()}
        gauging = {name: GaugeMetricFamily(name, what, labels=["model"]) for name, what in gauges.items()}
        ttft = HistogramMetricFamily("headway_ttft_seconds", "time to the first token", labels=["model"])
        gap = HistogramMetricFamily("headway_inter_token_seconds", "time between tokens", labels=["model"])
        steps = GaugeMetricFamily("headway_finetune_steps", "optimiser steps of the training job", labels=["model"])
        loss = GaugeMetricFamily("headway_finetune_loss", "mean loss of its last sequence", labels=["model"])
        for name, served in self._models.items():
            record = self._records[name]
            counts = (
                served.prompt_tokens,
                served.completion_tokens,
                record.steps,
                record.rows,
                record.busy_s,
                record.restarts,
                record.refused,
                served.vanished,
            )
            for counter, value in zip(counting.values(), counts, strict=True):
                counter.add_metric([name], value)
            for gauge, level in zip(gauging.values(), levels(served), strict=True):
                gauge.add_metric([name], level)
            if (job := training(served)) is not None:
                steps.add_metric([name], job.step)
                if job.loss is not None:
                    loss.add_metric([name], job.loss)
            for family, found in ((ttft, record.ttft), (gap, record.gap)):
                family.add_metric([name], _cumulative(found), found.sum)
        yield from (*counting.values(), *gauging.values(), ttft, gap, steps, loss)


def levels(served: Served) -> tuple[float, ...]:
    """Waiting, prefilling, decoding; pages in all, held, cached; predicted wait in seconds."""
    stats, ready = served.backend.stats, served.backend.ready
    if ready is None or stats is None:
        return 0, 0, 0, 0 if ready is None else ready.pages, 0, 0, 0.0
    held = stats.held + stats.cached - stats.idle
    return stats.waiting, stats.prefilling, stats.decoding, ready.pages, held, stats.idle, served.admission.wait_s()


def training(served: Served) -> Training | None:
    """The job beside the requests, if there is one."""
    return None if served.backend.stats is None else served.backend.stats.training


def _cumulative(found: Distribution) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for edge, count in zip((*map(str, found.edges), "+Inf"), found.counts, strict=True):
        total += count
        buckets.append((edge, float(total)))
    return buckets
