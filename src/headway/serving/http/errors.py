"""Errors in the shape of OpenAI's, so that its client raises what its users expect."""

from __future__ import annotations

import math
from typing import Any

import msgspec

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An answer that is an error. `str()` is what the client reads: no name of anything inside."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))

    def document(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return msgspec.json.encode(self.document())


def unavailable(why: str = "the engine is starting") -> ApiError:
    """503: the same request may succeed in a moment."""
    return ApiError(503, f"{why}; try again shortly", code="unavailable", retry_after_s=1)


def internal() -> ApiError:
    """500 without a word about the inside."""
    return ApiError(500, "the server failed on this request", code="internal")


def lost() -> ApiError:
    """The engine's process died with this answer in it."""
    what = "the engine was restarted during this answer; send it again"
    return ApiError(503, what, code="engine_restarted", retry_after_s=1)
