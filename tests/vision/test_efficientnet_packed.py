"""The plain weight references apply to the 1x1 convolutions and the classifier of EfficientNet-Lite0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headway.core.module_model import ModuleModel, load_saved
from headway.core.packed_modules import PackedConv1x1, PackedLinear
from headway.core.registry import system
from headway.core.system import Context
from headway.vision.data import pattern
from headway.vision.efficientnet_lite import efficientnet_lite0

PIECES = 5


@pytest.fixture(scope="module")
def model() -> ModuleModel:
    return efficientnet_lite0()


@pytest.mark.parametrize(
    ("slug", "settings", "least", "most_bytes"), [("int8", {}, 0.9, 0.31), ("int4", {"quantizer": "rtn"}, 0.7, 0.2)]
)
def test_every_site_runs_its_kernel_and_classes_mostly_stay(
    model: ModuleModel, slug: str, settings: dict[str, str], least: float, most_bytes: float
) -> None:
    workload = model.workload()
    found = system(slug)
    packed = found.apply(model, found.settings.parse(settings, slug), Context(None, threads=1))  # type: ignore[arg-type, attr-defined]
    kinds = [type(packed.runtime.get_submodule(site.name)) for site in packed.sites()]
    assert kinds == [PackedConv1x1] * 32 + [PackedLinear]
    pieces = workload.heldout[:PIECES]
    scores = np.concatenate([workload.agreement(model.run(x), packed.run(x)) for x in pieces])
    assert packed.kernel_calls() == 33 * PIECES
    assert scores.mean() >= least
    assert packed.size_bytes() < most_bytes * model.size_bytes()


def test_a_packed_network_saves_and_loads_bit_for_bit(model: ModuleModel, tmp_path: Path) -> None:
    found = system("int8")
    settings = found.settings.parse({"skip": ["blocks.0.*", "classifier"]}, "int8")
    packed = found.apply(model, settings, Context(None, threads=1))  # type: ignore[arg-type, attr-defined]
    assert len(packed.packed_weights()) == 31
    packed.save(tmp_path)
    loaded = load_saved(tmp_path)
    assert torch.equal(loaded.run(pattern(224)), packed.run(pattern(224)))
    assert loaded.fingerprint() == packed.fingerprint() != model.fingerprint()
    weights = (tmp_path / "module.safetensors").stat().st_size
    assert packed.size_bytes() <= weights - 4 * 3 * 224 * 224 <= 1.02 * packed.size_bytes()
