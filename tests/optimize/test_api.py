"""The Python interface refuses in one line what cannot be asked, before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import pytest

import headway
from headway.core.errors import BadInput
from headway.optimize import api


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"budget": 5}, "a budget is text, not 5"),
        ({"budget": None}, "a budget is text, not None"),
        ({"minimize": 5}, "cannot minimise '5'"),
        ({"time_s": -1}, "time_s=-1"),
        ({"time_s": 0}, "time_s=0"),
        ({"time_s": math.nan}, "time_s=nan"),
        ({"time_s": math.inf}, "time_s=inf"),
        ({"threads": -1}, "threads=-1"),
    ],
)
def test_what_cannot_be_asked_of_optimize_is_bad_input(
    asked: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(api, "load", never)
    with pytest.raises(BadInput, match=part):
        headway.optimize("m", **asked)


def test_no_machine_has_fewer_threads_than_none() -> None:
    with pytest.raises(BadInput, match="threads=-1; give 0"):
        headway.apply("int8", "m", threads=-1)
