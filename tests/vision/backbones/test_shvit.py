"""SHViT against the published counts, timm's implementation and its own folded form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from headway.core.errors import BadInput
from headway.core.timm_library import timm_library
from headway.vision.backbones.shvit import CONFIGS, Config, SHViT, Shvit, ShvitSettings, SingleHeadAttention
from headway.vision.count import count
from headway.vision.fold import fold, randomise_norms, relative_error

TINY = Config((32, 48, 56), (1, 1, 1), (0, 10, 12), stem=(8, 16, 32))

COUNTS = {  # card, "Exact counts": parameters, parameters when folded, layer and attention multiply-adds
    "s1": (6_330_808, 6_308_660, 240_598_592, 722_176),
    "s2": (11_483_072, 11_453_508, 364_464_008, 930_888),
    "s3": (14_245_273, 14_210_010, 599_334_349, 1_235_815),
    "s4": (16_588_484, 16_546_248, 983_521_792, 2_695_168),
}


@pytest.mark.parametrize("variant", CONFIGS)
def test_counts_are_the_published_ones_and_folding_is_exact(variant: str) -> None:
    net = randomise_norms(SHViT(CONFIGS[variant])).eval()
    size = CONFIGS[variant].image_size
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    short = fold(net)
    with torch.device("meta"):
        counts = count(SHViT(CONFIGS[variant]), torch.zeros(1, 3, size, size))
    folded = sum(value.numel() for value in short.parameters())
    assert (counts.trainable, folded, counts.layer_macs, counts.attention_macs) == COUNTS[variant]
    assert relative_error(net(x), short(x)) <= 2e-6
    assert not any(isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)) for child in short.modules())
    filters = [child for child in short.modules() if isinstance(child, nn.Conv2d) and child.groups > 1]
    residuals = [child for child in short.modules() if type(child).__name__ == "Residual"]
    depth = sum(CONFIGS[variant].depths)
    assert len(filters) == depth + 2 * 3 and not any(isinstance(r.inner, nn.Conv2d) for r in residuals)


def test_outputs_equal_those_of_timm_with_the_same_weights() -> None:
    theirs = timm_library().create_model("shvit_s1")
    randomise_norms(theirs).eval()
    ours = SHViT(CONFIGS["s1"]).eval()
    ours.load_state_dict(Shvit().ours(theirs.state_dict(), ours))
    x = torch.randn(2, 3, 160, 128)
    assert torch.allclose(ours.forward_features(x), theirs.forward_features(x), atol=1e-4)
    assert relative_error(theirs(x), ours(x)) < 1e-5


def official(config: Config, distilled: bool = False) -> dict[str, torch.Tensor]:
    """A checkpoint with the names of ysj9909/SHViT, built from its lists of blocks, random values."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def conv(name: str, out: int, inside: int, kernel: int = 1) -> None:
        shapes[f"{name}.c.weight"] = (out, inside, kernel, kernel) if kernel > 1 else (out, inside)  # 2-D in the files
        norm(f"{name}.bn", out)

    def ffn(name: str, width: int) -> None:
        conv(f"{name}.m.pw1", 2 * width, width)
        conv(f"{name}.m.pw2", width, 2 * width)

    for index, (a, b) in enumerate(zip((3, *config.stem), config.stem, strict=False)):
        conv(f"patch_embed.{2 * index}", b, a, 3)
    for stage, (width, depth, part) in enumerate(zip(config.widths, config.depths, config.partial, strict=True), 1):
        first = 0
        if stage > 1:
            before, here = config.widths[stage - 2], f"blocks{stage}"
            conv(f"{here}.0.0.m", before, 1, 3)
            ffn(f"{here}.0.1", before)
            conv(f"{here}.1.conv1", 4 * before, before)
            conv(f"{here}.1.conv2", 4 * before, 1, 3)
            shapes[f"{here}.1.se.fc1.weight"], shapes[f"{here}.1.se.fc1.bias"] = (before, 4 * before, 1, 1), (before,)
            shapes[f"{here}.1.se.fc2.weight"], shapes[f"{here}.1.se.fc2.bias"] = (
                (4 * before, before, 1, 1),
                (4 * before,),
            )
            conv(f"{here}.1.conv3", width, 4 * before)
            conv(f"{here}.2.0.m", width, 1, 3)
            ffn(f"{here}.2.1", width)
            first = 3
        for block in range(first, first + depth):
            name = f"blocks{stage}.{block}"
            conv(f"{name}.conv.m", width, 1, 3)
            ffn(f"{name}.ffn", width)
            if part:
                shapes[f"{name}.mixer.m.pre_norm.weight"] = shapes[f"{name}.mixer.m.pre_norm.bias"] = (part,)
                conv(f"{name}.mixer.m.qkv", 32 + part, part)
                conv(f"{name}.mixer.m.proj.1", width, width)
    for head in ("head", "head_dist") if distilled else ("head",):
        norm(f"{head}.bn", config.widths[-1])
        shapes[f"{head}.l.weight"], shapes[f"{head}.l.bias"] = (5, config.widths[-1]), (5,)
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(shape, generator=random) * 0.2 + (0.5 if name.endswith("running_var") else 0.0)
        if shape
        else torch.tensor(7)
        for name, shape in shapes.items()
    }


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Shvit:
    monkeypatch.setitem(CONFIGS, "s1", TINY)
    return Shvit()


