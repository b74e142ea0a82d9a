"""Objects of equal content are told alike, in every process; others never are."""

from __future__ import annotations

import copy
import enum
import hashlib
import re
import subprocess
import sys
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from headway.core import contents
from headway.core.contents import Contents
from headway.core.module_model import ModuleModel
from headway.core.module_tree import structure_digest


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


class Locked:
    """Can be copied, but not taken apart."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("not to be taken apart")

    def __deepcopy__(self, memo: Any) -> Locked:
        return Locked()


Pair = namedtuple("Pair", "a b")


def scaled(factor: float) -> Any:
    return lambda x: x * factor


def defaulted(factor: float) -> Any:
    def function(x: float, factor: float = factor) -> float:
        return x * factor

    return function


MAKERS = [
    int,
    float,
    np.float32,
    np.int64,
    np.float64,
    lambda n: (Kind.ONE, Kind.TWO)[n - 1],
    Plain,
    Slotted,
    lambda n: SimpleNamespace(gain=n, inner=SimpleNamespace(names=["a", n])),
    lambda n: Pair(n, 1),
    lambda n: [n],
    lambda n: (n,),
    lambda n: {n},
    lambda n: {"a": Plain(n)},
    lambda n: OrderedDict(a=n),
    lambda n: defaultdict(list, {"a": [n]}),
    lambda n: deque([n]),
    lambda n: range(n),
    lambda n: bytes([n]),
    lambda n: re.compile("a" * n),
    lambda n: torch.full((2,), n),
    lambda n: np.full(2, n),
    lambda n: np.array([Plain(n), None]),
    lambda n: (torch.float32, torch.float16)[n - 1],
    lambda n: torch.device("cpu", n),
    lambda n: np.random.default_rng(n),
    scaled,
    defaulted,
    lambda n: partial(scaled, factor=n),
    lambda n: nn.Linear(n, 1, bias=False).requires_grad_(False).apply(lambda m: m.weight.fill_(1)),
    lambda n: Plain(Plain).__class__ if n == 1 else Slotted,
]


def told(value: Any) -> str:
    return Contents({}).of(value)


def test_objects_are_told_by_what_they_hold() -> None:
    seen: dict[str, Any] = {}
    for make in MAKERS:
        for n in (1, 2):
            value = make(n)
            text = told(value)
            assert contents._RUN not in text and text == told(make(n)) == told(copy.deepcopy(value)), value
            assert text not in seen, (value, seen[text])
            seen[text] = value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_two_plain_values_are_told_alike_when_they_are_equal(one: Any, other: Any) -> None:
    same = repr_sorted(one) == repr_sorted(other)
    assert (told(Plain(one)) == told(Plain(other))) == same
    assert told(one) == told(copy.deepcopy(one))


def repr_sorted(value: Any) -> str:
    if isinstance(value, dict):
        return f"dict{sorted((key, repr_sorted(each)) for key, each in value.items())}"
    return f"list{[repr_sorted(each) for each in value]}" if isinstance(value, list) else repr(value)


def test_what_holds_itself_is_told_by_where_it_closes() -> None:
    def ring(length: int) -> Plain:
        first = last = Plain(None)
        for _ in range(length - 1):
            last = Plain(last)
        first.value = last
        return first

    assert told(ring(3)) == told(ring(3)) != told(ring(2))


IN_EVERY_PROCESS = """
import hashlib, torch
from headway.core.module_tree import structure_digest
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = [{'a', 'b', 'c', 'd'}, lambda x: x in {'a', 'b', 'c', 'd'}]
        self.recurrent = torch.nn.ModuleList([torch.nn.LSTM(2, 3), torch.nn.GRU(2, 3), torch.nn.RNN(2, 3)])
        self.operators = [torch.ops.aten.add, torch.ops.aten.add.Tensor]
