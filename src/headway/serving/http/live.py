"""What the live page shows, as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import asdict

from headway.serving.http.metrics import Record, levels, training
from headway.serving.http.served import Served


def snapshot(
    models: Mapping[str, Served], records: Mapping[str, Record], draining: bool, seconds: float
) -> dict[str, Any]:
    """The state of every model now; counts since the start, from which the page makes rates."""
    return {
        "draining": draining,
        "seconds": seconds,
        "models": [_model(served, records[name]) for name, served in models.items()],
    }


def _model(served: Served, record: Record) -> dict[str, Any]:
    ready = served.backend.ready
    waiting, prefilling, decoding, pages, held, cached, wait_s = levels(served)
    return {
        "name": served.name,
        "task": served.task,
        "ready": ready is not None,
        "systems": [] if ready is None else ready.systems,
        "context": 0 if ready is None else ready.context,
        "size_bytes": 0 if ready is None else ready.size_bytes,
        "kv": "" if ready is None else ready.kv,
        "page_bytes": 0 if ready is None else ready.page_bytes,
        "max_seqs": 0 if ready is None else ready.max_seqs,
        "waiting": waiting,
        "prefilling": prefilling,
        "decoding": decoding,
        "pages": pages,
        "held": held,
        "cached": cached,
        "wait_s": wait_s,
        "prompt_tokens": served.prompt_tokens,
        "completion_tokens": served.completion_tokens,
        "steps": record.steps,
        "rows": record.rows,
        "busy_s": record.busy_s,
        "restarts": record.restarts,
        "refused": record.refused,
        "vanished": served.vanished,
        "training": None if (job := training(served)) is None else asdict(job),
        "ttft": record.ttft.as_json(),
        "gap": record.gap.as_json(),
    }
