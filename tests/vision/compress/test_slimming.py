"""Slimming a whole model: what it costs, what comes back from files, what goes with it, and what stops it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slim_nets import SIDE, Net, context, images, model, net
from torch import Tensor, nn

from headway.core.cache import StepCache
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.module_origin import Origin
from headway.core.progress import Progress, Task
from headway.core.recipe import Recipe
from headway.core.system import Context
from headway.optimize.applying import apply_recipe
from headway.vision.compress.distil import views
from headway.vision.compress.widths import Width, allocated
from headway.vision.count import count


def applied(recipe: str, given_model: ModuleModel, ctx: Context) -> ModuleModel:
    made: Any = apply_recipe(Recipe.parse(recipe), given_model, ctx)
    return made  # type: ignore[no-any-return]


def macs(of: ModuleModel) -> int:
    return count(of.module(), (of.sample[0][:1],)).layer_macs


@pytest.mark.parametrize("widths", ["searched", "uniform"])
def test_the_share_that_was_asked_for_is_kept(widths: str) -> None:
    keep = 0.6
    whole = model()
    made = applied(f'slimming(keep={keep}, cost="macs", steps=0, widths="{widths}")', whole, context())
    assert keep - 0.2 <= macs(made) / macs(whole) <= keep + 0.011
    assert made.size_bytes() < whole.size_bytes()
    assert {site.name for site in made.sites()} <= {site.name for site in whole.sites()}


def test_keeping_all_is_the_model_itself() -> None:
    whole = model()
    assert applied("slimming(keep=1.0)", whole, context()) is whole


def test_latency_is_measured() -> None:
    ctx = context()
    made = applied("slimming(keep=0.9, steps=0)", model(origin=Origin("timm", "resnet18")), ctx)
    assert macs(made) < macs(model())
    assert "of the latency" in ctx.notes[-1]


def test_teaching_brings_it_nearer_and_is_kept_only_then() -> None:
    def apart(ctx: Context) -> tuple[float, ...]:
        return tuple(float(word) for word in ctx.notes[-1].split() if word.count(".") == 1 and len(word) == 6)

    good, bad = context(), context()
    applied('slimming(keep=0.3, cost="macs", widths="searched", steps=40, lr=0.003)', model(), good)
    before, after = apart(good)
    assert after < 0.7 * before
    kept = applied('slimming(keep=0.6, cost="macs", steps=3, lr=1.0)', model(), bad)
    assert "left as cut" in bad.notes[-1]
    plain = applied('slimming(keep=0.6, cost="macs", steps=0)', model(), context())
    assert kept.content_digest() == plain.content_digest()


def test_teaching_leaves_the_model_and_its_outputs_as_they_were() -> None:
    whole, answers = model(), net()(images(8))
    before = whole.fingerprint()
    made = applied('slimming(keep=0.6, cost="macs", steps=3)', whole, context())
    assert whole.fingerprint() == before
    assert torch.equal(whole.module()(images(8)), answers)
    again = applied('slimming(keep=0.6, cost="macs", steps=3)', whole, context())
    assert again.fingerprint() == made.fingerprint()


def test_a_network_without_classes_is_taught_too() -> None:
    ctx = context()
    applied('slimming(keep=0.3, cost="macs", widths="searched", steps=30, lr=0.003)', model(task="module"), ctx)
    assert "->" in ctx.notes[-1]


@pytest.mark.parametrize(
    "more", ["", " + int8()", " + int4()", " + bipolar-int(weight_bits=4, act_bits=8)", " + lut-gemm(bits=4)"]
)
def test_it_comes_back_from_files_alike_with_any_weights(more: str, tmp_path: Path) -> None:
    whole = model(origin=Origin("python", "slim_nets:built"))
    made = applied(f'slimming(keep=0.5, cost="macs", steps=0){more}', whole, context())
    made.save(tmp_path)
    again = ModuleModel.load(tmp_path, allow_code=True)
    x = images(4)
    assert torch.equal(made.run(x), again.run(x))
    assert again.fingerprint() == made.fingerprint() and again.cut == made.cut and made.cut
    brought = ModuleModel.load(tmp_path, module=Net())
    assert torch.equal(made.run(x), brought.run(x))
    twice = applied('slimming(keep=0.8, cost="macs", steps=0)', again, context()) if not more else again
    (tmp_path / "twice").mkdir()
    twice.save(tmp_path / "twice")
    assert torch.equal(ModuleModel.load(tmp_path / "twice", module=Net()).run(x), twice.run(x))
    if more:
        assert all(weight.form != "dense" for weight in made.packed_weights().values()) and made.packed_weights()


def test_weights_are_calibrated_on_the_smaller_network() -> None:
    """GPTQ's inputs have as many channels as what it rounds."""
    made = applied(
        'slimming(keep=0.6, cost="macs", steps=0) + lut-gemm(bits=3) + scale-tuning(steps=2)', model(), context()
    )
    assert made.packed_weights() and torch.isfinite(made.run(images(2))).all()


