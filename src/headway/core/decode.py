"""Dataclasses from JSON: fields checked by their annotations, unknown ones refused, the path of a wrong one named."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from headway.core.errors import BadInput

T = TypeVar("T")

REMAKE = "make it again with this version of headway"


def check_schema(document: Any, newest: int, what: str) -> int:
    """The `schema` of a JSON object; raises `BadInput` for none, a bad one, or one from a newer headway."""
    if not isinstance(document, Mapping):
        raise BadInput(f"{what}: a JSON object is expected, not {_kind(document)}", REMAKE)
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BadInput(f"{what}: schema={schema!r} is no version number"[:200], REMAKE)
    if schema > newest:
        raise BadInput(
            f"{what}: schema {schema} is newer than this headway reads ({newest})", "run: pip install -U headway"
        )
    return schema


def decode(kind: type[T], document: Any, where: str) -> T:
    """Build the dataclass `kind`, whose fields may be dataclasses, tuples, mappings, unions and plain types.

    Integers are taken where a float is expected, and null, which is how `jsontext` writes a number that is not finite,
    reads as NaN there. Raises `BadInput`: `<where>.<field>: <rule>; <mend>`.
    """
    if not isinstance(document, Mapping):
        raise BadInput(f"{where}: a JSON object is expected, not {_kind(document)}", REMAKE)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in document:
        if name not in known:
            raise BadInput(f"{where}: unknown field {name!r}"[:200], f"fields are: {', '.join(known)}")
    hints = typing.get_type_hints(kind)
    for name, field in known.items():
        if name not in document and field.default is MISSING and field.default_factory is MISSING:
            raise BadInput(f"{where}: field {name!r} is missing", REMAKE)
    return kind(**{name: _value(hints[name], document[name], f"{where}.{name}") for name in known if name in document})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return decode(typing.cast(Any, hint), value, where)
    if origin in (Union, types.UnionType):
        return _first(get_args(hint), value, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise BadInput(f"{where}={value!r}"[:200], f"it is one of: {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is tuple:
        return _tuple(get_args(hint), value, where)
    if origin is list:
        return list(_tuple((*get_args(hint), ...), value, where))
    if origin is not None:
        if not isinstance(value, Mapping):
            raise BadInput(f"{where}: a JSON object is expected, not {_kind(value)}", REMAKE)
        return {key: _value(get_args(hint)[1], item, f"{where}.{key}"[:200]) for key, item in value.items()}
    return _plain(hint, value, where)


def _first(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    for option in options:
        try:
            return _value(option, value, where)
        except BadInput as error:
            last = error
    raise last


def _tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise BadInput(f"{where}: a list is expected, not {_kind(value)}", REMAKE)
    if items[-1] is Ellipsis:
        if items[0] is float and all(type(item) is float for item in value):
            return tuple(value)
        return tuple(_value(items[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) != len(items):
        raise BadInput(f"{where}: {len(items)} items are expected, not {len(value)}", REMAKE)
    return tuple(
        _value(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(zip(items, value, strict=True))
    )


def _plain(hint: Any, value: Any, where: str) -> Any:
    if hint is type(None):
        hint = types.NoneType
    if hint is float and value is None:
        return math.nan
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{where}: the number is too large", REMAKE) from None
    if isinstance(value, hint) and (hint is not int or number):
        return value
    name = "null" if hint is types.NoneType else hint.__name__
    raise BadInput(f"{where}: {name} is expected, not {_kind(value)}", REMAKE)


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
