"""A search space counts, draws, encodes and reads back its genotypes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.errors import BadInput
from headway.vision.search import apq_nets, fbnet_nets, ofa_nets, proxylessnas_nets
from headway.vision.search.layerwise import d400
from headway.vision.search.network import Macro
from headway.vision.search.space import Choice, SearchSpace


def test_sizes_are_the_papers() -> None:
    assert fbnet_nets.fbnet22().space.size() == 9**22
    assert proxylessnas_nets.mbv2().space.size() == 6**6 * 7**15
    assert ofa_nets.mbv3().space.size() == 21_758_655_492_572_485_851 * 25
    assert d400().space.size() == ofa_nets.mini().space.size() == 400


def test_apq_encodes_520_and_772_bits_with_the_published_counts_of_widths() -> None:
    macro = apq_nets.mbv2()
    assert [len(macro.middles(t)) for t in (16, 24, 40, 80, 96, 192)] == [5, 7, 11, 21, 25, 49]
    assert (apq_nets.without_bits(macro).space.width, macro.space.width) == (520, 772)


def test_a_thousand_genotypes_of_apq_come_back_from_their_encoding() -> None:
    macro = apq_nets.mbv2()
    space, rng = macro.space, random.Random(0)
    assert len(macro.places) == 21
    for _ in range(1_000):
        genotype = space.random(rng)
        assert space.decode(space.encode(genotype)) == genotype
        assert not any(genotype.get(f"k{p.name}") == 7 and genotype[f"dwa{p.name}"] == 4 for p in macro.places)


@pytest.mark.parametrize("macro", [d400(), ofa_nets.mini()], ids=["layerwise", "stagewise"])
def test_enumeration_names_every_genotype_once(macro: Macro) -> None:
    space = macro.space
    texts = [space.text(genotype) for genotype in space.enumerate()]
    assert len(texts) == len(set(texts)) == space.size()


@given(st.integers(0, 2**32))
def test_a_genotype_comes_back_from_its_text_and_builds_its_net(seed: int) -> None:
    macro = ofa_nets.mbv3()
    genotype = macro.space.random(random.Random(seed))
    assert macro.space.parse(macro.space.text(genotype)) == genotype
    blocks = sum(int(genotype[f"d{stage}"]) for stage in range(1, 6))
    assert len(macro.net(genotype).blocks) == blocks + 1 and macro.net(genotype).size == genotype["r"]


def test_what_is_wrong_is_named() -> None:
    space = d400().space
    for text, name in (("1=k3e1 2=k3e1", "3"), ("1=k9e1 2=skip 3=k3e1 4=skip", "1=k9e1"), ("7=k3e1", "7=k3e1")):
        with pytest.raises(BadInput, match=name):
            space.parse(text)
    with pytest.raises(BadInput, match="before"):
        SearchSpace([Choice("k", (3, 5), ("d", (2,))), Choice("d", (1, 2))])
    macro = apq_nets.mbv2()
    with pytest.raises(BadInput, match="forbidden"):
        macro.space.check({**macro.extreme(True), "k1.1": 7, "dwa1.1": 4})
