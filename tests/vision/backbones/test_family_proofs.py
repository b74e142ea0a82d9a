"""The small nets that the proofs train cost what they should, and scores are compared with their errors."""

from __future__ import annotations

import pytest

from headway.vision.backbones import efficientmod_proof, patnet_proof, shvit_proof
from headway.vision.backbones.patnet_mixers import ChannelMixer
from headway.vision.backbones.proof_parts import Score, counts_of


def macs(net: object, size: int) -> float:
    return counts_of(net, size, 1).layer_macs / 1e6  # type: ignore[arg-type]


def test_nets_on_letters_cost_what_the_cards_say() -> None:
    mini, partial = patnet_proof.mini, (patnet_proof.Partial,)
    assert [round(macs(net, 24), 2) for net in (mini(), mini(28, False, partial), mini(24, False, partial))] == [
        2.76, 3.08, 2.27,
    ]  # fmt: skip
    assert macs(mini(24, True, (ChannelMixer,)), 24) < macs(mini(), 24) < macs(mini(28, False, partial), 24)
    product, added, alone = (
        macs(efficientmod_proof.mini(block), 20)
        for block in (efficientmod_proof.Modulation, efficientmod_proof.Sum, efficientmod_proof.NoContext)
    )
    assert product == added > alone
    assert macs(efficientmod_proof.mobilenet(), 20) == pytest.approx(product, rel=0.03)
    single, none, four = (
        macs(net, 40)
        for net in (shvit_proof.mini(), shvit_proof.mini(attention=False), shvit_proof.mini(shvit_proof.FourHeads))
    )
    assert none < single < four


def test_a_difference_has_the_error_of_both_means() -> None:
    ours, other = Score((50.0, 52.0, 54.0), 2600), Score((40.0, 40.0, 43.0), 2600)
    points, error = ours.over(other)
    assert points == pytest.approx(11.0) and error == pytest.approx(((4.0 + 3.0) / 3) ** 0.5)
    assert Score((50.0,), 2600).variance_of_mean == pytest.approx(2500 / 2600), "of one seed: the test's own"
