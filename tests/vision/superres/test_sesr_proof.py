"""The bars of the proof: those that hold without training, and that the others can be judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.core.evidence import Evidence
from headway.core.proof import ProofContext
from headway.vision.superres import sesr_proof
from headway.vision.superres.training import Recipe


def test_the_collapse_and_the_counts_meet_their_bars() -> None:
    evidence = Evidence("prove", "sesr", {"name": "m", "fingerprint": "f"}, seed=0, threads=1)
    sesr_proof.exactness(evidence)
    sesr_proof.counts(evidence)
    assert len(evidence.bars) == 3 + 10 + 2 and evidence.met


def test_quality_and_tiles_are_judged_on_networks_that_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWAY_HOME", str(tmp_path))
    monkeypatch.setattr(sesr_proof, "LEARNED", Recipe(steps=3, batch=2, patch=12))
    monkeypatch.setattr(sesr_proof, "FRAME", (24, 32))
    evidence = Evidence("prove", "sesr", {"name": "m", "fingerprint": "f"}, seed=0, threads=1)
    context = ProofContext(target=None, load=None, quick=True)  # type: ignore[arg-type]
    sesr_proof.deployment(evidence, context, sesr_proof.quality(evidence, context))
    met = {bar.name.partition(":")[0]: bar.met for bar in evidence.bars}
    assert len(evidence.bars) == 7 and met["exact"]
    assert not evidence.bars[0].met  # three steps are no training
