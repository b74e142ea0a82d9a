"""ProxylessNAS searches: all modes move alphas, Ctrl-C loses nothing, and the verb saves what it found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from searching import Stops, images, subject, table

from headway.cli.main import main
from headway.core.artifact import write_artifact
from headway.core.errors import BadInput, HeadwayError
from headway.core.evidence import Evidence
from headway.core.module_origin import build_family
from headway.optimize.api import load, search
from headway.vision.search import family
from headway.vision.search.layerwise import d400
from headway.vision.search.proxylessnas import ProxylessSettings, searched

STEPS = {"steps": 12, "batch": 8, "warmup": 0.25, "arch_every": 2, "arch_batch": 8, "final_steps": 3, "final_batch": 8}


def settings(**more: object) -> ProxylessSettings:
    return ProxylessSettings.parse({**STEPS, **more}, "proxylessnas")


@pytest.mark.parametrize("mode", ["two", "full_v2", "full", "reinforce"])
def test_every_mode_moves_alphas_and_weights(mode: str, tmp_path: Path) -> None:
    about = subject("proxylessnas", d400(), settings(mode=mode), tmp_path)
    net = searched(about, settings(mode=mode), 1e-3)
    assert all(bool((alpha.detach().abs() > 0.01).any()) for alpha in net.alphas)
    assert all(p.sum() == pytest.approx(1) for p in net.probabilities())


def test_latency_in_the_loss_chooses_the_cheap(tmp_path: Path) -> None:
    chosen = settings(lambda_=1000.0, steps=40, arch_lr=0.3)
    net = searched(subject("proxylessnas", d400(), chosen, tmp_path), chosen, 1e-3)
    cheapest = [layer.ops.index("skip") if "skip" in layer.ops else 0 for layer in d400().layers]
    costs = [p[k] for p, k in zip(net.probabilities(), cheapest, strict=True)]
    assert costs[0] > 0.5 and costs[2] > 0.5


@pytest.mark.parametrize("mode", ["full_v2", "reinforce"])
def test_a_search_that_was_stopped_ends_as_one_that_was_not(mode: str, tmp_path: Path) -> None:
    chosen = settings(mode=mode)
    whole = searched(subject("proxylessnas", d400(), chosen, tmp_path / "whole"), chosen, 1e-3).state_dict()
    stopped = subject("proxylessnas", d400(), chosen, tmp_path / "stopped", Stops("searching", 7))
    with pytest.raises(KeyboardInterrupt):
        searched(stopped, chosen, 1e-3)
    assert list((tmp_path / "stopped").glob("*.pt"))
    again = searched(subject("proxylessnas", d400(), chosen, tmp_path / "stopped"), chosen, 1e-3).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not list((tmp_path / "stopped").glob("*.pt"))


def test_a_logarithm_of_too_little_is_refused(tmp_path: Path) -> None:
    chosen = settings(reg="mul_log")
    with pytest.raises(BadInput, match="add_linear"):
        searched(subject("proxylessnas", d400(), chosen, tmp_path), chosen, 2e-6)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of its own, a table that nobody measured, and a file of images."""
    monkeypatch.setattr(family, "table_of", lambda macro, batch, context: table(macro))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = images()
    pixels = np.concatenate([s.images.numpy() for s in (made.train, made.valid, made.test)])
    labels = np.concatenate([s.labels.numpy() for s in (made.train, made.valid, made.test)])
    np.savez(tmp_path / "mine.npz", images=pixels, labels=labels)
    return tmp_path


def test_the_verb_saves_a_network_that_load_gives_back(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "proxylessnas", "d400", "--budget", "latency<=1s, quality>=0.0001", "--json", "--threads", "1"]
    words += ["--data", str(quick / "mine.npz"), "-o", str(quick / "net")]
    words += [word for name, value in STEPS.items() for word in ("--set", f"{name}={value}")]
    code = main(words)
    document = json.loads(capsys.readouterr().out)
    assert document["met"] is (code == 0) and set(document["winner"]["measured"]) >= {
        "latency_s",
        "quality",
        "accuracy",
    }
    assert document["winner"]["recipe"][0]["settings"]["space"] == "d400" and document["front"]
    model = load(document["artifact"])
    assert str(model.origin).startswith("family:proxylessnas(space=") and model.run(
        torch.zeros(1, 1, 16, 16)
    ).shape == (1, 10)
    page = Path(document["report"]).read_text()
    assert "genotype" in page and Path(document["evidence"]).is_file()


def test_what_cannot_be_searched_is_refused_before_anything_runs(quick: Path) -> None:
    for call, said in (
        (("lut-gemm", "d400"), "searches no networks"),
        (("proxylessnas", "mars"), "no space 'mars'"),
        (("proxylessnas", "d400", "ttft<=1s"), "cannot search under"),
        (("proxylessnas", "d400", "", ("steps=0",)), "steps"),
        (("proxylessnas", "mbv2"), "--data"),
    ):
        with pytest.raises(BadInput, match=said):
            search(*call, threads=1)  # type: ignore[arg-type]
    with pytest.raises(HeadwayError, match="below the fastest") as caught:
        search("proxylessnas", "d400", "latency<=1ns", threads=1)
    assert caught.value.exit_code == 1


def test_a_published_net_is_a_model_and_comes_back_from_its_artifact(tmp_path: Path) -> None:
    model = build_family("proxylessnas(variant=mobile, channels=1, classes=7, size=32)")
    evidence = Evidence("search", "proxylessnas", {"name": "here", "fingerprint": "f"}, 0, 1)
    write_artifact(tmp_path / "net", model, "system = []\n", evidence)
    again = load(tmp_path / "net")
    image = torch.randn(2, 1, 32, 32)
    assert torch.equal(again.run(image), model.run(image)) and again.run(image).shape == (2, 7)
    assert again.fingerprint() == model.fingerprint()


@pytest.mark.parametrize(
    "text",
    ["proxylessnas(genotype='1=k3e1')", "proxylessnas(space=mbv9, genotype='1=k3e1')", "proxylessnas(space=d400)"],
)
def test_what_names_no_network_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        build_family(text)
