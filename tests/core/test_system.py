"""Settings: values keep their types, and what does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from headway.core.errors import BadInput
from headway.core.system import WeightSettings


class Some(WeightSettings):
    bits: int = Field(3, ge=1, le=8)
    share: float = 0.5
    fast: bool = False
    rows: int | None = None


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"bits": "3"}, "bits"),
        ({"bits": True}, "bits"),
        ({"bits": 3.0}, "bits"),
        ({"bits": 9}, "bits"),
        ({"share": "0.5"}, "share"),
        ({"share": True}, "share"),
        ({"fast": 1}, "fast"),
        ({"fast": "true"}, "fast"),
        ({"rows": "4"}, "rows"),
        ({"only": 3}, "only"),
        ({"only": [3]}, "only"),
        ({"bit": 3}, "bit"),
    ],
)
def test_a_value_of_another_type_is_refused_naming_its_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=rf"some.*{field}") as caught:
        Some.parse(values, "some")
    assert caught.value.mend


def test_what_fits_is_taken_as_it_is() -> None:
    parsed = Some.parse({"bits": 4, "share": 1, "fast": True, "rows": None, "only": ["a", "b"], "skip": "c"}, "some")
    assert (parsed.bits, parsed.share, parsed.fast, parsed.only, parsed.skip) == (4, 1.0, True, ("a", "b"), ("c",))
