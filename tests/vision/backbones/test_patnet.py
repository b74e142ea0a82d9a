"""PATNet against the counts of the released code, brute force and its own inference form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.timm_library import timm_library
from headway.vision.backbones.patnet import CONFIGS, Config, PATNet, Patnet, PatnetSettings, SpatialAttention
from headway.vision.backbones.patnet_mixers import ChannelGate, PixelAttention, distance_index
from headway.vision.count import count
from headway.vision.fold import fold, randomise_norms, relative_error

TINY = Config(16, (1, 1, 2, 1), gelu=True, drop_path=0.1)

COUNTS = {  # card, "Counts": parameters without and with PAT_sp, multiply-adds of layers without and with
    "t0": (3_486_160, 3_558_240, 230_768_768, 241_418_624),
    "t1": (5_985_552, 6_144_552, 513_771_296, 537_573_536),
    "t2": (12_269_816, 12_650_424, 1_025_211_392, 1_070_670_848),
    "s": (28_013_304, 28_975_704, 2_693_494_016, 2_817_190_400),
    "m": (59_179_000, 61_366_776, 6_658_095_104, 6_980_827_136),
    "l": (100_641_336, 104_465_336, 11_863_105_280, 12_447_404_800),
}


def spatial_macs(config: Config, size: int = 224) -> int:
    """What the gates of PAT_sp cost once everything else is folded: C/2 a pixel and block."""
    maps = [(config.width * 2**i, (size // (4 * 2**i)) ** 2) for i in range(4)]
    return sum(depth * width // 2 * pixels for depth, (width, pixels) in zip(config.depths, maps, strict=True))


@pytest.mark.parametrize("variant", CONFIGS)
def test_counts_are_those_of_the_released_code(variant: str) -> None:
    with torch.device("meta"):
        found = [
            count(PATNet(CONFIGS[variant], spatial_attention=sp), torch.zeros(1, 3, 224, 224)) for sp in (False, True)
        ]
    assert (*(c.trainable for c in found), *(c.layer_macs for c in found)) == COUNTS[variant]


def test_merging_leaves_half_the_channels_a_pixel_of_spatial_attention() -> None:
    short = fold(PATNet(CONFIGS["t0"])).to("meta")
    macs = count(short, torch.zeros(1, 3, 224, 224, device="meta")).layer_macs
    assert macs == COUNTS["t0"][2] + spatial_macs(CONFIGS["t0"])


def test_six_heads_cost_162_parameters_a_block_of_the_last_stage() -> None:
    with torch.device("meta"):
        four, six = (PATNet(CONFIGS["t2"], heads=heads) for heads in (4, 6))
    assert sum(p.numel() for p in six.parameters()) - sum(p.numel() for p in four.parameters()) == 162 * 4


@pytest.mark.parametrize(("name", "parameters", "macs"), [("fasternet_t0", 3_905_500, 335_422_720)])
def test_the_counter_gives_the_baselines_published_figures(name: str, parameters: int, macs: int) -> None:
    counts = count(timm_library().create_model(name).to("meta"), torch.zeros(1, 3, 224, 224, device="meta"))
    assert (counts.trainable, counts.layer_macs) == (parameters, macs)


@pytest.mark.parametrize("spatial", [True, False])
def test_the_inference_form_is_exact_and_has_no_batch_norm(spatial: bool) -> None:
    net = randomise_norms(PATNet(TINY, 5, spatial_attention=spatial)).eval()
    short, x = fold(net), torch.randn(2, 3, 96, 64)
    assert relative_error(net(x), short(x)) <= 5e-6
    assert not any(isinstance(child, nn.BatchNorm2d) for child in short.modules())


def test_a_norm_with_a_scale_of_zero_is_kept() -> None:
    net = randomise_norms(PATNet(TINY, 5)).eval()
    part = net.stages[1].blocks[0].mlp.spatial
    assert isinstance(part, SpatialAttention)
    with torch.no_grad():
        part.norm.weight[3] = 0.0
    short, x = fold(net), torch.randn(2, 3, 64, 64)
    assert sum(isinstance(child, nn.BatchNorm2d) for child in short.modules()) == 1
    assert relative_error(net(x), short(x)) <= 5e-6


def test_gates_read_means_and_sample_deviations_and_survive_one_pixel() -> None:
    gate = randomise_norms(ChannelGate(6)).eval()
    x = torch.randn(3, 6, 4, 5)
    mean, deviation = x.flatten(2).mean(-1), x.flatten(2).std(-1)  # divisor: pixels - 1
    weight = gate.conv.weight[:, :, 0]
    z = mean @ weight[..., 0].T + deviation @ weight[..., 1].T
    expected = ((gate.norm(z[:, :, None, None]) / 6 + 0.5).clamp(0, 1)).squeeze()
    assert torch.allclose(gate(x).squeeze(), expected, atol=1e-6)
    one = torch.randn(2, 6, 1, 1, requires_grad=True)
    gate(one).sum().backward()
    assert torch.isfinite(gate(one)).all() and torch.isfinite(one.grad).all()  # type: ignore[arg-type]
    half = ChannelGate(4).half().eval()(torch.full((1, 4, 64, 64), 200.0).half())
    assert torch.isfinite(half).all()


def test_attention_between_pixels_equals_its_formula() -> None:
    attention = PixelAttention(8, 2).eval()
    with torch.no_grad():
        attention.position.normal_()
    x = torch.randn(2, 8, 3, 4)
    q, k, v = attention.qkv(x.flatten(2).mT).chunk(3, -1)
    out = torch.empty(2, 12, 8)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        logits = q[..., part] * 4**-0.5 @ k[..., part].mT
        for i in range(12):
            for j in range(12):
                distance = ((i // 4 - j // 4) ** 2 + (i % 4 - j % 4) ** 2) ** 0.5
                logits[:, i, j] += attention.position[head, 40 + round(distance)]
        out[..., part] = logits.softmax(-1) @ v[..., part]
    assert torch.allclose(attention(x).flatten(2).mT, attention.proj(out), atol=1e-5)
    assert attention.attention_macs(x) == 2 * 2 * 12 * 12 * 8


def test_far_pixels_share_buckets_and_none_leaves_the_table() -> None:
    index = distance_index(30, 40)
    assert int(index.min()) == 40 and int(index.max()) <= 80
    row = distance_index(1, 200)[0]
    assert row[:21].tolist() == list(range(40, 61)) and bool((row[1:] >= row[:-1]).all())


def test_only_the_first_channels_are_convolved_and_stages_differ_in_residuals() -> None:
    net = randomise_norms(PATNet(TINY, 5)).eval()
    block = net.stages[0].blocks[0]
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(block.mixer(x)[:, :4], F.conv2d(x[:, :4], block.mixer.filter.weight, padding=1))
    assert torch.allclose(block(x), x + block.mlp(block.mixer(x)), atol=1e-5)
    block = net.stages[3].blocks[0]
    x = torch.randn(1, 128, 2, 2)
    y = x + block.mixer(x)
    assert torch.allclose(block(x), y + block.mlp(y), atol=1e-4)


def test_bad_shapes_are_refused_and_borders_that_would_be_dropped_are_told_of() -> None:
    with pytest.raises(BadInput, match="not divisible by n_div=4"):
        PATNet(Config(18, (1, 1, 1, 1)))
    with pytest.raises(BadInput, match="not divisible by heads=5"):
        PATNet(TINY, heads=5)
    with pytest.raises(BadInput, match="at least 32x32"):
        PATNet(TINY, 5).eval()(torch.zeros(1, 3, 31, 64))
    with pytest.warns(UserWarning, match="multiples of 32 px is dropped"):
        assert PATNet(TINY, 5).eval().forward_features(torch.zeros(1, 3, 95, 70)).shape[2:] == (2, 2)
    assert PATNet(TINY, 5, pad=True).eval().forward_features(torch.zeros(1, 3, 95, 70)).shape[2:] == (3, 3)


def official(config: Config, classes: int = 5) -> dict[str, Tensor]:
    """A checkpoint with the names of haiduo/PartialNet, random values."""
    first = config.width
    modules: dict[str, nn.Module] = {
        "patch_embed.proj": nn.Conv2d(3, first, 4, bias=False), "patch_embed.norm": nn.BatchNorm2d(first),
        "avgpool_pre_head.1": nn.Conv2d(8 * first, 1280, 1, bias=False), "head": nn.Linear(1280, classes),
    }  # fmt: skip
    state: dict[str, Tensor] = {}
    for stage, depth in enumerate(config.depths):
        width = first * 2**stage
        part = width // 4
        rest = width - part
        if stage:
            modules[f"stages.{2 * stage - 1}.reduction"] = nn.Conv2d(width // 2, width, 2, bias=False)
            modules[f"stages.{2 * stage - 1}.norm"] = nn.BatchNorm2d(width)
        for index in range(depth):
            here = f"stages.{2 * stage}.blocks.{index}"
            mixing = f"{here}.spatial_mixing"
            modules[f"{mixing}.partial_conv3"] = nn.Conv2d(part, part, 3, bias=False)
            if stage < 3:
                modules[f"{mixing}.attn.cfc1"] = nn.Conv2d(rest, rest, (1, 2), bias=False)
                modules[f"{mixing}.attn.bn"], modules[f"{mixing}.norm"] = nn.BatchNorm2d(rest), nn.BatchNorm2d(rest)
            else:
                modules[f"{mixing}.norm"] = nn.LayerNorm(rest)
                modules[f"{mixing}.attn.qkv"] = nn.Linear(rest, 3 * rest, bias=False)
                modules[f"{mixing}.attn.proj"] = nn.Linear(rest, rest)
                state[f"{mixing}.attn.rpe_k.lookup_table_bias"] = torch.rand(4, 81)
            modules[f"{here}.mlp.0"] = nn.Conv2d(width, 2 * width, 1, bias=False)
            modules[f"{here}.mlp.1"] = nn.BatchNorm2d(2 * width)
            modules[f"{here}.mlp.3"] = nn.Conv2d(2 * width, width, 1, bias=False)
            half = width // 2
            modules[f"{here}.mlp.4.conv"] = nn.Conv2d(half, half, 1, bias=False)
            modules[f"{here}.mlp.4.conv_attn"] = nn.Conv2d(half, 1, 1, bias=False)
            modules[f"{here}.mlp.4.norm"], modules[f"{here}.mlp.4.norm2"] = nn.BatchNorm2d(half), nn.BatchNorm2d(half)
    for name, module in modules.items():
        for leaf, value in module.state_dict().items():
            state[f"{name}.{leaf}"] = torch.rand_like(value) if value.is_floating_point() else value
    return state


def test_an_official_checkpoint_fills_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "t0", TINY)
    state = official(TINY)
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, tmp_path / "t0.ckpt")
    settings = PatnetSettings(variant="t0", num_classes=5, weights=str(tmp_path / "t0.ckpt"))
    net = Patnet().trained(settings)
    assert len(net.state_dict()) == len(state)
    assert torch.equal(net.stages[2].downsample.conv.weight, state["stages.3.reduction.weight"])
    block, here = net.stages[2].blocks[1], "stages.4.blocks.1"
    assert torch.equal(block.mixer.gate.norm.running_var, state[f"{here}.spatial_mixing.attn.bn.running_var"])
    assert torch.equal(block.mixer.norm.weight, state[f"{here}.spatial_mixing.norm.weight"])
    assert torch.equal(block.mlp.spatial.rest_norm.bias, state[f"{here}.mlp.4.norm2.bias"])
    assert torch.equal(
        net.stages[3].blocks[0].mixer.attn.position,
        state["stages.6.blocks.0.spatial_mixing.attn.rpe_k.lookup_table_bias"],
    )
