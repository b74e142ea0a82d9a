"""Compatibility is decided from slots, needs and effects; every pair has an answer."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core import compatibility
from headway.core.card import Card
from headway.core.errors import BadInput
from headway.core.recipe import Recipe
from headway.core.registry import systems
from headway.core.slots import SLOTS, slot

PROPERTIES = ("static_weights", "bitwise_equal", "kv_cache", "float_weights")


def card(
    slug: str, where: str, needs: tuple[str, ...] = (), breaks: tuple[str, ...] = (), gives: tuple[str, ...] = ()
) -> Card:
    return Card(slug, slug, "paper", "transform", where, "summary", "claim", needs, breaks, gives)


CARDS = st.builds(
    card,
    st.sampled_from(["a", "b"]),
    st.sampled_from(sorted(SLOTS)),
    st.lists(st.sampled_from(PROPERTIES), max_size=2).map(tuple),
    st.lists(st.sampled_from(PROPERTIES), max_size=2).map(tuple),
)


@given(CARDS, CARDS)
def test_a_clash_follows_from_slot_needs_and_effects(first: Card, second: Card) -> None:
    same = first.slot == second.slot and SLOTS[first.slot].rule != "ordered"
    lost = bool(set(first.breaks) & set(second.needs))
    assert bool(compatibility.clash(first, second)) == (same or lost)


def test_sites_of_their_own_resolve_a_clash_of_weights_only() -> None:
    a, b = card("a", "weights"), card("b", "weights")
    assert compatibility.clash(a, b)
    assert not compatibility.clash(a, b, apart=True)
    assert compatibility.clash(card("a", "kv"), card("b", "kv"), apart=True)


def test_every_pair_of_registered_systems_has_an_answer() -> None:
    cards = [item.card for item in systems().values()]
    table = compatibility.table(cards)
    assert set(table) == set(itertools.permutations([item.slug for item in cards], 2))
    assert all(reason == "" or ";" in reason for reason in table.values())


def test_a_clashing_recipe_is_refused_with_the_mend() -> None:
    with pytest.raises(BadInput, match="only="):
        compatibility.check(Recipe.parse("lut-gemm(bits=3) + int8"))
    compatibility.check(Recipe.parse('lut-gemm(bits=3, only="*.mlp.*") + int8(only="*.attention.*")'))


def test_a_need_the_model_lacks_is_named() -> None:
    with pytest.raises(BadInput, match="static_weights"):
        compatibility.check(Recipe.parse("lut-gemm"), frozenset())


def test_an_unknown_slot_names_the_known() -> None:
    with pytest.raises(BadInput, match="weights"):
        slot("wights")
