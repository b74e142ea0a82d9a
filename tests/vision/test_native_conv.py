"""The native EfficientNet-Lite against the readable module, with other weights, at every level."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headway.core.module_model import ModuleModel, native_forward
from headway.core.registry import system
from headway.core.system import Context
from headway.kernels import cpu
from headway.vision.efficientnet_lite import Config, EfficientNetLite, efficientnet_lite0
from headway.vision.native_conv import NativeConvNet

SMALL = Config(0.35, 0.5, 64, classes=21)
"""Widths of 8 to 112 channels; most stages have one block."""


def made(config: Config = SMALL) -> EfficientNetLite:
    """Random weights and norms, scaled so that activations neither vanish nor all meet the bounds of ReLU6."""
    torch.manual_seed(1)
    network = EfficientNetLite(config).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.2
            module.running_var = torch.rand(module.num_features) + 0.3
            module.weight.data = torch.rand(module.num_features) + 1.0
            module.bias.data = torch.randn(module.num_features) * 0.5
    return network


@pytest.mark.parametrize("level", cpu.levels())
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 1), (7, 95)])
def test_logits_equal_the_readable_modules(size: tuple[int, int], level: str) -> None:
    network = made()
    x = torch.randn(2, 3, *size)
    with torch.no_grad(), cpu.at_level(level):
        expected = network(x)
        found = NativeConvNet(network)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_bits_depend_on_neither_batch_nor_threads_nor_level() -> None:
    native, x = NativeConvNet(made()), torch.randn(3, 3, 50, 61)
    together = native(x)
    assert torch.equal(torch.cat([native(image[None]) for image in x]), together)
    assert torch.equal(native(x.to(memory_format=torch.channels_last)), together)
    before = cpu.threads()
    try:
        for threads in (1, 2, 3):
            cpu.set_threads(threads)
            assert torch.equal(native(x), together)
    finally:
        cpu.set_threads(before)
    for level in cpu.levels():
        with cpu.at_level(level):
            assert torch.equal(native(x), together)


@pytest.mark.parametrize(
    ("slug", "settings"), [("int8", {}), ("int4", {"quantizer": "rtn"}), ("lut-gemm", {"bits": 4, "quantizer": "rtn"})]
)
def test_any_weight_multiplies_as_its_own_kernel_does(slug: str, settings: dict[str, Any]) -> None:
    model = ModuleModel(made(), torch.randn(2, 3, 64, 64), task="classification")
    found: Any = system(slug)
    packed = found.apply(model, found.settings.parse(settings, slug), Context(None, threads=1))  # type: ignore[arg-type]
    logits = packed.run(model.sample)
    assert packed.kernel_calls() == len(packed.packed_weights()) > 10
    with torch.no_grad():
        expected = packed.runtime(*model.sample)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    assert not torch.equal(logits, model.run(model.sample))


def test_the_packaged_network_runs_natively_and_chooses_the_same_classes() -> None:
    model = efficientnet_lite0()
    assert isinstance(native_forward(model.module()), NativeConvNet)
    inputs = model.workload().heldout[0]
    with torch.no_grad():
        expected = model.module()(*inputs)
    torch.testing.assert_close(model.run(inputs), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_what_does_not_fit_is_refused() -> None:
    network = made()
    with pytest.raises(ValueError, match="number of channels"):
        NativeConvNet(network)(torch.zeros(1, 4, 32, 32))
    network.head.conv = torch.nn.Conv2d(8, 1280, 1, bias=False)
    with pytest.raises(ValueError, match="does not fit"):
        NativeConvNet(network)
