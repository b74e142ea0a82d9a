"""The space of one search: for every site and choice the predicted loss, bytes and seconds; policies for other slots.

The loss that a weight's error E = W' - W adds is predicted to second order, outputs taken one by one:

    loss(site, choice) = 1/2 sum_o G_o (E H E^T)_oo

H: second moment of the site's inputs; G: second moment of the gradient at its outputs (calibration). Losses of
different sites add up; one factor learned from measured candidates corrects what the approximation leaves out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import chain, zip_longest
from typing import Any

import numpy as np

from headway.core import compatibility
from headway.core.errors import BadInput
from headway.core.model import Model, Site
from headway.core.pages import trim
from headway.core.recipe import Recipe, Step
from headway.core.registry import BrokenPlugIn, systems
from headway.core.slots import SLOTS
from headway.core.system import Context, NetworkTransform, Policy
from headway.core.weight import F32, Weight
from headway.llm.weights import sensitivity
from headway.llm.weights.calibration import hessians, key_of, seconds_of_input
from headway.llm.weights.sensitivity import gradient_moments
from headway.llm.weights.transform import WeightTransform
from headway.optimize.applying import plug_policies
from headway.optimize.forms import calibrated, with_attention
from headway.optimize.request import Request
from headway.optimize.search import Space
from headway.optimize.subject import Subject
from headway.optimize.table import KEEP, Choice, ChoiceTable

WEIGHTS = "weights"
CALIBRATING = 0.25
"""Share of the time that calibration may take: where all inputs take longer, some are left out."""
PASSES = 2
"""Over the inputs: one for H and G, one for the curvature along an error."""
LEAST_INPUTS = 2
COPIED = 1e-12
"""Relative error below which a choice counts as lossless."""


def make_space(
    subject: Subject, context: Context, request: Request, until: float = math.inf, share: float = 1.0
) -> Space:
    """What applies to this model on this machine and does not clash with the fixed part of the recipe.

    until: by the monotonic clock; afterwards further options are left out, all but the first of all. share: of what
    the model costs now, what the budget leaves of it.
    """
    fixed = {SLOTS[found.slot].name for found in (systems()[step.system].card for step in request.recipe.steps)}
    weights: list[tuple[str, WeightTransform[Any], list[dict[str, Any]]]] = []
    policies: dict[str, list[Step]] = {}
    networks = 0  # the search stands on one: `Search.smaller` tries others
    # References first: the cheapest to make, when the time is short.
    for slug, entry in sorted(systems().items(), key=lambda item: (not item[1].card.reference, item[0])):
        if slug in request.without or (request.only and slug not in request.only):
            continue
        if entry.card.kind not in ("transform", "policy") or entry.card.slot in fixed:
            continue
        if not SLOTS[entry.card.slot].searched:
            continue
        if any(compatibility.clash(systems()[step.system].card, entry.card) for step in request.recipe.steps):
            continue
        try:
            system = entry.load()
            with entry.blamed():
                if not system.applies(subject.model, context.target):
                    continue
                options = [dict(option) for option in system.options(subject.model, context.target)]
        except BrokenPlugIn as error:
            context.progress.note(f"left out: {error}")
            continue
        if isinstance(system, WeightTransform):
            weights.append((slug, system, options))
        elif isinstance(system, Policy):
            policies.setdefault(entry.card.slot, []).extend(Step(slug, option) for option in options)
        elif isinstance(system, NetworkTransform):
            networks += 1
    if not weights and not policies and not networks and not request.recipe.steps:
        raise BadInput(f"no system applies to {subject.model.name}", "see: headway systems, and --only/--without")
    plug = partial(plug_policies, model=subject.model, context=context)
    plugged = [subject.model, *(plug(Recipe((step,))) for steps in policies.values() for step in steps)]
    context.target = with_attention(context.target, plugged, context.threads, context.progress)
    if weights and context.calibration:
        calibrate_in(CALIBRATING * request.time_s, subject.model, context)
    table = choice_table(subject, context, weights, until, share)
    context.held.clear()  # every weight is made: H is not needed any more
    trim()  # backward passes leave gigabytes of freed pieces behind
    return Space(table, policies, request.recipe, plug)


def calibrate_in(seconds: float, model: Model, context: Context) -> None:
    """Leave out the calibration inputs for which the time does not suffice here."""
    inputs = context.calibration
    with context.progress.task("what calibration will take"):
        each = seconds_of_input(model, context)
    fit = seconds / (PASSES * each)
    count = LEAST_INPUTS
    while 2 * count <= fit:  # doubled, so that a second run's clock seldom changes the number
        count *= 2
    if max(count, fit) < len(inputs):
        context.calibration = inputs[:count]
        context.notes.append(
            f"calibrated on {count} of {len(inputs)} inputs, at {each:.1f} s each here; a longer --time takes all"
        )


def choice_table(
    subject: Subject,
    context: Context,
    weights: Sequence[tuple[str, WeightTransform[Any], list[dict[str, Any]]]],
    until: float = math.inf,
    share: float = 1.0,
) -> ChoiceTable:
    """What every site may hold: as it is, or made by one of the systems (slug, system, options to try)."""
    model = subject.model
    sites = tuple(model.sites())
    choices, losses = [KEEP], [dict.fromkeys((site.name for site in sites), 0.0)]
    held: list[Mapping[str, Weight]] = [{site.name: model.weight(site.name) for site in sites}]
    moments = Moments(model, context)
    offers = [
        [(slug, system, option, system.settings.parse({**option, "only": ["*"]}, slug)) for option in options]
        for slug, system, options in weights
    ]
    # Every system's first option, then every second: when the time is short each has had its turn.
    turns = [offer for offer in chain.from_iterable(zip_longest(*offers)) if offer]
    now = sum(float(weight.nbytes) for weight in held[0].values())

    def stored_share(turn: tuple[str, WeightTransform[Any], dict[str, Any], Any]) -> float:
        _, system, _, settings = turn
        taken = system.taken(settings, sites)
        kept = now - sum(float(held[0][site.name].nbytes) for site in taken)
        return (kept + sum(system.stored(site, settings)[1] for site in taken)) / max(now, 1.0)

    turns = by_need([(turn, stored_share(turn), turn[1].calibrates(turn[3])) for turn in turns], share)
    for number, (slug, system, option, settings) in enumerate(turns):
        if time.monotonic() > until and number:
            context.notes.append(
                f"the time was up when {len(turns) - number} of {len(turns)} settings of the weight systems had not "
                "been tried; what was done is kept: a longer --time goes on from here"
            )
            break
        taken = [site for site in sites if system.taken(settings, [site])]
        made = system.weights(model, settings, context, taken)
        choices.append(Choice(slug, tuple(sorted(option.items()))))
        held.append(made)
        losses.append(moments.losses(made, slug, system.version, option))
    context.target = calibrated(context.target, held, context.threads, context.progress)
    stored = [[weights_of.get(site.name, held[0][site.name]) for weights_of in held] for site in sites]
    seconds = [
        [subject.site_seconds(context.target, site, w.form, float(w.nbytes), context.threads) for w in row]
        for site, row in zip(sites, stored, strict=True)
    ]
    return ChoiceTable(
        sites,
        tuple(choices),
        np.array([[found.get(site.name, np.inf) for found in losses] for site in sites]),
        np.array([[float(weight.nbytes) for weight in row] for row in stored]),
        np.array(seconds),
        tuple(tuple(weight.form for weight in row) for row in stored),
    )


def by_need(options: Sequence[tuple[Any, float, bool]], share: float) -> list[Any]:
    """Options in the order in which they are made, when the time may not suffice for all.

    options: each with the share of the present bytes that it stores, and whether it calibrates. By turns the nearest
    one that alone brings the bytes to `share`, and the nearest above, whose loss is less; last what saves nothing. Of
    equal ones those first that are made in no time.
    """
    ordered = sorted(options, key=lambda option: option[2])
    saving = [option for option in ordered if option[1] < 1.0]
    below = sorted((o for o in saving if o[1] <= share), key=lambda o: -o[1])
    above = sorted((o for o in saving if o[1] > share), key=lambda o: o[1])
    turns = [option for pair in zip_longest(below, above) for option in pair if option is not None]
    return [option[0] for option in (*turns, *(o for o in ordered if not o[1] < 1.0))]


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
        original = self.model.weight(site.name).dequantize()
        error = value - original
        size = float(np.linalg.norm(error))
        if size <= COPIED * float(np.linalg.norm(original)):
            return 0.0
        if site.name not in self.gradients:
            return float("inf")
        spread = np.einsum("oi,oi->o", error @ self.inputs[site.name], error)
        return 0.5 * float(self.gradients[site.name] @ spread)
