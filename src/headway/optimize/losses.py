"""The space of one search: for every site and choice the predicted loss, bytes and seconds; policies for other slots.

The loss that a weight's error E = W' - W adds is predicted to second order, outputs taken one by one:

    loss(site, choice) = 1/2 sum_o G_o (E H E^T)_oo

H: second moment of the site's inputs; G: second moment of the gradient at its outputs (calibration). Losses of
different sites add up; one factor learned from measured candidates corrects what the approximation leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from headway.core import compatibility
from headway.core.errors import BadInput
from headway.core.model import Model, Site
from headway.core.recipe import Recipe, Step
from headway.core.registry import systems
from headway.core.slots import SLOTS
from headway.core.system import Context, Policy
from headway.core.weight import F32, Weight
from headway.llm.weights import sensitivity
from headway.llm.weights.calibration import hessians, key_of
from headway.llm.weights.sensitivity import gradient_moments
from headway.llm.weights.transform import WeightTransform
from headway.optimize.applying import plug_policies
from headway.optimize.forms import calibrated, with_attention
from headway.optimize.request import Request
from headway.optimize.search import Space
from headway.optimize.subject import Subject
from headway.optimize.table import KEEP, Choice, ChoiceTable

WEIGHTS = "weights"
COPIED = 1e-12
"""Relative error below which a choice counts as lossless."""


def make_space(subject: Subject, context: Context, request: Request) -> Space:
    """What applies to this model on this machine and does not clash with the fixed part of the recipe."""
    fixed = {SLOTS[found.slot].name for found in (systems()[step.system].card for step in request.recipe.steps)}
    weights: list[tuple[str, WeightTransform[Any], list[dict[str, Any]]]] = []
    policies: dict[str, list[Step]] = {}
    for slug, entry in sorted(systems().items()):
        if slug in request.without or (request.only and slug not in request.only):
            continue
        if entry.card.kind not in ("transform", "policy") or entry.card.slot in fixed:
            continue
        if any(compatibility.clash(systems()[step.system].card, entry.card) for step in request.recipe.steps):
            continue
        system = entry.load()
        if not system.applies(subject.model, context.target):
            continue
        options = [dict(option) for option in system.options(subject.model, context.target)]
        if isinstance(system, WeightTransform):
            weights.append((slug, system, options))
        elif isinstance(system, Policy):
            policies.setdefault(entry.card.slot, []).extend(Step(slug, option) for option in options)
    if not weights and not policies and not request.recipe.steps:
        raise BadInput(f"no system applies to {subject.model.name}", "see: headway systems, and --only/--without")
    plug = partial(plug_policies, model=subject.model, context=context)
    plugged = [subject.model, *(plug(Recipe((step,))) for steps in policies.values() for step in steps)]
    context.target = with_attention(context.target, plugged, context.threads, context.progress)
    table = choice_table(subject, context, weights)
    context.held.clear()  # every weight is made: H is not needed any more
    return Space(table, policies, request.recipe, plug)


def choice_table(
    subject: Subject, context: Context, weights: Sequence[tuple[str, WeightTransform[Any], list[dict[str, Any]]]]
) -> ChoiceTable:
    """What every site may hold: as it is, or made by one of the systems (slug, system, options to try)."""
    model = subject.model
    sites = tuple(model.sites())
    choices = [KEEP]
    for slug, _, options in weights:
        choices += [Choice(slug, tuple(sorted(option.items()))) for option in options]
    shape = (len(sites), len(choices))
    loss, nbytes, seconds = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    forms = [[""] * len(choices) for _ in sites]
    loss[:, 1:] = np.inf

    def cost(row: int, column: int, form: str, size: float) -> None:
        nbytes[row, column] = size
        seconds[row, column] = subject.site_seconds(context.target, sites[row], form, size, context.threads)
        forms[row][column] = form

    moments = Moments(model, context)
    column = 0
    held = [{site.name: model.weight(site.name) for site in sites}]
    for slug, system, options in weights:
        for option in options:
            column += 1
            settings = system.settings.parse({**option, "only": ["*"]}, slug)
            taken = [site for site in sites if system.taken(settings, [site])]
            made = system.weights(model, settings, context, taken)
            held.append(made)
            losses = moments.losses(made, slug, system.version, option)
            for row, site in enumerate(sites):
                loss[row, column] = losses.get(site.name, np.inf)
    context.target = calibrated(context.target, held, context.threads, context.progress)
    for column, weights_of in enumerate(held):
        for row, site in enumerate(sites):
            weight = weights_of.get(site.name, held[0][site.name])
            cost(row, column, weight.form, float(weight.nbytes))
    return ChoiceTable(sites, tuple(choices), loss, nbytes, seconds, tuple(tuple(row) for row in forms))


class Moments:
    """H and G of every site, and the loss they predict for a changed weight."""

    def __init__(self, model: Model, context: Context) -> None:
        self.model = model
        self.context = context

    @cached_property
    def gradients(self) -> dict[str, F32]:
        return gradient_moments(self.model, self.context)

    @cached_property
    def inputs(self) -> dict[str, F32]:
        return hessians(self.model, self.context, [site for site in self.model.sites() if site.name in self.gradients])

    def losses(self, made: Mapping[str, Weight], *maker: Any) -> dict[str, float]:
        """Site -> finite loss of the weights that `maker` (JSON-able) made of this model; kept in the step cache."""

        def measure() -> dict[str, float]:
            found = {
                site.name: self.loss(site, made[site.name].dequantize())
                for site in self.model.sites()
                if site.name in made
            }
            return {name: value for name, value in found.items() if np.isfinite(value)}

        cache = self.context.cache
        if cache is None:
            return measure()
        key = cache.key("losses", sensitivity.VERSION, key_of(self.model, self.context), *maker)
        return dict(cache.json(key, measure))

    def loss(self, site: Site, value: F32) -> float:
        """Predicted increase of the mean loss when the site's matrix becomes `value`; infinite where unknown."""
        if site.name not in self.gradients:
            return float("inf")
        original = self.model.weight(site.name).dequantize()
        error = value - original
        size = float(np.linalg.norm(error))
        if size <= COPIED * float(np.linalg.norm(original)):
            return 0.0
        spread = np.einsum("oi,oi->o", error @ self.inputs[site.name], error)
        return 0.5 * float(self.gradients[site.name] @ spread)
