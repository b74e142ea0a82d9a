"""EfficientNet-Lite through the native runtime against the readable module, with other weights, at every level."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from headway.core.module_model import ModuleModel, native_forward
from headway.core.registry import system
from headway.core.system import Context
from headway.kernels import cpu
from headway.vision.efficientnet_lite import Block, Config, ConvNorm, EfficientNetLite, efficientnet_lite0
from headway.vision.runtime.net import NativeNet

SMALL = Config(0.35, 0.5, 64, classes=21)
"""Widths of 8 to 112 channels; most stages have one block."""


def made(config: Config = SMALL) -> EfficientNetLite:
    """Random weights and norms, scaled so that activations neither vanish nor all meet the bounds of ReLU6."""
    torch.manual_seed(1)
    return with_norms(EfficientNetLite(config))


def with_norms(network: EfficientNetLite) -> EfficientNetLite:
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.2
            module.running_var = torch.rand(module.num_features) + 0.3
            module.weight.data = torch.rand(module.num_features) + 1.0
            module.bias.data = torch.randn(module.num_features) * 0.5
    return network.eval()


def with_weights(model: ModuleModel, slug: str, **settings: Any) -> ModuleModel:
    found: Any = system(slug)
    packed: ModuleModel = found.apply(model, found.settings.parse(settings, slug), Context(None, threads=1))  # type: ignore[arg-type]
    return packed


@pytest.mark.parametrize("level", cpu.levels())
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 1), (7, 95), (70, 600)])  # the last: in bands of rows
def test_logits_equal_the_readable_modules(size: tuple[int, int], level: str) -> None:
    network = made()
    x = torch.randn(2, 3, *size)
    native = NativeNet(network)
    with torch.no_grad(), cpu.at_level(level):
        expected = network(x)
        found = native(x)
    assert not native.reason
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [(50, 61), (21, 600)])
def test_bits_depend_on_neither_batch_nor_threads_nor_level(size: tuple[int, int]) -> None:
    native, x = NativeNet(made()), torch.randn(3, 3, *size)
    together = native(x)
    assert torch.equal(torch.cat([native(image[None]) for image in x]), together)
    assert torch.equal(native(x.to(memory_format=torch.channels_last)), together)
    before = cpu.threads()
    try:
        for threads in (1, 2, 3, 7):
            cpu.set_threads(threads)
            assert torch.equal(native(x), together)
    finally:
        cpu.set_threads(before)
    for level in cpu.levels():
        with cpu.at_level(level):
            assert torch.equal(native(x), together)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@given(data=st.data())
@hypothesis.settings(max_examples=25, deadline=None)
def test_one_block_equals_torch_for_any_shape(kernel: int, stride: int, data: st.DataObject) -> None:
    inside, out, height, width = (data.draw(st.integers(1, most)) for most in (31, 40, 40, 40))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    network = EfficientNetLite(Config(0.35, 0.1, 32, classes=5))
    first = Block(32, inside, 3, 1, 1)
    network.blocks = nn.Sequential(first, Block(inside, out, kernel, stride, data.draw(st.integers(2, 3))))
    network.head = ConvNorm(out, 24)
    network.classifier = nn.Linear(24, 5)
    with_norms(network)
    x = torch.randn(1, 3, height, width)
    with torch.no_grad():
        expected = network(x)
        for level in cpu.levels():
            with cpu.at_level(level):
                found = NativeNet(network)(x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("slug", "settings"), [("int8", {}), ("int4", {"quantizer": "rtn"}), ("lut-gemm", {"bits": 4, "quantizer": "rtn"})]
)
def test_any_weight_multiplies_as_its_own_kernel_does(slug: str, settings: dict[str, Any]) -> None:
    model = ModuleModel(made(), torch.randn(2, 3, 64, 64), task="classification")
    packed = with_weights(model, slug, **settings)
    logits = packed.run(model.sample)
    assert packed.kernel_calls() == len(packed.packed_weights()) > 10
    with torch.no_grad():
        expected = packed.runtime(*model.sample)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert not torch.equal(logits, model.run(model.sample))


@pytest.mark.parametrize("group", [32, 64, 320, 1024])  # 320 and whole rows of 672: summed in parts
def test_products_of_eight_bits_are_those_of_the_exact_weights(group: int) -> None:
    model = ModuleModel(made(), torch.randn(2, 3, 70, 61), task="classification")
    packed = with_weights(model, "int8", group_size=group)
    native, (x,) = NativeNet(packed.runtime), model.sample
    with torch.no_grad():
        expected = packed.module()(x)  # of the dequantised weights, with float32 activations
    first = native(x)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    before = cpu.threads()
    try:
        for threads in (1, 2, 3):
            cpu.set_threads(threads)
            for level in cpu.levels():
                with cpu.at_level(level):
                    assert torch.equal(native(x), first)
                    assert torch.equal(native(x[1:]), first[1:])
    finally:
        cpu.set_threads(before)


@pytest.mark.parametrize("level", cpu.levels())
def test_an_image_that_is_not_a_number_gives_none(level: str) -> None:
    model = ModuleModel(made(), torch.randn(2, 3, 64, 64), task="classification")
    packed = with_weights(model, "int8")
    native, x = NativeNet(packed.runtime), model.sample[0].clone()
    with cpu.at_level(level):
        expected = native(x)
        x[0, :, 20:40] = float("nan")
        logits = native(x)
    assert logits[0].isnan().all()
    assert torch.equal(logits[1], expected[1])


def test_an_image_of_zeros_has_the_logits_of_the_exact_weights() -> None:
    model = ModuleModel(made(), torch.zeros(1, 3, 32, 32), task="classification")
    packed = with_weights(model, "int8")
    with torch.no_grad():
        expected = packed.module()(*model.sample)
    found = NativeNet(packed.runtime)(*model.sample)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_the_packaged_network_runs_natively_and_chooses_the_same_classes() -> None:
    model = efficientnet_lite0()
    assert isinstance(native_forward(model.module()), NativeNet)
    inputs = model.workload().heldout[0]
    with torch.no_grad():
        expected = model.module()(*inputs)
    torch.testing.assert_close(model.run(inputs), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_wrong_number_of_channels_is_the_modules_own_error() -> None:
    with pytest.raises(RuntimeError, match="channels"):
        NativeNet(made())(torch.zeros(1, 4, 32, 32))


def test_programs_are_shared_by_networks_of_one_structure_but_not_their_values() -> None:
    one, other = made(), made()
    with torch.no_grad():
        other.classifier.bias += 1.0
    x = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(NativeNet(other)(x), NativeNet(one)(x) + 1.0)