digest = hashlib.sha256()
structure_digest(Net(), digest)
print(digest.hexdigest())
"""


def test_words_recurrent_layers_and_operators_are_told_alike_in_every_process() -> None:
    runs = {
        subprocess.run(
            [sys.executable, "-c", IN_EVERY_PROCESS],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_loaded_recurrent_network_has_the_fingerprint_of_the_saved_one(kind: Any, tmp_path: Path) -> None:
    def made(**options: Any) -> ModuleModel:
        torch.manual_seed(0)
        return ModuleModel(kind(3, 4, **options), torch.zeros(2, 3))

    saved = made()
    saved.save(tmp_path)
    loaded = ModuleModel.load(tmp_path, module=kind(3, 4))
    assert loaded.fingerprint() == saved.fingerprint() == made().fingerprint()
    assert made(batch_first=True).fingerprint() != saved.fingerprint()
    with torch.no_grad():
        loaded.runtime.weight_hh_l0[0, 0] += 1.0
    assert ModuleModel(loaded.runtime, loaded.sample).fingerprint() != saved.fingerprint()


def test_a_weak_reference_is_told_by_what_it_points_to() -> None:
    one, other, unknown = Plain(1), Plain(2), Locked()
    assert told(weakref.ref(one)) == told(weakref.ref(one)) != told(weakref.ref(other))
    assert Contents({id(one): "a.b"}).of(weakref.ref(one)) == Contents({id(other): "a.b"}).of(weakref.ref(other))
    assert contents._RUN in told(weakref.ref(unknown))


def test_operators_are_told_by_name_those_of_other_libraries_by_this_process() -> None:
    aten = torch.ops.aten
    names = {told(each) for each in (aten.add, aten.add.Tensor, aten.add.Scalar, aten.mul.Tensor)}
    assert len(names) == 4 and not any(contents._RUN in name for name in names)
    with torch.library._scoped_library("headway_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CPU")
        assert contents._RUN in told(torch.ops.headway_test.twice.default)


def deep() -> Any:
    made: Any = None
    for _ in range(100_000):
        made = [made]
    return made


@pytest.mark.parametrize("make", [Locked, lambda: [1, Locked()], lambda: scaled(Locked()), deep])  # type: ignore[arg-type]
def test_what_cannot_be_taken_apart_is_like_nothing_else(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(), make()
    text = told(one)
    assert text == told(one) != told(other)
    monkeypatch.setattr(contents, "_RUN", "another process")
    assert told(one) != text


def test_an_object_of_too_many_parts_is_like_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = [[n] for n in range(50)], [[n] for n in range(50)]
    assert told(one) == told(other)
    monkeypatch.setattr(contents, "MOST", 50)
    assert told(one) != told(other)


class Held(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.held = held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def fingerprint(net: nn.Module) -> str:
    return ModuleModel(net, torch.zeros(1, 3)).fingerprint()


def test_a_modules_fingerprint_follows_its_options_and_hooks() -> None:
    first = fingerprint(Held(SimpleNamespace(gain=1.0)))
    assert first == fingerprint(Held(SimpleNamespace(gain=1.0))) != fingerprint(Held(SimpleNamespace(gain=5.0)))
    assert fingerprint(Held(Locked())) != fingerprint(Held(Locked()))
    prints = set()
    for hook in (None, scaled(2), scaled(3)):
        net = Held(None)
        if hook is not None:
            net.layer.register_forward_hook(lambda layer, given, output, hook=hook: hook(output))
        prints.add(fingerprint(net))
    assert len(prints) == 3


def test_what_a_module_refers_to_of_itself_is_told_by_its_path() -> None:
    def referring(value: float) -> ModuleModel:
        net = Held(None)
        net.held = [net.layer, net.forward, net]
        with torch.no_grad():
            net.layer.weight.fill_(value)
        return ModuleModel(net, torch.zeros(1, 3))

    prints = []
    for value in (1.0, 2.0):
        digest = hashlib.sha256()
        structure_digest(referring(value).runtime, digest)
        prints.append(digest.digest())
    assert prints[0] == prints[1]
