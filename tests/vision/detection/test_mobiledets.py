"""The four published detectors: the card's counts, exact folding, padding, blocks, and the family as a MODEL."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.module_origin import build_family
from headway.vision.count import count
from headway.vision.detection.blocks import BlockSpec, SameConv
from headway.vision.detection.mobiledets import Mobiledets, MobiledetsSettings
from headway.vision.detection.nets import NETS, MobileDet, NetSpec, SSDLite, map_sizes
from headway.vision.fold import fold, randomise_norms, relative_error

COUNTS = {  # card, "Counts": backbone parameters and MACs, detector's trainable and stored values and MACs
    "cpu": (3_006_440, 408_006_272, 4_165_055, 4_205_423, 444_227_776),
    "dsp": (5_839_952, 2_763_353_600, 7_102_079, 7_159_343, 2_816_403_904),
    "edgetpu": (2_777_040, 1_473_795_200, 4_146_543, 4_196_095, 1_533_181_504),
    "gpu": (11_689_920, 5_009_920_000, 13_069_247, 13_109_151, 5_073_184_704),
}
MINI = NetSpec(8, ((8, "N"), (16, "T(.25,.75)*"), (16, "F4* F4"), (24, "I4k5* I4"), (32, "I4* T(.25,.75)")))


@pytest.mark.parametrize("target", NETS)
def test_counts_and_maps_are_the_published_ones(target: str) -> None:
    net = SSDLite(NETS[target]).eval()
    x = torch.zeros(1, 3, 320, 320)
    backbone, detector = count(net.backbone, x), count(net, x)
    found = (backbone.trainable, backbone.macs, detector.trainable, detector.stored, detector.macs)
    assert found == COUNTS[target]


def test_maps_and_anchors_of_320_pixels() -> None:
    net = SSDLite(MINI).eval()
    with torch.no_grad():
        codes, logits = net(torch.zeros(1, 3, 320, 320))
        maps = net.backbone(torch.zeros(1, 3, 320, 320))
    assert codes.shape == (1, 2034, 4) and logits.shape == (1, 2034, 91)
    assert [tuple(x.shape[1:]) for x in maps] == [(24, 20, 20), (32, 10, 10)]
    assert [size for size, _ in map_sizes(320, 320)] == [20, 10, 5, 3, 2, 1]


@pytest.mark.parametrize("gate", [False, True])
def test_folding_is_exact_and_leaves_no_norm(gate: bool) -> None:
    spec = NetSpec(MINI.stem, MINI.stages, "hswish" if gate else "relu6", gate)
    net = randomise_norms(SSDLite(spec, 3)).eval()
    short = fold(net)
    x = torch.randn(2, 3, 65, 48, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(net(x), short(x), strict=True):
        assert relative_error(ours, theirs) <= 5e-6
    assert not any(isinstance(child, nn.BatchNorm2d) for child in short.modules())
    codes, _ = short(x)
    assert codes.shape[1] == sum(
        boxes * h * w for boxes, (h, w) in zip((3, 6, 6, 6, 6, 6), map_sizes(65, 48), strict=True)
    )


@pytest.mark.parametrize(
    ("size", "stride", "kernel", "before"), [(8, 2, 3, 0), (9, 2, 3, 1), (8, 2, 5, 1), (7, 1, 5, 2)]
)
def test_padding_is_tensorflows(size: int, stride: int, kernel: int, before: int) -> None:
    """TensorFlow's formula: total = (ceil(size / stride) - 1) * stride + kernel - size, the smaller half first."""
    conv = SameConv(1, 1, kernel, stride, act="none").eval()
    image = torch.arange(1.0, 1.0 + size * size).reshape(1, 1, size, size)
    out = conv(image) * (1.0 + 0.01) ** 0.5
    total = (-(-size // stride) - 1) * stride + kernel - size
    assert total // 2 == before
    padded = torch.zeros(1, 1, size + total, size + total)
    padded[..., before : before + size, before : before + size] = image
    wanted = nn.functional.conv2d(padded, conv.conv.weight, stride=stride)
    assert relative_error(wanted, out) < 1e-6


def test_blocks_have_the_cards_widths_activations_and_residuals() -> None:
    def convs(text: str, inside: int, out: int) -> list[tuple[int, int, int, int, str]]:
        found = [c for c in BlockSpec.parse(text).build(inside, out).modules() if isinstance(c, SameConv)]
        return [
            (c.conv.in_channels, c.conv.out_channels, c.conv.kernel_size[0], c.conv.groups, type(c.act).__name__)
            for c in found
        ]

    assert convs("I8k5*", 8, 16) == [(8, 64, 1, 1, "ReLU6"), (64, 64, 5, 64, "ReLU6"), (64, 16, 1, 1, "Identity")]
    assert convs("N", 8, 16) == [(8, 8, 3, 8, "ReLU6"), (8, 16, 1, 1, "Identity")]
    assert convs("F4", 8, 16) == [(8, 32, 3, 1, "ReLU6"), (32, 16, 1, 1, "Identity")]
    assert [c[1] for c in convs("T(.25,.75)", 120, 32)] == [32, 24, 32], "120 / 4 = 30 goes up to 32"
    assert [c[1] for c in convs("T(.25,.25)", 16, 16)] == [8, 8, 16], "16 / 4 is rounded up to the least, 8"
    texts = [("I4", 8, 8), ("I4!", 8, 8), ("I4*", 8, 8), ("I4", 8, 16)]
    assert [BlockSpec.parse(text).build(a, b).residual for text, a, b in texts] == [True, False, False, False]
    gated = BlockSpec.parse("F4").build(8, 16, "hswish", gate=True)
    assert [tuple(c.weight.shape[:2]) for c in gated.modules() if isinstance(c, nn.Conv2d) and c.bias is not None] == [
        (8, 32), (32, 8),
    ]  # fmt: skip
    assert SameConv(8, 8).norm.eps == 0.01 and SSDLite(MINI, 3).codes[0].depthwise.norm.eps == 1e-3


@pytest.mark.parametrize("text", ["X4", "I", "I0", "I4k4", "T(.25)", "F4*!", ""])
def test_other_texts_are_no_blocks(text: str) -> None:
    with pytest.raises(BadInput, match="is no block"):
        BlockSpec.parse(text)


def test_a_gate_is_a_sigmoid_of_hswish_units() -> None:
    gate = BlockSpec.parse("N").build(8, 8, "hswish", gate=True).layers[1]
    x = torch.randn(2, 8, 5, 5)
    mean = x.mean((2, 3), keepdim=True)
    hidden = nn.functional.conv2d(mean, gate.fc1.weight, gate.fc1.bias)
    hidden = hidden * (hidden + 3).clamp(0, 6) / 6
    wanted = x * torch.sigmoid(nn.functional.conv2d(hidden, gate.fc2.weight, gate.fc2.bias))
    assert torch.allclose(gate(x), wanted, atol=1e-6)


def test_one_image_small_ones_and_other_shapes_are_refused() -> None:
    net = SSDLite(MINI, 3)
    with pytest.raises(BadInput, match="two or more"):
        net(torch.zeros(1, 3, 64, 64))
    with pytest.raises(BadInput, match="at least 33"):
        net(torch.zeros(1, 3, 64, 32))
    with pytest.raises(BadInput, match="images are"):
        net(torch.zeros(1, 1, 64, 64))
    with pytest.raises(BadInput, match="stride 2"):
        MobileDet(NetSpec(8, ((8, "N I4*"),)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Mobiledets:
    monkeypatch.setitem(NETS, "cpu", MINI)
    return Mobiledets()


def test_the_family_is_a_model_that_its_origin_builds_again(small: Mobiledets) -> None:
    model = small.build(MobiledetsSettings(image_size=48, classes=3))
    again = build_family(model.origin.name)
    assert str(model.origin).startswith("family:mobiledets(") and again.fingerprint() == model.fingerprint()
    plain = small.build(MobiledetsSettings(image_size=48, classes=3, fold=False))
    outputs: list[tuple[Tensor, Tensor]] = [m.run(m.sample) for m in (model, plain)]
    assert all(relative_error(b, a) < 1e-5 for a, b in zip(*outputs, strict=True))
    native = plain.module().native()
    for found, wanted in zip(native(plain.sample[0]), plain.module()(plain.sample[0]), strict=True):
        assert relative_error(found, wanted) < 1e-5
    assert not native.reason
    work = model.workload_of(model)
    assert work.metric == "1 - relative error"
    (views,) = work.search[0]
    assert float(views.abs().max()) <= 1.0 and views.shape[1:] == (3, 48, 48)
