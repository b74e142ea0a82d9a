"""The plain weight references apply to MiniLM through the same code as to any model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headway.core.module_model import ModuleModel, load_saved
from headway.core.packed_modules import PackedLinear
from headway.core.registry import system
from headway.core.system import Context
from headway.retrieval.minilm import embed, minilm_l6

PIECES = 4


@pytest.fixture(scope="module")
def model() -> ModuleModel:
    return minilm_l6()


@pytest.mark.parametrize(
    ("slug", "settings", "least", "most_bytes"),
    [
        ("int8", {}, 0.999, 0.66),
        ("int4", {"quantizer": "rtn"}, 0.93, 0.60),
        ("int4", {"quantizer": "gptq"}, 0.97, 0.60),
    ],
)
def test_every_site_runs_its_kernel_and_vectors_stay_near(
    model: ModuleModel, slug: str, settings: dict[str, str], least: float, most_bytes: float
) -> None:
    workload = model.workload()
    found = system(slug)
    context = Context(None, calibration=workload.calibration[:4], threads=1)  # type: ignore[arg-type]
    packed = found.apply(model, found.settings.parse(settings, slug), context)  # type: ignore[attr-defined]
    assert len(packed.packed_weights()) == len(model.sites()) == 36
    assert {weight.form for weight in packed.packed_weights().values()} == {slug}
    pieces = workload.heldout[:PIECES]
    scores = np.concatenate([workload.agreement(model.run(x), packed.run(x)) for x in pieces])
    assert packed.kernel_calls() == 36 * PIECES
    assert least < scores.mean() < 1.0
    assert packed.size_bytes() < most_bytes * model.size_bytes()
    assert not any(isinstance(child, PackedLinear) for child in model.runtime.modules())


def test_a_packed_encoder_saves_and_loads_bit_for_bit(model: ModuleModel, tmp_path: Path) -> None:
    found = system("int4")
    settings = found.settings.parse({"quantizer": "rtn", "only": "layers.*.up"}, "int4")
    packed = found.apply(model, settings, Context(None, threads=1))  # type: ignore[arg-type, attr-defined]
    assert len(packed.packed_weights()) == 6
    packed.save(tmp_path)
    loaded = load_saved(tmp_path)
    texts = ["One sentence.", "Another sentence, a longer one."]
    assert torch.equal(embed(loaded, texts), embed(packed, texts))
    assert loaded.fingerprint() == packed.fingerprint() != model.fingerprint()
