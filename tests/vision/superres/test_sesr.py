"""SESR against the published counts, the released arithmetic and its own collapsed form."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import headway
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.vision.count import count
from headway.vision.fold import fold, relative_error
from headway.vision.superres.linear_block import LinearBlock, delta_of
from headway.vision.superres.network import CONFIGS, SESR, Config, depth_to_space
from headway.vision.superres.sesr import Sesr, SesrSettings

COUNTS = {  # card, "Published sizes": weights of convolutions and multiply-adds in G for 1280x720, x2 then x4
    "m3": (8_912, 2.05, 13_712, 0.79),
    "m5": (13_520, 3.11, 18_320, 1.05),
    "m7": (18_128, 4.17, 22_928, 1.32),
    "m11": (27_344, 6.30, 32_144, 1.85),
    "xl": (105_376, 24.27, 114_976, 6.62),
}
TINY = Config(2, 6, 10)


def lively(net: SESR, seed: int = 0) -> SESR:
    """Slopes that differ by channel and weights that are not small."""
    random = torch.Generator().manual_seed(seed)
    for activation in net.activations:
        nn.init.uniform_(activation.weight, -0.5, 0.5, generator=random)
    return net


def convolution_weights(net: nn.Module) -> int:
    return sum(child.weight.numel() for child in net.modules() if isinstance(child, nn.Conv2d))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("variant", CONFIGS)
def test_counts_are_the_published_ones(variant: str, scale: int) -> None:
    weights, macs = COUNTS[variant][scale - 2 :][:2]
    config = CONFIGS[variant]
    short = fold(SESR(config, scale)).to("meta")
    counts = count(short, torch.zeros(1, 1, 720 // scale, 1280 // scale, device="meta"))
    assert convolution_weights(short) == weights
    assert counts.macs == weights * (1280 // scale) * (720 // scale)
    assert abs(counts.macs / 1e9 - macs) < 0.01  # printed rounded or cut off
    assert counts.stored == weights + config.blocks * config.features


def test_a_training_step_costs_what_the_readme_prints() -> None:
    net = SESR(CONFIGS["m5"])
    batch = torch.zeros(32, 1, 64, 64, device="meta")
    wide = count(copy.deepcopy(net).expanded().to("meta"), batch).macs
    narrow = count(fold(net).to("meta"), batch).macs
    blocks = [child for child in net.modules() if isinstance(child, LinearBlock)]
    collapse = sum(count(nn.Sequential(b.expand, b.project), delta_of(b)).macs for b in blocks)
    assert (wide, narrow + collapse) == (32 * 4096 * 318_720, 32 * 4096 * 13_520 + 5 * 5_898_240 + 262_400 + 41_369_600)
    assert (wide // 10**7, (narrow + collapse) // 10**7) == (4177, 184)  # printed cut off


@pytest.mark.parametrize("scale", [2, 4])
def test_expanded_collapsed_and_folded_agree_with_the_released_arithmetic(scale: int) -> None:
    net = lively(SESR(CONFIGS["m3"], scale)).eval()
    x = torch.rand(2, 1, 13, 18, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = net(x)
        assert (copy.deepcopy(net).expanded()(x) - out).abs().max() < 1e-5
        assert (fold(net)(x) - out).abs().max() < 1e-5
        assert (released(net, x, scale) - out).abs().max() < 1e-5


def released(net: SESR, x: torch.Tensor, scale: int) -> torch.Tensor:
    """`models/sesr.py` step by step, with TensorFlow's depth_to_space written out."""

    def run(block: LinearBlock, given: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(given, block.collapse()[0], padding=block.expand.kernel_size[0] // 2)

    features = start = run(net.first, x - 0.5)
    for block, activation in zip(net.blocks, net.activations, strict=True):
        features = run(block, features)
        slope = activation.weight[None, :, None, None]
        features = features.clamp_min(0.0) + slope * features.clamp_max(0.0)
    features = run(net.last, features + start) + x
    image = features.permute(0, 2, 3, 1).numpy()
    while image.shape[-1] > 1:
        n, h, w, c = image.shape
        parts = image.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
        image = np.ascontiguousarray(parts).reshape(n, 2 * h, 2 * w, c // 4)
    assert image.shape[1] == scale * x.shape[2]
    return torch.from_numpy(image.transpose(0, 3, 1, 2)).clamp(0.0, 1.0)


def test_a_step_of_training_is_the_same_in_both_forms() -> None:
    short = lively(SESR(TINY)).train()
    long = copy.deepcopy(short).expanded()
    x, y = torch.rand(4, 1, 12, 12), torch.rand(4, 1, 24, 24)
    for net in (short, long):
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-4, amsgrad=True, eps=1e-3)
        nn.functional.l1_loss(net(x), y).backward()
        optimizer.step()
    for a, b in zip(short.parameters(), long.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert relative_error(b.grad, a.grad) < 1e-4
        assert torch.allclose(a, b, atol=1e-6)


def test_interleaving_is_undone_by_taking_every_other_pixel() -> None:
    maps = torch.rand(1, 8, 3, 5)
    out = depth_to_space(maps)
    found = torch.cat([out[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    assert torch.equal(found, maps)


def test_outputs_are_clipped_only_outside_training() -> None:
    net = SESR(TINY)
    with torch.no_grad():
        net.last.project.weight.mul_(20.0)
        x = torch.rand(1, 1, 9, 9)
        raw = net.train()(x)
        assert raw.max() > 1.0 and raw.min() < 0.0
        assert torch.equal(net.eval()(x), raw.clamp(0.0, 1.0))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (5, 3)])
def test_pictures_smaller_than_the_receptive_field_are_taken(size: tuple[int, int]) -> None:
    assert SESR(TINY, 4)(torch.rand(1, 1, *size)).shape == (1, 1, 4 * size[0], 4 * size[1])


def test_an_output_depends_on_no_pixel_beyond_the_radius() -> None:
    net = lively(SESR(TINY)).train()
    x = torch.rand(1, 1, 25, 25, requires_grad=True)
    net(x)[0, 0, 24:26, 24:26].sum().backward()
    assert x.grad is not None
    seen = x.grad[0, 0].nonzero()
    assert net.radius == 6 and (seen.amin(0) >= 12 - 6).all() and (seen.amax(0) <= 12 + 6).all()
    assert x.grad[0, 0, 6].any()


def test_as_a_model_it_saves_loads_and_takes_weights_of_both_forms(tmp_path: Path) -> None:
    model = headway.load("sesr(variant=m3, height=20, width=24)")
    x = torch.rand(1, 1, 20, 24)
    assert model.run(x).shape == (1, 1, 40, 48)
    assert not any(isinstance(child, LinearBlock) for child in model.module().modules())
    model.save(tmp_path / "saved")
    assert torch.equal(ModuleModel.load(tmp_path / "saved").run(x), model.run(x))
    net = lively(SESR(CONFIGS["m3"]), 3).eval()
    for name, form in {"long": net, "short": fold(net)}.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(form.state_dict(), path)
        loaded = Sesr().build(SesrSettings(variant="m3", weights=str(path), height=20, width=24))
        assert (loaded.run(x) - net(x)).abs().max() < 1e-5


def test_bad_input_is_named() -> None:
    with pytest.raises(BadInput, match="choose 2 or 4"):
        SESR(TINY, 3)
    with pytest.raises(BadInput, match=r"it takes luma, \(n, 1, height, width\)"):
        SESR(TINY)(torch.rand(1, 3, 8, 8))
    with pytest.raises(BadInput, match="both weights and steps"):
        headway.load("sesr(weights=a.pth, steps=9)")
    with pytest.raises(BadInput, match="scale"):
        headway.load("sesr(scale=3)")
