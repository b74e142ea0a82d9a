"""Apply a recipe: every check first, then one system after the other, each step from the cache where it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headway.core import compatibility
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.patterns import compiled, matches
from headway.core.recipe import Recipe
from headway.core.registry import entry, system
from headway.core.system import (
    Context,
    NetworkTransform,
    Policy,
    Settings,
    System,
    Transform,
    WeightSettings,
    sites_taken,
)
from headway.core.units import nearest
from headway.llm.weights.transform import WeightTransform


def prepared(recipe: Recipe) -> list[tuple[System[Any], Settings]]:
    """Every system of the recipe with its settings validated; raises `BadInput` before any weight is read."""
    compatibility.check(recipe)
    ready: list[tuple[System[Any], Settings]] = []
    for step in recipe.steps:
        found = system(step.system)
        if not isinstance(found, Transform | Policy):
            raise BadInput(f"{step.system} is a {found.card.kind}: it is not part of a recipe", "see: headway systems")
        settings = found.settings.parse(step.settings, step.system)
        if isinstance(settings, WeightSettings):
            for pattern in (*settings.only, *settings.skip):
                compiled(pattern)
        ready.append((found, settings))
    return ready


def calibrates(recipe: Recipe) -> bool:
    """Whether any step asks for calibration inputs; only weight systems can say that they do not."""
    steps = prepared(recipe)
    return any(not isinstance(found, WeightTransform) or found.calibrates(settings) for found, settings in steps)


def check_sites(recipe: Recipe, model: Model, *, named: bool = True) -> None:
    """Raise `BadInput` for a step that takes no site of this model or names none, and for two that take the same.

    named: whether every pattern has to name a site.
    """
    takers: dict[str, str] = {}
    apart = any(isinstance(found, NetworkTransform) for found, _ in prepared(recipe))  # decided on the network it makes
    for step, (found, settings) in zip(recipe.steps, prepared(recipe), strict=True):
        if not isinstance(settings, WeightSettings):
            continue
        taken = found.taken if isinstance(found, WeightTransform) else sites_taken
        names = [site.name for site in taken(settings, model.sites())]
        known = [site.name for site in model.sites()]
        if known:
            lost = [p for p in (*settings.only, *settings.skip) if not any(matches(name, [p]) for name in known)]
            if lost and named:
                near = nearest(lost[0], known)
                mend = f"did you mean {near!r}?" if near else f"sites are: {', '.join(known[:4])} ..."
                raise BadInput(f"{step}: {lost[0]!r} is no site of {model.name}", mend)
            if not names:
                raise BadInput(f"{step} takes no site of {model.name}", f"sites are: {', '.join(known[:4])} ...")
        twice = [name for name in names if name in takers]
        if twice and not apart:
            raise BadInput(
                f"recipe: {takers[twice[0]]} and {step} both take {_some(twice)}",
                "a site holds one weight: give each step its own with only= and skip=",
            )
        takers |= dict.fromkeys(names, str(step))


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} sites ({', '.join(names[:2])}{' ...' * (len(names) > 2)})"


def check(recipe: Recipe, model: Model, target: Any) -> None:
    """Raise `BadInput` when a system does not apply to this model here, takes no site, or two take the same one."""
    for found, _ in prepared(recipe):
        slug = found.card.slug
        with entry(slug).blamed():
            verdict = found.applies(model, target)
        if not verdict:
            raise BadInput(f"{slug} does not apply to {model.name}: {verdict.reason}", f"leave {slug} out")
    check_sites(recipe, model)


def plug_policies(recipe: Recipe, model: Model, context: Context) -> Model:
    """The model with the recipe's policies alone: cheap, and enough to predict what they change."""
    for found, settings in prepared(recipe):
        if isinstance(found, Policy):
            model = found.plug(model, settings, context)
    return model


def apply_recipe(recipe: Recipe, model: Model, context: Context) -> Model:
    """The model with the recipe applied; raises `BadInput` for anything that cannot be, before anything is changed."""
    check(recipe, model, context.target)
    context = replace(context, original=context.original or model)
    for at, (found, settings) in enumerate(prepared(recipe), 1):
        with entry(found.card.slug).blamed():
            if isinstance(found, Transform):
                model = found.apply(model, settings, context)
                if isinstance(found, NetworkTransform):  # what follows is calibrated on the network that is there now
                    context = replace(context, original=model)
                    check_sites(Recipe(recipe.steps[at:]), model, named=False)
            elif isinstance(found, Policy):
                model = found.plug(model, settings, context)
    return model
