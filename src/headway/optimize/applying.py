"""Apply a recipe: every check first, then one system after the other, each step from the cache where it can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headway.core import compatibility
from headway.core.errors import BadInput
from headway.core.model import Model
from headway.core.recipe import Recipe
from headway.core.registry import system
from headway.core.system import Context, Policy, Settings, System, Transform, WeightSettings, sites_taken


def prepared(recipe: Recipe) -> list[tuple[System[Any], Settings]]:
    """Every system of the recipe with its settings validated; raises `BadInput` before any weight is read."""
    compatibility.check(recipe)
    ready: list[tuple[System[Any], Settings]] = []
    for step in recipe.steps:
        found = system(step.system)
        ready.append((found, found.settings.parse(step.settings, step.system)))
    return ready


def check(recipe: Recipe, model: Model, target: Any) -> None:
    """Raise `BadInput` when a system does not apply to this model here, takes no site, or two take the same one."""
    taken: dict[str, str] = {}
    for found, settings in prepared(recipe):
        slug = found.card.slug
        verdict = found.applies(model, target)
        if not verdict:
            raise BadInput(f"{slug} does not apply to {model.name}: {verdict.reason}", f"leave {slug} out")
        if not isinstance(settings, WeightSettings):
            continue
        sites = sites_taken(settings, model.sites())
        if not sites:
            names = ", ".join(site.name for site in list(model.sites())[:4])
            raise BadInput(f"{slug}: only={list(settings.only)} matches no site", f"sites are: {names} ...")
        if not settings.only:
            continue
        for site in sites:
            if site.name in taken:
                raise BadInput(
                    f"recipe: {taken[site.name]} and {slug} both take {site.name}", "give each its own sites with only="
                )
            taken[site.name] = slug


def apply_recipe(recipe: Recipe, model: Model, context: Context) -> Model:
    """The model with the recipe applied; raises `BadInput` for anything that cannot be, before anything is changed."""
    check(recipe, model, context.target)
    context = replace(context, original=context.original or model)
    for found, settings in prepared(recipe):
        if isinstance(found, Transform):
            model = found.apply(model, settings, context)
        elif isinstance(found, Policy):
            model = found.plug(model, settings, context)
        else:
            raise BadInput(
                f"{found.card.slug} is a {found.card.kind}: it is not part of a recipe", "see: headway systems"
            )
    return model
