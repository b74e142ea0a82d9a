"""`ServerPlan`: how one server runs, as `headway plan serving` writes it and `headway serve --plan` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headway.core.decode import check_schema, decode
from headway.core.errors import BadInput
from headway.core.files import read_json

SCHEMA = 1
SYSTEM = "serving"
PARTS = ("model", "recipe", "limits", "slo")


@dataclass(frozen=True)
class ServerLimits:
    """What the server may use."""

    threads: int
    max_seqs: int
    kv_bytes: int


@dataclass(frozen=True)
class ServerSLO:
    """Seconds that the quantile of the requests must hold; None: no limit."""

    ttft_s: float | None
    tbt_s: float | None
    tpot_s: float | None
    quantile: float


@dataclass(frozen=True)
class ServerPlan:
    """The part of a plan that a server needs; the rest (predictions, what else was tried) is for people."""

    model: str
    recipe: str
    limits: ServerLimits
    slo: ServerSLO

    @classmethod
    def read(cls, path: str | Path) -> ServerPlan:
        """Raises `BadInput` for another planner's plan and for a field that is missing or of another type."""
        document = read_json(path)
        check_schema(document, SCHEMA, str(path))
        if document.get("system") != SYSTEM:
            raise BadInput(
                f"{path} is a plan of {str(document.get('system'))!r:.40}", "serve takes one of headway plan serving"
            )
        return decode(cls, {key: value for key, value in document.items() if key in PARTS}, str(path))