def test_two_networks_in_one_recipe_clash() -> None:
    with pytest.raises(BadInput, match="both take slot 'network'"):
        applied("slimming(keep=0.9) + slimming(keep=0.8)", model(), context())
    with pytest.raises(BadInput, match="put slimming first in the recipe"):
        applied("int8() + slimming(keep=0.8)", model(), context())


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).mean((2, 3))


def test_what_cannot_be_slimmed_says_why() -> None:
    plain = ModuleModel(Plain(), images(1), name="plain")
    with pytest.raises(BadInput, match=r"slimming does not apply to plain: no channels of it .*leave slimming out"):
        applied("slimming()", plain, context())
    rows = ModuleModel(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(2, 4), name="rows")
    with pytest.raises(BadInput, match="its input is no batch of images"):
        applied("slimming()", rows, context())
    with pytest.raises(BadInput, match="4 calibration images for small, it learns from 8"):
        applied("slimming()", model(), context(4))
    with pytest.raises(BadInput, match=r"keep=0\.01 cannot be reached.*ask for keep="):
        applied('slimming(keep=0.01, cost="macs", steps=0)', model(), context())


def test_a_network_whose_code_holds_its_sizes_loses_only_other_channels() -> None:
    class Stubborn(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3))
            y = torch.relu(self.hidden(y))
            assert y.shape[1] == 48
            return self.out(y)

    torch.manual_seed(0)
    made = applied('slimming(keep=0.7, cost="macs", steps=0)', model(Stubborn().eval()), context())
    assert made.cut and "hidden" not in made.cut.widths


class Stop(Progress):
    """Interrupts a task when it has advanced so often."""

    def __init__(self, what: str, after: int) -> None:
        self.what, self.after = what, after

    @contextmanager
    def task(self, what: str, total: float | None = None) -> Iterator[Task]:
        yield _Stopping(self.after) if what == self.what else Task()


class _Stopping(Task):
    def __init__(self, left: int) -> None:
        self.left = left

    def advance(self, steps: float = 1) -> None:
        self.left -= int(steps)
        if self.left == 0:
            raise KeyboardInterrupt


def test_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path / "home"))
    recipe = 'slimming(keep=0.7, cost="macs", steps=12, lr=0.003)'
    whole = applied(recipe, model(), context())
    cache = StepCache(tmp_path / "steps")
    with pytest.raises(KeyboardInterrupt):
        applied(recipe, model(), context(cache=cache, progress=Stop("teaching the smaller network", 7)))
    left = list((tmp_path / "home").rglob("slimming-*.pt"))
    assert len(left) == 1 and len(torch.load(left[0], weights_only=True)["losses"]) == 7
    found = applied(recipe, model(), context(cache=cache))
    assert found.content_digest() == whole.content_digest()
    assert not left[0].exists()
    again = applied(recipe, model(), context(cache=cache, progress=Stop("teaching the smaller network", 1)))
    assert again.content_digest() == whole.content_digest()  # from the cache: nothing is taught


@given(st.data())
@settings(max_examples=30)
def test_the_allocation_is_the_best_of_all(data: st.DataObject) -> None:
    shares = st.integers(0, 400).map(lambda n: n / 4000)
    table = {
        str(at): [Width(10, 0.0, 0.0)]
        + [
            Width(n, data.draw(shares), data.draw(st.floats(0, 1, width=32)))
            for n in range(data.draw(st.integers(0, 3)))
        ]
        for at in range(data.draw(st.integers(1, 4)))
    }
    saving = data.draw(shares)
    every: list[list[Width]] = [[]]
    for widths in table.values():
        every = [[*some, width] for some in every for width in widths]
    fits = [some for some in every if sum(round(w.saved * 4000) for w in some) >= round(saving * 4000)]
    found = allocated(table, saving)
    if not fits:
        assert not found
        return
    chosen = [next(w for w in widths if w.channels == found[name]) for name, widths in table.items()]
    assert sum(round(w.saved * 4000) for w in chosen) >= round(saving * 4000)
    assert sum(w.lost for w in chosen) <= min(sum(w.lost for w in some) for some in fits) + 1e-9


def test_views_are_images_of_the_same_range_and_differ() -> None:
    torch.manual_seed(0)
    x = images(5)
    made = views(x, 12)
    assert made.shape == (12, 3, SIDE, SIDE)
    assert made.min() >= x.min() and made.max() <= x.max()
    assert len({view.numpy().tobytes() for view in made}) == 12