def test_an_official_checkpoint_fills_every_tensor(family: Shvit, tmp_path: Path) -> None:
    state = official(TINY)
    torch.save({"model": state, "epoch": 300}, tmp_path / "shvit_s1.pth")
    settings = ShvitSettings(variant="s1", num_classes=5, weights=str(tmp_path / "shvit_s1.pth"))
    net = family.trained(settings)
    assert torch.equal(net.stages[1].downsample[2].depthwise.conv.weight, state["blocks2.1.conv2.c.weight"])
    assert torch.equal(net.stages[2].blocks[0].mixer.inner.qkv.norm.bias, state["blocks3.3.mixer.m.qkv.bn.bias"])
    assert torch.equal(
        net.stages[2].downsample[4].inner.project.conv.weight[..., 0, 0], state["blocks3.2.1.m.pw2.c.weight"]
    )
    assert sum(value.numel() for value in net.state_dict().values()) == sum(value.numel() for value in state.values())


def test_two_heads_of_a_distilled_checkpoint_are_averaged_where_there_is_one(family: Shvit, tmp_path: Path) -> None:
    save_file(official(TINY, distilled=True), tmp_path / "d.safetensors")
    weights = str(tmp_path / "d.safetensors")
    both = family.trained(ShvitSettings(variant="s1", num_classes=5, weights=weights, distillation=True)).eval()
    with pytest.warns(UserWarning, match="two heads are averaged"):
        one = family.trained(ShvitSettings(variant="s1", num_classes=5, weights=weights)).eval()
    x = torch.randn(2, 3, 96, 96)
    assert relative_error(both(x), one(x)) < 1e-6
    short = fold(both)
    assert isinstance(short.head, nn.Linear) and relative_error(both(x), short(x)) <= 2e-6
    assert isinstance(both.train()(x), tuple)


def test_a_checkpoint_of_another_variant_is_refused_and_of_other_classes_gives_all_but_the_head(
    family: Shvit, tmp_path: Path
) -> None:
    state = official(TINY)
    torch.save(state, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="its head is left out"):
        net = family.trained(ShvitSettings(variant="s1", num_classes=9, weights=str(tmp_path / "w.pth")))
    assert net(torch.randn(2, 3, 96, 96)).shape == (2, 9)
    with pytest.raises(BadInput, match=r"w\.pth holds 'stem|w\.pth: stem.* should be"):
        family.trained(ShvitSettings(variant="s2", num_classes=5, weights=str(tmp_path / "w.pth")))


def test_small_images_warn_and_odd_ones_round_up() -> None:
    net = SHViT(TINY, 5).eval()
    stride = 32
    with pytest.warns(UserWarning, match="last map is one pixel"):
        assert net(torch.randn(1, 3, stride, stride)).shape == (1, 5)
    assert [m.shape[2:] for m in net.features_only()(torch.randn(1, 3, 97, 225))] == [(13, 29), (7, 15), (4, 8)]


def test_impossible_settings_and_batches_are_refused() -> None:
    for part in (0, 49):
        with pytest.raises(BadInput, match=f"partial={part} of 48"):
            SingleHeadAttention(48, part)
    with pytest.raises(BadInput, match="cannot train on one image"):
        SHViT(TINY, 5).train()(torch.randn(1, 3, 96, 96))


def test_attention_reads_the_first_channels_only_and_all_go_through_relu_and_projection() -> None:
    """One channel of the untouched part, changed at one pixel, changes that pixel alone."""
    mixer = randomise_norms(SingleHeadAttention(12, 5)).eval()
    x = torch.rand(1, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    y = x.clone()
    y[0, 7, 2, 1] += 1.0
    changed = (mixer(x) != mixer(y)).any(1)[0].nonzero().tolist()
    assert changed == [[2, 1]]
    y[0, 3, 2, 1] += 1.0
    assert (mixer(x) != mixer(y)).any(1).all()
