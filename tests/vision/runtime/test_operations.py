"""Small networks of every operation that the runtime knows, against torch; and what it refuses to follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headway.kernels import cpu
from headway.vision.runtime.net import NativeNet


class Network(nn.Module):
    """A 3x3 convolution to `channels`, a body, and a linear layer on the mean."""

    def __init__(self, channels: int, body: nn.Module, out: int = 0) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = body
        self.last = nn.Linear(out or channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)).mean((2, 3)))


class Body(nn.Module):
    """Layers, and a function of them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def lively(network: nn.Module) -> nn.Module:
    """In `eval`, with norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.2
            module.running_var = torch.rand(module.num_features) + 0.5
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
            module.weight.data = torch.rand_like(module.weight) + 0.5
            module.bias.data = torch.randn_like(module.bias) * 0.3
    return network.eval()


def agree(network: nn.Module, x: Tensor) -> NativeNet:
    made = NativeNet(lively(network))
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=2e-5 * max(float(expected.abs().max()), 1.0))
    return made


def squeeze(m: Any, x: Tensor) -> Tensor:
    return x * m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


def single_head(m: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    first, rest = torch.split(x, [8, x.shape[1] - 8], 1)
    q, k, v = m.qkv(m.norm(first)).split([4, 4, 8], 1)
    scores = (q.flatten(2).transpose(-2, -1) @ k.flatten(2)) * 0.5
    mixed = (v.flatten(2) @ scores.softmax(-1).transpose(-2, -1)).reshape(n, 8, h, w)
    return m.out(F.relu(torch.cat([mixed, rest], 1)))


def heads(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    tokens = m.norm(x.flatten(2).mT)
    q, k, v = m.qkv(tokens).reshape(n, h * w, 3, 2, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q * 0.7, k, v).transpose(1, 2).reshape(n, h * w, c)
    return (tokens + m.out(mixed)).mT.reshape(n, c, h, w)


def modulated(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x.permute(0, 2, 3, 1))
    context = m.outer(F.gelu(m.filter(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
    value = F.gelu(m.value(y))
    mixed = (value.unflatten(-1, (3, -1)) * context.unsqueeze(-2)).flatten(-2)
    again = m.value(y) * torch.cat([context] * 3, -1)
    return x + (m.gamma.weight.flatten() * m.project(mixed + again)).permute(0, 3, 1, 2)


def style(m: Any, x: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(x, (2, 3), correction=1)
    gate = m.conv(torch.stack([mean, deviation], -1).unsqueeze(2))
    return x * F.hardsigmoid(m.norm(gate)) + x.std((2, 3), keepdim=True)


def gated(m: Any, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([m.norm(first * F.hardsigmoid(m.gate(first))), m.rest(second) / 2 - 0.5], 1)


BODIES: dict[str, Callable[[int], nn.Module]] = {
    "squeeze and excite": lambda c: Body(squeeze, down=nn.Conv2d(c, 4, 1), up=nn.Conv2d(4, c, 1)),
    "single head": lambda c: Body(
        single_head, norm=nn.GroupNorm(1, 8), qkv=nn.Conv2d(8, 16, 1, bias=False), out=nn.Conv2d(c, c, 1)
    ),
    "several heads": lambda c: Body(
        heads, norm=nn.LayerNorm(c), qkv=nn.Linear(c, 3 * c, bias=False), out=nn.Linear(c, c)
    ),
    "modulation": lambda c: Body(
        modulated,
        norm=nn.LayerNorm(c),
        filter=nn.Conv2d(c, c, 7, padding=3, groups=c),
        outer=nn.Linear(c, c),
        value=nn.Linear(c, 3 * c),
        project=nn.Linear(3 * c, c),
        gamma=nn.Linear(c, 1),
    ),
    "style": lambda c: Body(style, conv=nn.Conv2d(c, c, (1, 2), bias=False), norm=nn.BatchNorm2d(c)),
    "gates": lambda c: Body(
        gated, gate=nn.Conv2d(c // 2, 1, 1), norm=nn.BatchNorm2d(c // 2), rest=nn.Conv2d(c - c // 2, c - c // 2, 1)
    ),
    "residual in place": lambda c: Body(
        lambda m, x: F.relu(m.b(F.relu(m.a(x), inplace=True)).add_(x), inplace=True),
        a=nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)),
        b=nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)),
    ),
    "filter that adds itself": lambda c: Body(
        lambda m, x: x + m.norm(m.filter(x)), filter=nn.Conv2d(c, c, 3, padding=1, groups=c), norm=nn.BatchNorm2d(c)
    ),
    "slopes and shuffled pixels": lambda c: Body(
        lambda m, x: m.back(F.pixel_shuffle(m.q(m.b(m.p(m.a(x)) + x)), 2)),
        a=nn.Conv2d(c, c, 3, padding=1),
        p=nn.PReLU(c),
        b=nn.Conv2d(c, 4 * c, 1),
        q=nn.PReLU(),
        back=nn.Conv2d(c, c, 1),
    ),
    "a sum of two products": lambda c: Body(
        lambda m, x: F.relu(m.norm(m.a(x)) + m.down(F.relu(x))),
        a=nn.Conv2d(c, c, 1),
        norm=nn.BatchNorm2d(c),
        down=nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)),
    ),
    "every other pixel": lambda c: Body(lambda m, x: m.pick(x), pick=nn.Conv2d(c, c, 1, 2)),
    "activations": lambda c: Body(
        lambda m, x: F.silu(m.a(x)) + F.hardswish(m.b(x)) * F.relu6(x) + F.gelu(x, approximate="tanh") + x.clamp(-1, 1),
        a=nn.Conv2d(c, c, 1),
        b=nn.Conv2d(c, c, 1),
    ),
}


@pytest.mark.parametrize("name", list(BODIES))
@pytest.mark.parametrize(("channels", "size"), [(16, (9, 9)), (40, (5, 12))])
def test_what_papers_build_equals_torch(name: str, channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(4)
    native = agree(Network(channels, BODIES[name](channels)), torch.randn(3, 3, *size))
    assert not native.reason
    assert not native.apart


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_convolution_equals_torch(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    channels, out = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    height, width = data.draw(st.integers(8, 30)), data.draw(st.integers(8, 30))
    layers: list[nn.Module] = []
    for _ in range(data.draw(st.integers(1, 3))):
        depthwise = data.draw(st.booleans())
        kernel = data.draw(st.sampled_from([2, 3, 5, 7] if depthwise else [1, 2, 3, 4]))
        stride = data.draw(st.integers(1, 2))
        padding = data.draw(st.integers(0, kernel // 2)) if kernel > 1 else 0
        after = channels if depthwise else out
        wider = kernel - 1 - padding
        layers += [
            nn.ConstantPad2d((0, wider, 0, wider), 0.0),
            nn.Conv2d(channels, after, kernel, stride, padding, groups=channels if depthwise else 1),
            data.draw(st.sampled_from([nn.Identity(), nn.ReLU6(), nn.Hardswish(), nn.Sigmoid()])),
        ]
        channels = after
    first = layers[1].in_channels
    native = agree(Network(first, nn.Sequential(*layers), channels), torch.randn(2, 3, height, width))
    assert not native.reason
    assert not native.apart


@pytest.mark.parametrize("name", ["single head", "modulation", "style"])
def test_bits_depend_on_neither_batch_nor_threads_nor_level(name: str) -> None:
    torch.manual_seed(0)
    native, x = NativeNet(lively(Network(24, BODIES[name](24)))), torch.randn(40, 3, 10, 7)
    together = native(x)
    assert torch.equal(torch.cat([native(image[None]) for image in x[:3]]), together[:3])
    before = cpu.threads()
    try:
        for threads in (1, 2, 3):
            cpu.set_threads(threads)
            for level in cpu.levels():
                with cpu.at_level(level):
                    assert torch.equal(native(x), together)
    finally:
        cpu.set_threads(before)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a branch on values": (lambda m, x: x if x.sum() > 0 else -x, "depends on the image"),
    "a slice that is written to": (lambda m, x: x.clone()[:, :2].add_(1.0).repeat(1, 8, 1, 1), "part of a tensor"),
    "a tensor from elsewhere": (lambda m, x: x + torch.from_numpy(ELSEWHERE), "neither a parameter nor a buffer"),
    "images that meet": (lambda m, x: x - x.mean(0, keepdim=True), "gives something else"),
    "a batch that is written out": (lambda m, x: x.view(1, 16, 6, 6), "one image at a time"),
}
ELSEWHERE = torch.ones(1).numpy()


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_followed_goes_through_the_module_itself(name: str) -> None:
    function, reason = REFUSED[name]
    network, x = Network(16, Body(function)), torch.randn(1 if "written out" in name else 2, 3, 6, 6)
    assert reason in agree(network, x).reason


def unfolded(m: Any, x: Tensor) -> Tensor:
    """Tokens of patches, as MobileViT has them: pixels that have one place in their patches attend to one another."""
    n, c, h, w = x.shape
    tokens = x.reshape(n * c * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(n, c, h * w // 4, 4).transpose(1, 3)
    q, k, v = m.qkv(tokens.reshape(n * 4, h * w // 4, c)).chunk(3, -1)
    mixed = m.out(F.scaled_dot_product_attention(q, k, v)).view(n, 4, -1, c).transpose(1, 3)
    back = mixed.reshape(n * c * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(n, c, h, w)
    return x + m.last(back)


def talking(m: Any, x: Tensor) -> Tensor:
    """Heads that hear one another before the softmax."""
    n, c, h, w = x.shape
    q, k, v = m.qkv(x).reshape(n, 3, 2, c // 2, h * w).unbind(1)
    scores = m.talk(q.transpose(-2, -1) @ k * 0.2).softmax(-1)
    return m.out(F.gelu((v @ scores.transpose(-2, -1)).reshape(n, c, h, w))) * 0.5 + x


def in_place(m: Any, x: Tensor) -> Tensor:
    y = torch.cumsum(m.a(x), 1)
    z = y.mul_(0.1).relu_()
    copied = x.clone().cumsum_(1)  # x itself is read again
    return m.b(z) + m.b(x) + F.silu(x, inplace=True) + z + 0.1 * copied


APART: dict[str, tuple[Callable[[int], nn.Module], set[str]]] = {
    "an unknown operation": (lambda c: Body(lambda m, x: torch.cumsum(x, 1)), {"cumsum"}),
    "padding that is no zero": (lambda c: Body(lambda m, x: F.pad(x, (1, 1, 1, 1), "reflect")), {"pad"}),
    "pooling": (
        lambda c: Body(
            lambda m, x: F.relu(m.a(F.max_pool2d(x, 3, 2, 1)) + F.avg_pool2d(x, 2, ceil_mode=True)),
            a=nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)),
        ),
        {"max_pool2d", "avg_pool2d"},
    ),
    "groups and dilation": (
        lambda c: Body(
            lambda m, x: m.c(F.relu(m.b(m.a(x)))),
            a=nn.Conv2d(c, c, 3, padding=1, groups=4),
            b=nn.Sequential(nn.Conv2d(c, c, 3, padding=2, dilation=2), nn.BatchNorm2d(c)),
            c=nn.Conv2d(c, c, 1),
        ),
        {"conv2d"},
    ),
    "unfolding": (
        lambda c: Body(unfolded, qkv=nn.Linear(c, 3 * c), out=nn.Linear(c, c), last=nn.Conv2d(c, c, 1)),
        {"reshape"},
    ),
    "talking heads": (
        lambda c: Body(talking, qkv=nn.Conv2d(c, 3 * c, 1), talk=nn.Conv2d(2, 2, 1), out=nn.Conv2d(c, c, 1)),
        {"conv2d"},
    ),
    "in place": (lambda c: Body(in_place, a=nn.Conv2d(c, c, 1), b=nn.Conv2d(c, c, 1)), {"cumsum"}),
}


@pytest.mark.parametrize("name", list(APART))
@pytest.mark.parametrize("channels", [16, 32, 40])
def test_torch_does_between_native_steps_what_no_step_does(name: str, channels: int) -> None:
    torch.manual_seed(1)
    make, apart = APART[name]
    native = agree(Network(channels, make(channels)), x := torch.randn(35, 3, 8, 6))
    assert not native.reason
    assert apart <= set(native.apart)
    torch.testing.assert_close(native(x[:1]), native(x)[:1])


def test_a_table_that_the_network_keeps_is_a_constant() -> None:
    def biased(m: Any, x: Tensor) -> Tensor:
        if "cpu" not in m.kept:
            m.kept["cpu"] = m.a.bias[torch.arange(x.shape[1]).flip(0)].view(1, -1, 1, 1) * 2
        return m.a(x) + m.kept["cpu"]

    body = Body(biased, a=nn.Conv2d(16, 16, 1))
    body.kept = {}
    for _ in range(2):  # without the table, and with it
        native = agree(Network(16, body), torch.randn(2, 3, 6, 6))
        assert not native.reason
        assert not native.apart


def test_any_structure_of_results_comes_back() -> None:
    torch.manual_seed(2)

    def several(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        return {"maps": [y, torch.cumsum(y, 1)], "sizes": (torch.arange(3) * m.a.bias[:3], y.mean((2, 3)), 7, None)}

    network = lively(Body(several, a=nn.Conv2d(3, 24, 3, padding=1)))
    native, x = NativeNet(network), torch.randn(40, 3, 7, 9)
    with torch.no_grad():
        expected = network(x)
    found = native(x)
    assert not native.reason
    assert list(native.apart) == ["cumsum"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found["sizes"][2:] == (7, None)


def test_wrong_descriptions_are_refused() -> None:
    import headway.kernels.cpu._cpu as _cpu

    make: Any = _cpu.make_image_net
    shapes = [(4, 4, 3), (4, 4, 3), (1, 1, 3)]
    good = [{"kind": "activate", "from": [0], "to": 1, "low": 0.0}, {"kind": "mean", "from": [1], "to": 2}]
    made = make(shapes, good, [2])
    for wrong, message in (
        ([{**good[0], "from": [2]}, good[1]], "no step before it made"),
        ([{**good[0], "to": 0}, good[1]], "no register of its own"),
        ([{**good[0], "kind": "dance"}, good[1]], "there is no 'dance'"),
        ([{**good[0], "from": [0, 0]}, good[1]], "how many it reads"),
        ([good[0], {**good[1], "kind": "activate"}], "its image"),
        ([good[0], {"kind": "take", "from": [1], "to": 2, "begin": 1}], "its channels"),
        ([{**good[0], "kind": "depthwise", "kernel": 3, "top": 1, "left": 1}, good[1]], "its image"),
    ):
        with pytest.raises(ValueError, match=message):
            make(shapes, wrong, [2])
    with pytest.raises(ValueError, match="kept register is never made"):
        make(shapes, good[:1], [2])
    for coming in (0, 4):
        with pytest.raises(ValueError, match="fewer registers than come in"):
            make(shapes, good, [2], coming)
    image = np.zeros((1, 16, 3), np.float32)
    for wrong_images in ([], [image, image], [image[:, :9]], [np.zeros((33, 16, 3), np.float32)]):
        with pytest.raises(ValueError, match=r"number of arrays|another size|1 to 32"):
            made.run(wrong_images, [2])
    with pytest.raises(ValueError, match="no such size"):
        make([(4, 1 << 40, 3), *shapes[1:]], good, [2])
