"""Training the numbers of quantised weights: forms as sums of parts, gradients, and what tuning keeps and betters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from known_machine import UNMEASURED
from small_net import Net, context, small_model
from tiny_models import TinyFolder
from torch import nn

import headway
from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.progress import Progress
from headway.core.recipe import Recipe
from headway.core.system import Context
from headway.llm.weights.base import StoredWeight, stored_as
from headway.llm.weights.bipolar import BipolarWeight
from headway.llm.weights.bitplanes import BitPlanes
from headway.llm.weights.dense import DenseWeight
from headway.llm.weights.grouped import Int4Weight, Int8Weight, expand
from headway.llm.weights.hadamard import turned
from headway.llm.weights.scale_tuning import ScaleTuning, _Tuned
from headway.optimize.applying import apply_recipe

OUT, COLUMNS, GROUP = 6, 88, 32
RNG = np.random.default_rng(0)
SCALE, OFFSET = (RNG.normal(size=(OUT, 3)).astype(np.float16) for _ in range(2))


def codes(bits: int) -> Any:
    return np.random.default_rng(bits).integers(0, 1 << bits, (OUT, COLUMNS)).astype(np.uint8)


FORMS: dict[str, StoredWeight] = {
    "planes": BitPlanes.from_codes(codes(3), SCALE, OFFSET, bits=3, group_size=GROUP),
    "alphas": BitPlanes.from_codes(
        codes(3), SCALE.astype("f4"), OFFSET.astype("f4"), bits=3, group_size=GROUP
    ).to_binary(),
    "int4": Int4Weight(codes(4), SCALE, OFFSET, group_size=GROUP),
    "int8": Int8Weight((codes(8).astype(np.int16) - 128).astype(np.int8), SCALE, group_size=GROUP),
    "int8 with a minimum": Int8Weight((codes(8) // 2).astype(np.int8), SCALE, OFFSET, group_size=GROUP),
    "bipolar": BipolarWeight.from_codes(codes(4), SCALE, bits=4, group_size=GROUP),
    "bipolar, turned": BipolarWeight.from_codes(codes(2), SCALE, OFFSET, bits=2, group_size=GROUP, rotate=64),
    "bipolar, a row": BipolarWeight.from_codes(codes(4), SCALE[:, :1], bits=4, group_size=0),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_a_value_is_the_sum_of_its_parts_and_numbers_go_back_bit_for_bit(name: str) -> None:
    form = FORMS[name]
    group = getattr(form, "group_size", 0) or COLUMNS
    total = np.zeros((OUT, COLUMNS))
    for part in form.parts():
        total += expand(part.numbers, COLUMNS, group) * (1 if part.codes is None else part.codes.astype(np.float64))
    value = turned(total.astype(np.float32), getattr(form, "rotate", 0))
    np.testing.assert_allclose(value, form.dequantize(), rtol=1e-5, atol=1e-5 * np.abs(value).max())
    again = form.with_numbers([part.numbers for part in form.parts()])
    assert type(again) is type(form)
    assert again.meta() == form.meta()
    assert all(np.array_equal(array, again.tensors()[key]) for key, array in form.tensors().items())
    assert all(array.dtype == again.tensors()[key].dtype for key, array in form.tensors().items())


def test_floats_have_no_parts_and_half_precision_is_not_overrun() -> None:
    assert not DenseWeight(np.ones((2, 3), np.float32)).parts()
    kept = stored_as(np.array([1e9, -1e9, 0.5], np.float32), np.zeros(1, np.float16))
    assert kept.tolist() == [65504.0, -65504.0, 0.5]


@pytest.mark.parametrize("name", list(FORMS))
def test_gradients_are_those_of_the_value_written_out(name: str) -> None:
    form = FORMS[name]
    layer = _Tuned(nn.Linear(COLUMNS, OUT), form)
    x = torch.randn(2, 5, COLUMNS, requires_grad=True)
    wanted = torch.randn(2, 5, OUT)
    (layer(x) * wanted).sum().backward()
    found = [x.grad, *(move.grad for move in layer.moved)]

    y = x.detach().clone().requires_grad_()
    moves = [torch.zeros_like(move).requires_grad_() for move in layer.moved]
    numbers = [first + unit * move for first, unit, move in zip(layer.first, layer.units, moves, strict=True)]
    centre = form.parts()[0].centre
    if centre:
        numbers[-1] = numbers[-1] - centre * (numbers[0] - layer.first[0])
    weight: Any = 0
    for part, each in zip(form.parts(), numbers, strict=True):
        wide = each.repeat_interleave(layer.group, 1)[:, :COLUMNS]
        weight = weight + (wide if part.codes is None else wide * torch.from_numpy(part.codes.astype(np.float32)))
    rotate = getattr(form, "rotate", 0)
    z = y @ torch.from_numpy(turned(np.eye(COLUMNS, dtype=np.float32), rotate)) if rotate else y
    ((z @ weight.T + layer.bias) * wanted).sum().backward()
    for mine, theirs in zip(found, [y.grad, *(move.grad for move in moves)], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def lively_model() -> ModuleModel:
    """Whose classes are not all the same to it."""
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 3
    return ModuleModel(net, torch.randn(2, 20, 6, 6))


def tuned(recipe: str, model: Any, given: Context) -> Any:
    return apply_recipe(Recipe.read(recipe), model, replace(given, target=UNMEASURED))


@pytest.mark.parametrize(("weights", "share"), [("lut-gemm(bits=2, group_size=16)", 0.8), ("int4(group_size=16)", 1.0)])
def test_a_network_comes_nearer_to_the_original_and_keeps_its_codes(weights: str, share: float) -> None:
    model, given = lively_model(), context()
    plain, better = (tuned(weights + more, model, given) for more in ("", " + scale-tuning(steps=60, lr=0.01)"))
    x = torch.randn(64, 20, 6, 6, generator=torch.Generator().manual_seed(9))
    lost = []
    for each in (plain, better):
        with torch.no_grad():
            exact, mine = model.module()(x).log_softmax(-1), each.module()(x).log_softmax(-1)
        lost.append(float((exact.exp() * (exact - mine)).sum(-1).mean()))
    assert lost[1] < share * lost[0]
    assert better.size_bytes() == plain.size_bytes()
    for site in model.sites():
        old, new = plain.weight(site.name), better.weight(site.name)
        assert np.array_equal(old.codes(), new.codes())
        assert not np.array_equal(old.scale, new.scale)
    assert any(" -> " in note for note in given.notes)


def test_a_language_model_gains_and_the_second_time_nothing_is_trained(tmp_path: Any) -> None:
    model = headway.load(str(TinyFolder(tmp_path / "tiny").path))
    rows = torch.randint(0, model.architecture.vocab, (8, 24), generator=torch.Generator().manual_seed(0))
    given = Context(target=UNMEASURED, calibration=[(rows[:4],), (rows[4:],)], cache=StepCache(tmp_path / "cache"))
    recipe = "lut-gemm(bits=2, group_size=16, quantizer=rtn) + scale-tuning(steps=30, tokens=20, lr=0.01)"
    first = tuned(recipe, model, given)
    (note,) = given.notes
    before, after = (float(part) for part in note.split(": ")[1].split(" from")[0].split(" -> "))
    assert after < before
    trained: list[Any] = []
    again = tuned(recipe, model, replace(given, held={}, progress=_Heard(trained)))
    assert again.fingerprint() == first.fingerprint()
    assert "tuning scales" not in trained
    head = next(site.name for site in model.sites() if site.kind in ("head", "embedding"))
    assert again.weight(head) is model.weight(head)


class _Heard(Progress):
    def __init__(self, names: list[Any]) -> None:
        super().__init__()
        self.names = names

    def task(self, what: str, total: int | None = None) -> Any:
        self.names.append(what)
        return super().task(what, total)


def test_weights_stay_where_tuning_does_harm() -> None:
    model, given = lively_model(), context()
    weights = "lut-gemm(bits=4, group_size=16)"
    plain = tuned(weights, model, given)
    same = tuned(f"{weights} + scale-tuning(steps=1, lr=1)", model, given)
    assert any("weights stay as they were" in note for note in given.notes)
    for site in model.sites():
        assert np.array_equal(same.weight(site.name).dequantize(), plain.weight(site.name).dequantize())


def test_what_has_no_scales_stays_and_one_input_is_too_few() -> None:
    model, given = small_model(), context()
    for recipe in ("scale-tuning()", "scale-tuning() + int8()"):
        tuned(recipe, model, given)
    floats = model.with_weights({"hidden": DenseWeight(model.weight("hidden").dequantize() * 1.1)})
    assert ScaleTuning().apply(floats, ScaleTuning.settings(), replace(given, original=model)) is floats
    assert ["nothing to tune" in note for note in given.notes] == [True] * 3
    with pytest.raises(BadInput, match="fewer than two"):
        tuned("int8() + scale-tuning()", model, replace(given, calibration=given.calibration[:1]))
    assert isinstance(model, ModuleModel)
    assert ScaleTuning().predict(model, UNMEASURED, ScaleTuning.settings()).size_bytes == model.size_bytes()
