"""The bars of the proof that need no training."""

from __future__ import annotations

from headway.core.evidence import Evidence
from headway.vision.superres import sesr_proof


def test_the_collapse_and_the_counts_meet_their_bars() -> None:
    evidence = Evidence("prove", "sesr", {"name": "m", "fingerprint": "f"}, seed=0, threads=1)
    sesr_proof.exactness(evidence)
    sesr_proof.counts(evidence)
    assert len(evidence.bars) == 3 + 10 + 2 and evidence.met
