"""What holds for every family: timm's interface, registration, artifacts, ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import headway
from headway.core.cache import StepCache
from headway.core.errors import BadFile, BadInput
from headway.core.module_model import ModuleModel
from headway.core.registry import system
from headway.core.timm_library import timm_library
from headway.optimize.engines.onnxruntime import OnnxRuntime
from headway.vision.backbones import efficientmod, patnet, shvit
from headway.vision.backbones.base import Backbone, BackboneFamily
from headway.vision.backbones.efficientmod import EfficientMod
from headway.vision.backbones.patnet import PATNet
from headway.vision.backbones.shvit import SHViT
from headway.vision.checkpoint import read_checkpoint
from headway.vision.fold import fold, randomise_norms, relative_error

SMALLEST = {"shvit": "s1", "efficientmod": "xxs", "patnet": "t0"}
TINY: dict[str, Callable[[], Backbone]] = {
    "shvit": lambda: SHViT(shvit.Config((32, 48), (1, 1), (0, 10), stem=(8, 16, 32)), 6),
    "efficientmod": lambda: EfficientMod(efficientmod.Config((8, 16), (2, 1), (0, 1)), 6),
    "patnet": lambda: PATNet(patnet.Config(16, (1, 1)), 6),
}
SIZE = 96


def family(slug: str) -> BackboneFamily[Any]:
    return system(slug)  # type: ignore[return-value]


@pytest.fixture(params=SMALLEST)
def slug(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_interface_is_that_of_timm(slug: str) -> None:
    net: Backbone = family(slug).variant(SMALLEST[slug], num_classes=7).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    features = net.forward_features(x)
    assert features.shape[:2] == (2, net.num_features)
    assert torch.equal(net.forward_head(features), net(x)) and net(x).shape == (2, 7)
    assert net.forward_head(features, pre_logits=True).shape == (2, net.head_hidden_size)
    last, maps = net.forward_intermediates(x)
    assert torch.equal(last, features)
    for info, found in zip(net.feature_info, maps, strict=True):
        assert found.shape == (2, info["num_chs"], *[-(-SIZE // int(info["reduction"]))] * 2)
    pyramid = net.features_only((1, -1))
    assert [torch.equal(a, b) for a, b in zip(pyramid(x), (maps[1], maps[-1]), strict=True)] == [True, True]
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)
    net.reset_classifier(0)
    assert net(x).shape == (2, net.head_hidden_size)
    net.reset_classifier(0, "")
    assert torch.equal(net(x), features)
    for wrong in (9, [17], []):
        with pytest.raises(BadInput, match="no stages"):
            net.features_only(wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"images are \(n, 3, height, width\)"):
        net(x[:, :1])


def test_timm_builds_every_variant_by_name_and_keeps_its_own(slug: str) -> None:
    timm = timm_library()
    own = {name: timm.models._registry._model_entrypoints[name] for name in timm.list_models()}
    from headway.vision import timm_models

    assert all(timm.models._registry._model_entrypoints[name] is entry for name, entry in own.items())
    assert timm_models.register() == [], "a second call changes nothing"
    names = {name for name in timm.list_models() if name.startswith(f"headway_{slug}_")}
    assert names == {f"headway_{slug}_{variant}" for variant in family(slug).variants()}
    name = f"headway_{slug}_{SMALLEST[slug]}"
    net = timm.create_model(name, num_classes=4, in_chans=1).eval()
    assert net(torch.randn(1, 1, SIZE, SIZE)).shape == (1, 4) and net.get_submodule(net.default_cfg["classifier"])
    maps = timm.create_model(name, features_only=True, out_indices=(0, 1)).eval()
    channels = [found.shape[1] for found in maps(torch.randn(1, 3, SIZE, SIZE))]
    assert channels == maps.feature_info.channels() and len(channels) == 2
    with pytest.raises(BadInput, match="no weights to fetch"):
        timm.create_model(name, pretrained=True)


def test_an_artifact_is_built_again_from_its_settings(slug: str, tmp_path: Path) -> None:
    text = f"{slug}(variant={SMALLEST[slug]}, num_classes=6, image_size={SIZE})"
    model = headway.load(text)
    assert isinstance(model, ModuleModel) and headway.load(text).fingerprint() == model.fingerprint()
    model.save(tmp_path)
    again = ModuleModel.load(tmp_path)
    assert str(again.origin) == str(model.origin) and "weights" not in str(model.origin)
    assert torch.equal(again.run(model.sample), model.run(model.sample))


def test_the_inference_form_equals_the_plain_one_and_onnxruntime_agrees(slug: str, tmp_path: Path) -> None:
    plain = randomise_norms(TINY[slug]()).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    short = ModuleModel(fold(plain), x)
    exact = short.run(x)
    assert relative_error(plain(x), exact) < 1e-5
    assert not any(isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)) for child in short.module().modules())
    engine = OnnxRuntime(short, 1, StepCache(tmp_path))
    assert relative_error(exact, engine.run((x,))) < 1e-5
    assert relative_error(short.run(x[:1]), engine.run((x[:1],))) < 1e-5, "the batch is free"


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.safetensors", b"\x10\0\0\0\0\0\0\0{"), ("b.pth", b"PK\x03\x04 no zip"), ("c.pth", b"text"), ("d.pth", b"")],
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=r"not a checkpoint|no tensors"):
        read_checkpoint(tmp_path / name)
    with pytest.raises(BadInput, match="no checkpoint"):
        read_checkpoint(tmp_path / "nowhere.pth")


def test_a_checkpoint_cannot_run_code_and_wrappers_are_taken_off(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.a": torch.ones(2)}, "args": print}, tmp_path / "evil.pth")
    with pytest.raises(BadFile, match="not a checkpoint"):
        read_checkpoint(tmp_path / "evil.pth")
    torch.save({"epoch": 1, "state_dict": {"module.a": torch.ones(2)}}, tmp_path / "good.pth")
    assert list(read_checkpoint(tmp_path / "good.pth")) == ["a"]
