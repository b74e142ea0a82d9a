"""All pairs: whether systems go together follows from slots, needs and effects; what is said to go together does.

A recipe is held to the product of the qualities that each of its steps has alone, where a quality above 1 (chance, on
a model of random weights) counts as 1: it fails when the whole 95% interval of its quality lies below. What is refused
is refused before any file of the model is opened.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import numpy as np
import pytest
from known_machine import use_home
from tiny_models import TinyFolder

import headway
from headway.core import compatibility
from headway.core.cache import StepCache
from headway.core.card import PROPERTIES, Card
from headway.core.errors import BadInput
from headway.core.recipe import Recipe, Step
from headway.core.registry import system, systems
from headway.core.slots import SLOTS
from headway.core.system import Context
from headway.core.workload import Texts, Workload
from headway.llm.load import load_saved
from headway.llm.weights.dense import from_bf16, to_bf16
from headway.optimize.applying import apply_recipe
from headway.optimize.subjects import make_subject

CPU_S = 0.010
OF_ONE_MODEL = {"transform", "policy"}
IN_RECIPES = sorted(
    slug
    for slug, found in systems().items()
    if found.card.kind in OF_ONE_MODEL and found.card.slot not in ("dispatch", "network")
)
"""A dispatcher has a fleet, another network is one over images: both say of this model that they do not apply."""
PARTS = (("*.attention.*", "*.mlp.*", "head"), ("layers.0.*", "layers.1.*", "head"), ("*.{q,k,v}", "*.o", "*.mlp.*"))
"""Patterns that share no site."""
OVERLAPS = (("*.mlp.*", "layers.0.*"), ("*", "head"), ("*.attention.*", "*.q"), ("layers.{0-1}.*", "*.down"))
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "its", "house", "near", "tree", "by")
MOST = {"rounds": 3, "calib_tokens": 2048, "batch_crossover": 64, "group_size": 128, "steps": 3}
"""Settings that cost time, or are the same from here on for a tiny model, are drawn up to here."""


def drawn(name: str, field: Any, generator: random.Random) -> Any:
    """A valid value of a setting."""
    kind = field.annotation
    if get_origin(kind) is dict or kind is str:
        return None
    if get_origin(kind) is Literal:
        return generator.choice(get_args(kind))
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        words = get_args(get_args(kind)[0])
        return generator.sample(words, generator.randint(1, len(words)))
    if kind is bool:
        return generator.random() < 0.5
    if kind is int or int in get_args(kind):
        if kind is not int and generator.random() < 0.5:
            return None
        low = next((m.ge for m in field.metadata if isinstance(m, annotated_types.Ge)), 0)
        high = next((m.le for m in field.metadata if isinstance(m, annotated_types.Le)), 1 << 30)
        unit = 16 if low == 16 else next((m.multiple_of for m in field.metadata if hasattr(m, "multiple_of")), 1)
        return generator.randint(-(-low // unit), min(high, MOST.get(name, high)) // unit) * unit
    if kind is float or float in get_args(kind):
        if kind is not float and generator.random() < 0.5:
            return None
        low = next((bound for m in field.metadata if (bound := getattr(m, "ge", getattr(m, "gt", None)))), 0.1)
        high = next((bound for m in field.metadata if (bound := getattr(m, "le", getattr(m, "lt", None)))), low + 1.0)
        return generator.uniform(low, high)
    raise AssertionError(f"setting {name} of type {kind}: say here how to draw it")


def step(slug: str, only: str, generator: random.Random) -> Step:
    """The system with every setting drawn, on those sites."""
    kind = system(slug).settings
    names = [name for name in kind.model_fields if name not in ("only", "skip")]
    for _ in range(100):
        drawings = {name: drawn(name, kind.model_fields[name], generator) for name in names}
        settings = {name: value for name, value in drawings.items() if value is not None}
        with suppress(BadInput):  # some systems have rules between settings: draw again
            kind.parse(settings, slug)
            return Step(slug, {**settings, **({"only": (only,)} if only and "only" in kind.model_fields else {})})
    raise AssertionError(f"no valid settings of {slug} were drawn: say in `drawn` how to")


def yes(generator: random.Random) -> Recipe:
    """One to three systems that go together, those of weights on sites of their own."""
    while True:
        parts = generator.choice(PARTS)
        chosen = [generator.choice(IN_RECIPES) for _ in range(generator.randint(1, 3))]
        recipe = Recipe(tuple(step(slug, only, generator) for slug, only in zip(chosen, parts, strict=False)))
        with suppress(BadInput):
            compatibility.check(recipe)
            return recipe


def no(generator: random.Random) -> Recipe:
    """Two or three, of which two take every site, or one what another has."""
    weights = sorted(slug for slug, entry in systems().items() if entry.card.slot == "weights")
    chosen = [generator.choice(weights) for _ in range(generator.randint(2, 3))]
    taken = generator.choice(PARTS)
    steps = [step(slug, only, generator) for slug, only in zip(chosen, taken, strict=False)]
    at = generator.randrange(len(steps))
    steps[at] = Step(steps[at].system, {k: v for k, v in steps[at].settings.items() if k != "only"})
    return Recipe(tuple(steps))


OPENED: list[str] | None = None


@contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """Files below a folder that were opened meanwhile."""
    global OPENED
    OPENED = found = []
    try:
        yield found
    finally:
        OPENED = None
        found[:] = [path for path in found if path.startswith(str(folder))]


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event in ("open", "os.listdir", "os.scandir"):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_watch)


class Bench:
    """The tiny model, what it is calibrated and judged on, and the qualities of single steps."""

    def __init__(self, folder: Path) -> None:
        target = use_home(folder / "home")
        tiny = TinyFolder(folder / "tiny")  # of bfloat16 values, which no system refuses
        tiny.tensors = {name: from_bf16(to_bf16(tensor)) for name, tensor in tiny.tensors.items()}
        tiny.write()
        self.path = tiny.path
        texts = [" ".join(np.random.default_rng(seed).choice(WORDS, 4000)) for seed in range(3)]
        workload = Workload(prompt_tokens=16, output_tokens=4, texts=Texts(*texts, "test"))
        self.model = headway.load(str(self.path))
        self.subject = make_subject(self.model, workload)
        self.context = Context(target, self.subject.calibration(), StepCache(), threads=1)
        self.alone: dict[str, float] = {}

    def applied(self, recipe: Recipe) -> Any:
        return apply_recipe(recipe, self.model, self.context)

    def quality(self, model: Any) -> Mapping[str, float]:
        """`quality`, and the ends of its interval."""
        found: Mapping[str, float] = self.subject.qualities([model], "search", self.subject.units("search"), True)[0]
        return found

    def bound(self, recipe: Recipe) -> float:
        """The product of what each step has alone."""
        for one in recipe.steps:
            if str(one) not in self.alone:
                self.alone[str(one)] = min(self.quality(self.applied(Recipe((one,))))["quality"], 1.0)
        return float(np.prod([self.alone[str(one)] for one in recipe.steps]))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("HEADWAY_HOME", "")  # put back afterwards
    return Bench(tmp_path)


def hold(bench: Bench, count: int, folder: Path) -> Mapping[str, Any]:
    """Draw recipes that go together: each loads, runs, comes back from its files alike, and keeps to the bound."""
    generator, worst, below, steps = random.Random(25), float("inf"), 0, 0
    for number in range(count):
        recipe = yes(generator)
        compatibility.check(recipe)
        model = bench.applied(recipe)
        logits = model.logits([1, 2, 3, 4])
        assert np.isfinite(logits).all(), str(recipe)
        saved = folder / f"saved-{number}"
        saved.mkdir()
        model.save(saved)
        assert np.array_equal(load_saved(saved).logits([1, 2, 3, 4]), logits), str(recipe)
        found, bound = bench.quality(model), bench.bound(recipe)
        assert found["quality_high"] >= bound, f"{recipe}: {dict(found)} is below {bound}"
        worst = min(worst, found["quality"] / bound)
        below += found["quality"] < bound
        steps += len(recipe.steps)
    return {"recipes": count, "steps": steps, "below_the_bound_by_chance": below, "least_share_of_it": worst}


def refuse(bench: Bench, count: int) -> Mapping[str, Any]:
    """Draw recipes that do not go together: one line that says why, and no file of the model is opened."""
    generator = random.Random(26)
    for _ in range(count):
        recipe = no(generator)
        with opened(bench.path) as found, pytest.raises(BadInput) as error:
            headway.apply(recipe, str(bench.path), threads=1)
        assert "both take" in str(error.value), str(recipe)
        assert found == [], str(recipe)
    for first, second in OVERLAPS:
        recipe = Recipe((step("int4", first, generator), step("int8", second, generator)))
        with pytest.raises(BadInput, match="both take"):
            bench.applied(recipe)
    return {"refused": count, "refused_by_their_sites": len(OVERLAPS), "files_opened": 0}


def made_up(count: int) -> list[Card]:
    """Cards for every slot, with needs and effects."""
    generator, properties = random.Random(1), sorted(PROPERTIES)

    def some() -> tuple[str, ...]:
        return tuple(generator.sample(properties, generator.randint(0, 2)))

    return [
        Card(f"s{n}", f"S{n}", "p", "transform", sorted(SLOTS)[n % len(SLOTS)], "s", "c", some(), some(), some())
        for n in range(count)
    ]


def test_every_pair_of_sixty_eight_is_answered_at_once(figures: Callable[..., None]) -> None:
    """Registered systems and as many made-up ones as there will be; yes, or one reason with its mend."""
    cards = [*(entry.card for entry in systems().values()), *made_up(65)]
    slowest, refused = 0.0, 0
    for first, second in itertools.permutations(cards, 2):
        start = time.process_time()
        reason = compatibility.clash(first, second)
        slowest = max(slowest, time.process_time() - start)
        assert reason == "" or reason.count("; ") == 1
        refused += bool(reason)
    assert slowest <= CPU_S
    assert set(compatibility.table(cards)) == {(a.slug, b.slug) for a, b in itertools.permutations(cards, 2)}
    figures(pairs=len(cards) * (len(cards) - 1), refused=refused, slowest_ms=1e3 * slowest)


def test_a_dozen_recipes_hold_and_fifty_are_refused(bench: Bench, tmp_path: Path, figures: Callable[..., None]) -> None:
    figures(**hold(bench, 12, tmp_path), **refuse(bench, 50))


@pytest.mark.nightly
def test_a_hundred_recipes_hold(bench: Bench, tmp_path: Path, figures: Callable[..., None]) -> None:
    figures(**hold(bench, 100, tmp_path), **refuse(bench, 500))
