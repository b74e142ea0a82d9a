"""Whatever a user calls a model becomes one, and the model knows what it was called."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import headway
from headway.core.evidence import Evidence

NET = """
import torch

def make():
    return torch.nn.Linear(3, 3), torch.ones(1, 3)
"""


def test_a_function_in_the_folder_one_is_in_makes_a_model_that_says_how_to_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net_lying_here.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    model = headway.load("python:net_lying_here:make")
    assert model.given == "python:net_lying_here:make"
    model.save("saved")
    monkeypatch.delitem(sys.modules, "net_lying_here")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    again = type(model).load(Path("saved"), allow_code=True)
    assert again.fingerprint() == model.fingerprint()


def test_evidence_keeps_what_the_model_was_loaded_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "net_lying_there.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    model = headway.load("python:net_lying_there:make")
    evidence = Evidence("apply", "m", {"name": "here", "fingerprint": "f"}, 0, 1).about(model)
    assert json.loads(json.dumps(evidence.to_json()))["model"]["given"] == "python:net_lying_there:make"
    evidence.about(headway.load(*__import__("net_lying_there").make()))
    assert "given" not in evidence.model


def test_a_function_may_give_a_model_that_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "loaded_net.py").write_text(NET + "def load():\n    import headway\n    return headway.load(*make())\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = headway.load("python:loaded_net:load")
    assert model.task == "module" and model.given == "python:loaded_net:load"
