"""DynamicVis against the card's counts, the released form of its mixer, and its checkpoints' names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import headway
from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.vision.backbones.dynamicvis import (
    CONFIGS,
    BiMamba,
    CausalConv,
    Config,
    DynamicVis,
    Dynamicvis,
    DynamicvisSettings,
    Mamba,
    SpatialSparseMixer,
    TwicePassed,
    pooled,
    resized,
)
from headway.vision.backbones.selective_scan import selective_scan_reference
from headway.vision.count import count
from headway.vision.fold import relative_error

TINY = Config((8, 16, 24, 32), (1, 1, 2, 1), state=4)

COUNTS = {  # card, "Counts": parameters without position, positions; GMAC of layers and of scans, to the printed digit
    ("b", 512, True): (35_172_672, 1_572_864, 29.64, 1.04),
    ("b", 2048, False): (35_162_496, 25_165_824, 858.7, 41.3),
    ("l", 2048, True): (89_145_088, 33_554_432, 1247.8, 34.4),
}


@pytest.mark.parametrize(("variant", "size", "reduced"), COUNTS)
def test_counts_are_the_cards(variant: str, size: int, reduced: bool) -> None:
    config = CONFIGS[variant] if reduced else replace(CONFIGS[variant], keep=(0, 0, 0, 0))
    with torch.device("meta"):
        net = DynamicVis(config, 0, image_size=size, mixer=TwicePassed)
        net.reset_classifier(0, "")
        found = count(net, torch.zeros(1, 3, size, size))
    parameters, positions, layers, scans = COUNTS[variant, size, reduced]
    assert (net.stages[0].position.numel(), found.trainable - positions) == (positions, parameters)
    digits = 2 if layers < 100 else 1
    assert (round(found.layer_macs / 1e9, digits), round(found.attention_macs / 1e9, digits)) == (layers, scans)


def test_blocks_have_the_cards_parameters() -> None:
    found = [
        sum(value.numel() for value in SpatialSparseMixer(width, 8, 1, CONFIGS["b"], BiMamba).parameters())
        for width in CONFIGS["b"].widths
    ]
    assert found == [68_352, 251_904, 964_608, 3_772_416]


# ---- the mixer ------------------------------------------------------------------------------------------------------


def test_one_pass_over_what_both_directions_share_is_the_released_mixer() -> None:
    ours, released, x = BiMamba(24, 8), TwicePassed(24, 8), torch.randn(2, 41, 24)
    released.load_state_dict(ours.state_dict())
    assert relative_error(released(x), ours(x)) < 1e-5
    grads = [torch.autograd.grad(net(x).square().sum(), list(net.parameters())) for net in (released, ours)]
    assert all(relative_error(a, b) < 1e-4 for a, b in zip(*grads, strict=True))


def test_mamba_is_its_definition() -> None:
    net, x = Mamba(8, 4), torch.randn(2, 19, 8)
    a, z = F.linear(x, net.in_proj.weight).split(16, -1)
    a = F.silu(F.conv1d(F.pad(a.mT, (3, 0)), net.conv1d.weight, net.conv1d.bias, groups=16).mT)
    dt, b, c = F.linear(a, net.x_proj.weight).split([1, 4, 4], -1)
    dt = F.softplus(F.linear(dt, net.dt_proj.weight, net.dt_proj.bias))
    y = selective_scan_reference(a, dt, -net.A_log.exp(), b, c, net.D)
    assert relative_error(F.linear(y * F.silu(z), net.out_proj.weight), net(x)) < 1e-5
    steps = F.softplus(net.dt_proj.bias)
    assert steps.min() > 0.00099 and steps.max() < 0.101


@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_the_convolution_sees_the_past_or_reversed_the_future(tokens: int) -> None:
    conv, x = CausalConv(6), torch.randn(2, tokens, 6)
    assert torch.allclose(conv(x, reverse=True), conv(x.flip(1)).flip(1), atol=1e-6)
    exact = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), conv.weight, conv.bias, groups=6).mT)
    assert torch.allclose(conv(x), exact, atol=1e-6)


def test_without_a_router_tokens_are_mixed_as_they_are() -> None:
    block, x = SpatialSparseMixer(16, 0, 5, TINY, BiMamba), torch.randn(2, 35, 16)
    exact = block.mixer(torch.cat([x.reshape(2, 5, 7, 16).mean(2), x], 1))[:, 5:]
    assert block.selector is None and torch.equal(block(x), exact)


def test_with_equal_importance_and_no_reduction_the_mixed_tokens_are_added_with_one_share() -> None:
    block, x = SpatialSparseMixer(16, 1, 5, TINY, BiMamba).eval(), torch.randn(2, 35, 16)
    nn.init.zeros_(block.selector.router.weight)
    exact = x + block.mixer(torch.cat([pooled(x, 5), x], 1))[:, 5:] / 35
    assert relative_error(exact, block(x)) < 1e-6


def test_selected_tokens_enter_the_mixer_by_importance_behind_the_means_of_all() -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    block, x = SpatialSparseMixer(4, 3, 2, TINY, lambda *_: Watch()).eval(), torch.randn(1, 12, 4)
    block(x)
    order = block.selector.router(x)[0, :, 0].argsort(descending=True)[:4]
    assert torch.allclose(seen[0][0, :2], torch.stack([x[0, :6].mean(0), x[0, 6:].mean(0)]))
    assert torch.equal(seen[0][0, 2:], x[0, order])


def test_means_are_those_of_adaptive_pooling() -> None:
    x = torch.randn(2, 21, 4)
    for means in (1, 4, 7, 21):
        assert torch.allclose(pooled(x, means), F.adaptive_avg_pool1d(x.mT, means).mT, atol=1e-6)


# ---- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (125, 83), (96, 160), (33, 64)])
def test_maps_of_any_size_are_rounded_up_and_the_position_is_resized(size: tuple[int, int]) -> None:
    net = DynamicVis(TINY, 5, image_size=64).eval()
    nn.init.normal_(net.stages[0].position)
    x = torch.randn(2, 3, *size)
    features, maps = net.forward_intermediates(x)
    for info, found in zip(net.feature_info, maps, strict=True):
        stride = int(info["reduction"])
        assert found.shape == (2, info["num_chs"], -(-size[0] // stride), -(-size[1] // stride))
    assert torch.equal(net.forward_head(features), net(x)) and net(x).shape == (2, 5)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    flat = nn.Parameter(torch.ones(1, 8, 16, 16))
    assert torch.allclose(resized(flat, grid), torch.ones(1, 8, *grid))
    assert torch.isfinite(net(x)).all()


def test_a_rectangle_has_a_mean_for_each_row_of_its_map() -> None:
    net = DynamicVis(TINY, image_size=(64, 96))
    assert net.stages[0].position.shape == (1, 8, 16, 24)
    assert [stage.blocks[0].means for stage in net.stages] == [16, 8, 4, 2]


def test_training_reaches_every_parameter() -> None:
    net = DynamicVis(TINY, 5, image_size=64)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in net.parameters())
    assert net.no_weight_decay() >= {"stages.0.position", "stages.2.blocks.1.mixer.mamba.A_log"}


def test_images_too_small_for_the_selection_and_wrong_settings_are_refused() -> None:
    net = DynamicVis(replace(TINY, keep=(8, 4, 2, 2)), image_size=64)
    with pytest.raises(BadInput, match="has 1 tokens at stride 32, of which one in 2"):
        net(torch.randn(1, 3, 32, 32))
    with pytest.raises(BadInput, match="give each as many"):
        DynamicVis(replace(TINY, keep=(8,)))
    with pytest.raises(BadInput, match="one in how many"):
        Dynamicvis().network(DynamicvisSettings(keep=(8, 4, -2, 1)))
    assert DynamicVis(TINY, 0, 5, 64)(torch.randn(1, 5, 64, 64)).shape == (1, 32), "other bands"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "b", TINY)


@pytest.mark.usefixtures("tiny")
def test_it_is_a_model_and_an_artifact_is_built_again_from_its_settings(tmp_path: Path) -> None:
    text = "dynamicvis(variant=b, num_classes=6, image_size=64, keep=[4, 0, 2, 1], state=4, gumbel_scale=0.0)"
    model = headway.load(text)
    assert isinstance(model, ModuleModel) and model.run(model.sample).shape == (1, 6)
    model.save(tmp_path)
    again = ModuleModel.load(tmp_path)
    assert str(again.origin) == str(model.origin)
    assert torch.equal(again.run(model.sample), model.run(model.sample))
    featmap = headway.load("dynamicvis(variant=b, out=featmap, image_size=64)")
    assert featmap.run(featmap.sample).shape == (1, 32, 2, 2)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def official(config: Config, side: int, classes: int) -> dict[str, Tensor]:
    """A checkpoint with the names of KyanChen/DynamicVis, random values."""
    shapes: dict[str, tuple[int, ...]] = {"backbone.pos_embed": (1, side * side, config.widths[0])}

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    inside = 3
    for stage, (width, depth, keep) in enumerate(zip(config.widths, config.depths, config.keep, strict=True)):
        name, kernel, wide, rank = f"backbone.layers.{stage}", 3 if stage else 7, 2 * width, -(-width // 16)
        shapes[f"{name}.0.projection.weight"] = (width, inside, kernel, kernel)
        shapes[f"{name}.0.projection.bias"] = (width,)
        norm(f"{name}.0.norm", width)
        norm(f"{name}.2", width)
        for block in range(depth):
            if keep:
                shapes[f"{name}.1.{block}.spatial_gate.weight"] = (1, width)
            mixer = f"{name}.1.{block}.spatial_mamba_mixer"
            layer = f"{mixer}.mamba_layer"
            shapes |= {
                f"{mixer}.pre_norm.weight": (width,), f"{layer}.A_log": (wide, config.state), f"{layer}.D": (wide,),
                f"{layer}.conv1d.weight": (wide, 1, 4), f"{layer}.conv1d.bias": (wide,),
                f"{layer}.in_proj.weight": (2 * wide, width), f"{layer}.out_proj.weight": (width, wide),
                f"{layer}.x_proj.weight": (rank + 2 * config.state, wide), f"{layer}.dt_proj.weight": (wide, rank),
                f"{layer}.dt_proj.bias": (wide,),
            }  # fmt: skip
        inside = width
    norm("backbone.post_meanpool_norm", inside)
    shapes |= {"head.fc.weight": (classes, inside), "head.fc.bias": (classes,)}
    random = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=random) for name, shape in shapes.items()}


def loaded(path: Path, state: dict[str, Tensor], **settings: object) -> DynamicVis:
    save_file(state, path / "w.safetensors")
    values = {"state": 4, "num_classes": 5, "image_size": 64, **settings}
    net = Dynamicvis().trained(DynamicvisSettings(weights=str(path / "w.safetensors"), **values))  # type: ignore[arg-type]
    assert isinstance(net, DynamicVis)
    return net


@pytest.mark.usefixtures("tiny")
def test_an_official_checkpoint_fills_every_tensor(tmp_path: Path) -> None:
    state = official(TINY, 16, 5)
    net = loaded(tmp_path, state)
    assert sum(value.numel() for value in net.state_dict().values()) == sum(value.numel() for value in state.values())
    layer = "backbone.layers.2.1.1.spatial_mamba_mixer"
    block = net.stages[2].blocks[1]
    assert torch.equal(block.mixer.mamba.A_log, state[f"{layer}.mamba_layer.A_log"])
    assert torch.equal(block.mixer.norm.weight, state[f"{layer}.pre_norm.weight"])
    assert torch.equal(block.selector.router.weight, state["backbone.layers.2.1.1.spatial_gate.weight"])
    assert torch.equal(net.stages[3].norm.bias, state["backbone.layers.3.2.bias"])
    assert torch.equal(net.stages[1].patch_norm.bias, state["backbone.layers.1.0.norm.bias"])
    assert torch.equal(net.head.norm.bias, state["backbone.post_meanpool_norm.bias"])
    assert torch.equal(net.stages[0].position.flatten(2).mT, state["backbone.pos_embed"])


@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_of_another_size_without_routers_or_with_other_classes_is_taken(tmp_path: Path) -> None:
    state = official(TINY, 16, 5)
    larger = loaded(tmp_path, state, image_size=96)
    square = state["backbone.pos_embed"].mT.reshape(1, 8, 16, 16)
    assert torch.equal(larger.stages[0].position, F.interpolate(square, (24, 24), mode="bicubic"))
    assert loaded(tmp_path, state, keep=(0, 0, 0, 0)).stages[0].blocks[0].selector is None
    with pytest.warns(UserWarning, match="its head is left out"):
        assert loaded(tmp_path, state, num_classes=9).head.fc.out_features == 9
    body = {name: value for name, value in state.items() if "head" not in name and "meanpool" not in name}
    with pytest.warns(UserWarning, match=r"has no head\.norm\.weight"):
        pretrained = loaded(tmp_path, {**body, "neck.roi.weight": torch.ones(3)})
    assert torch.equal(pretrained.stages[3].norm.bias, state["backbone.layers.3.2.bias"])
    with pytest.raises(BadInput, match="of 250 tokens is of no square image"):
        loaded(tmp_path, {**state, "backbone.pos_embed": torch.ones(1, 250, 8)})
    with pytest.raises(BadInput, match=r"lacks 'stages\.0\.blocks\.0\.mixer\.mamba\.D'"):
        loaded(
            tmp_path,
            {name: v for name, v in state.items() if not name.endswith("0.1.0.spatial_mamba_mixer.mamba_layer.D")},
        )
