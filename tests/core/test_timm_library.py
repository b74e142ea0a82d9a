"""timm's networks without torchvision, and nothing in its place afterwards."""

import importlib.util
import sys

import pytest
import torch

from headway.core.errors import Lacking
from headway.core.timm_library import timm_library


def test_networks_of_timm_run_and_no_stand_in_stays_behind() -> None:
    timm = timm_library()
    net = timm.create_model("fasternet_t0", num_classes=3).eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    if importlib.util.find_spec("torchvision") is None:
        assert not any(name.partition(".")[0] == "torchvision" for name in sys.modules)
    assert not any(type(finder).__module__ == timm_library.__module__ for finder in sys.meta_path)


def test_a_missing_timm_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Lacking, match=r"a proof needs the Python package 'timm'.*; run: pip install --no-deps timm"):
        timm_library("a proof")
