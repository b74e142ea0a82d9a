"""Strict JSON: what may be written, its one canonical form for digests, and parsing that names the offending byte."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.core.errors import BadFile


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses and mappings become objects, numbers that are not finite become null."""
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(value.tolist())
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_text(value: Any, *, indent: int | None = 1) -> str:
    """Strict JSON of `plain(value)`, ending in a newline. Lone surrogates are escaped, so the text is always UTF-8."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()


def canonical_json(value: Any) -> bytes:
    """The one byte form of a value that digests are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_json(data: bytes, source: str | Path) -> Any:
    """Parse strict JSON; raises `BadFile(source, offset)` and nothing else."""
    try:
        return json.loads(data.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadFile(source, error.start, "the text is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadFile(source, len(error.doc[: error.pos].encode()), f"not JSON: {error.msg}") from None
    except ValueError as error:  # NaN, Infinity, an integer of thousands of digits
        raise BadFile(source, 0, f"not JSON: {error}") from None
    except RecursionError:
        raise BadFile(source, 0, "JSON nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
