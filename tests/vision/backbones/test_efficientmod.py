"""EfficientMod against the published counts, the block's formula and its own fused form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.vision.backbones.efficientmod import (
    CONFIGS,
    Attention,
    Config,
    EfficientMod,
    EfficientModFamily,
    EfficientModSettings,
    FusedModulation,
    Modulation,
)
from headway.vision.count import count
from headway.vision.fold import fold, randomise_norms, relative_error

TINY = Config((8, 16, 24, 40), (2, 1, 2, 2), (0, 0, 1, 1), ratios=(1, 4), attention_ratio=(4, 4, 4, 5))

COUNTS = {  # card, "Exact counts": parameters; multiply-adds of convolutions, linear layers, attention
    "xxs": (4_736_264, 81_460_736, 475_523_072, 22_127_616),
    "xs": (6_627_544, 92_791_104, 617_151_744, 63_155_904),
    "s": (12_897_184, 108_836_448, 1_208_637_888, 84_668_864),
    "s_conv": (12_872_336, 149_797_312, 1_321_001_408, 0),
}


@pytest.mark.parametrize("variant", CONFIGS)
def test_counts_are_those_of_the_released_code(variant: str) -> None:
    with torch.device("meta"):
        counts = count(EfficientMod(CONFIGS[variant]), torch.zeros(1, 3, 224, 224))
    found = (counts.trainable, counts.conv_macs, counts.linear_macs, counts.attention_macs)
    assert found == COUNTS[variant]


def test_the_fused_form_is_exact_in_float32_and_close_in_bfloat16() -> None:
    net = randomise_norms(EfficientMod(TINY, 5)).eval()
    short, x = fold(net), torch.randn(2, 3, 97, 161)
    assert relative_error(net(x), short(x)) <= 2e-5
    assert sum(isinstance(child, FusedModulation) for child in short.modules()) == sum(TINY.depths)
    assert relative_error(net(x), short.bfloat16()(x.bfloat16())) <= 2e-2


@pytest.mark.parametrize("ratio", [1, 6])
def test_a_block_is_the_published_formula(ratio: int) -> None:
    block = randomise_norms(Modulation(10, ratio)).eval()
    x = torch.randn(2, 5, 7, 10)
    y = F.layer_norm(x, (10,), block.norm.weight, block.norm.bias, 1e-5)
    filtered = block.context.filter(block.context.inner(y).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    context = block.context.outer(F.gelu(filtered))
    value = block.value(y)
    value = value if ratio == 1 else F.gelu(value)
    modulated = torch.stack([value[..., j] * context[..., j % 10] for j in range(10 * ratio)], -1)  # tiled
    assert torch.allclose(block(x), x + block.gamma * block.project(modulated), atol=1e-6)


@pytest.mark.parametrize(("channels", "inner"), [(128, 256), (144, 256), (256, 256), (288, 288), (312, 312)])
def test_heads_have_at_least_32_channels(channels: int, inner: int) -> None:
    attention = Attention(channels)
    assert attention.proj.in_features == inner and attention.qkv.bias is None
    assert attention.attention_macs(torch.zeros(2, 9, channels)) == 2 * 2 * 81 * inner


@pytest.mark.parametrize(("height", "width"), [(225, 225), (97, 161), (32, 33)])
def test_sides_round_up_at_every_stride(height: int, width: int) -> None:
    maps = EfficientMod(TINY, 5).eval().features_only()(torch.zeros(1, 3, height, width))
    for index, found in enumerate(maps):
        stride = 4 * 2**index
        assert found.shape[2:] == (-(-height // stride), -(-width // stride))


def test_impossible_sizes_and_groups_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 32x32"):
        EfficientMod(TINY, 5)(torch.zeros(1, 3, 31, 64))
    with pytest.raises(BadInput, match="give as many groups as the ratio"):
        Modulation(8, 4, groups=2)


def test_branches_are_left_out_more_with_depth_and_only_in_training() -> None:
    net = EfficientMod(CONFIGS["s"])
    rates = [child.rate for child in net.modules() if type(child).__name__ == "DropPath"]
    assert rates[0] == 0.0 and rates[-1] == pytest.approx(0.02) and rates == sorted(rates)
    block = Modulation(8, 1, drop_path=0.5, layer_scale=1.0)
    x = torch.randn(64, 2, 2, 8)
    branch = (block.eval()(x) - x).detach()
    torch.manual_seed(0)
    found = (block.train()(x) - x).detach()
    kept = (found != 0).flatten(1).any(1)
    assert 10 < int(kept.sum()) < 54 and torch.allclose(found[kept], 2 * branch[kept], atol=1e-5)


def official(config: Config, classes: int = 5) -> dict[str, Tensor]:
    """A checkpoint with the names of ma-xu/EfficientMod, random values."""
    modules: dict[str, nn.Module] = {
        "patch_embed.proj": nn.Conv2d(3, config.widths[0], 7), "patch_embed.norm": nn.LayerNorm(config.widths[0]),
        "norm": nn.LayerNorm(config.widths[-1]), "head": nn.Linear(config.widths[-1], classes),
    }  # fmt: skip
    state: dict[str, Tensor] = {}
    for stage, width in enumerate(config.widths):
        here = f"layers.{stage}"
        if stage + 1 < len(config.widths):
            modules[f"{here}.downsample.proj"] = nn.Conv2d(width, config.widths[stage + 1], 3)
            modules[f"{here}.downsample.norm"] = nn.LayerNorm(config.widths[stage + 1])
        for index in range(config.depths[stage]):
            block, wide = f"{here}.blocks.{index}", width * config.ratios[index % len(config.ratios)]
            modules[f"{block}.norm"] = nn.LayerNorm(width)
            modules[f"{block}.mlp.fc1"], modules[f"{block}.mlp.fc2"] = nn.Linear(width, wide), nn.Linear(wide, width)
            for part in "fg":
                modules[f"{block}.mlp.context_layer.{part}"] = nn.Linear(width, width)
            modules[f"{block}.mlp.context_layer.context_list.0"] = nn.Conv2d(width, width, 7, groups=width)
            state[f"{block}.gamma_1"] = torch.rand(width)
        for index in range(config.depths[stage], config.depths[stage] + config.attention[stage]):
            block, wide = f"{here}.blocks.{index}", width * config.attention_ratio[stage]
            inner = 8 * max(width // 8, 32)
            modules[f"{block}.norm1"], modules[f"{block}.norm2"] = nn.LayerNorm(width), nn.LayerNorm(width)
            modules[f"{block}.attn.qkv"] = nn.Linear(width, 3 * inner, bias=False)
            modules[f"{block}.attn.proj"] = nn.Linear(inner, width)
            modules[f"{block}.mlp.fc1"], modules[f"{block}.mlp.fc2"] = nn.Linear(width, wide), nn.Linear(wide, width)
    for name, module in modules.items():
        state |= {f"{name}.{leaf}": torch.rand_like(value) for leaf, value in module.state_dict().items()}
    return state


def test_an_official_checkpoint_fills_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "xs", TINY)
    state = official(TINY)
    torch.save({"state_dict": state}, tmp_path / "xs.pth.tar")
    settings = EfficientModSettings(variant="xs", num_classes=5, weights=str(tmp_path / "xs.pth.tar"))
    net = EfficientModFamily().trained(settings)
    assert len(net.state_dict()) == len(state)
    block = net.stages[2].blocks[1]
    assert torch.equal(block.value.weight, state["layers.2.blocks.1.mlp.fc1.weight"])
    assert torch.equal(block.context.outer.bias, state["layers.2.blocks.1.mlp.context_layer.g.bias"])
    assert torch.equal(block.gamma, state["layers.2.blocks.1.gamma_1"])
    assert torch.equal(net.stages[2].downsample.conv.weight, state["layers.1.downsample.proj.weight"])
    assert torch.equal(net.stages[3].blocks[2].mlp.fc2.weight, state["layers.3.blocks.2.mlp.fc2.weight"])
