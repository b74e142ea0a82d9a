"""The native encoder against the readable module, with every kind of weight, at every level."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from headway.core.module_model import ModuleModel, native_forward
from headway.core.registry import system
from headway.core.system import Context
from headway.kernels import cpu
from headway.retrieval.minilm import Config, Encoder
from headway.retrieval.native_encoder import NativeEncoder

ODD = Config(vocabulary=50, positions=200, width=48, hidden=72, heads=3, layers=2)
"""Widths that are no multiple of what the kernels take at once; heads of 16."""
NARROW = Config(vocabulary=50, positions=200, width=40, hidden=300, heads=5, layers=3, gelu="tanh")
"""Heads of 8."""


def made(config: Config) -> Encoder:
    torch.manual_seed(3)
    network = Encoder(config).eval()
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else 0.25)
    return network


def asked(config: Config, *lengths: int) -> tuple[Tensor, Tensor]:
    """One row for each length, padded at its end."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, config.vocabulary, (len(lengths), max(lengths)), generator=generator)
    return ids, torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("level", cpu.levels())
@pytest.mark.parametrize("config", [ODD, NARROW, Config(layers=2, vocabulary=99)])
def test_vectors_equal_the_readable_modules(config: Config, level: str) -> None:
    network = made(config)
    native = NativeEncoder(network)
    for lengths in ((1,), (130, 64, 1, 65, 13), (200, 128)):
        ids, mask = asked(config, *lengths)
        with torch.no_grad(), cpu.at_level(level):
            torch.testing.assert_close(native(ids, mask), network(ids, mask), rtol=0, atol=1e-5)


def test_a_mask_may_have_holes_and_hide_a_whole_row() -> None:
    network = made(ODD)
    ids, mask = asked(ODD, 70, 70, 70)
    mask[0, 10:30] = mask[0, 0] = False
    mask[1] = False
    with torch.no_grad():
        found = NativeEncoder(network)(ids, mask)
        torch.testing.assert_close(found, network(ids, mask), rtol=0, atol=1e-5)
    assert not found[1].any()


def test_bits_depend_on_neither_batch_nor_threads_nor_level() -> None:
    network = made(ODD)
    native = NativeEncoder(network)
    ids, mask = asked(ODD, 150, 3, 97, 128, 128, 64, 40)
    together = native(ids, mask)
    alone = [native(ids[i : i + 1, : int(mask[i].sum())], mask[i : i + 1, : int(mask[i].sum())]) for i in range(7)]
    assert torch.equal(torch.cat(alone), together)
    before = cpu.threads()
    try:
        for threads in (1, 2, 3):
            cpu.set_threads(threads)
            assert torch.equal(native(ids, mask), together)
    finally:
        cpu.set_threads(before)
    for level in cpu.levels():
        with cpu.at_level(level):
            assert torch.equal(native(ids, mask), together)


@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_gelu_is_the_modules_over_its_whole_range(gelu: Literal["none", "tanh"]) -> None:
    """One token whose hidden values sweep -12..12: the layer passes GELU of each to a coordinate of its own."""
    width = 256
    network = made(Config(vocabulary=2, positions=1, width=width, hidden=width, heads=1, layers=1, gelu=gelu))
    layer: Any = network.layers[0]
    with torch.no_grad():
        layer.up.weight.zero_()
        layer.up.bias.copy_(torch.linspace(-12, 12, width))
        layer.down.weight.copy_(torch.eye(width))
        one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
        exact = network.double()(*one)
        network.float()
        # A norm of about 100 is divided out.
        torch.testing.assert_close(NativeEncoder(network)(*one).double(), exact, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("slug", "settings"), [("int8", {}), ("int4", {"quantizer": "rtn"}), ("lut-gemm", {"bits": 4, "quantizer": "rtn"})]
)
def test_any_weight_multiplies_as_its_own_kernel_does(slug: str, settings: dict[str, Any]) -> None:
    config = Config(vocabulary=50, positions=64, width=64, hidden=128, heads=4, layers=2)
    inputs = asked(config, 20, 64, 7)
    model = ModuleModel(made(config), inputs, task="embedding")
    found: Any = system(slug)
    packed = found.apply(model, found.settings.parse(settings, slug), Context(None, threads=1))  # type: ignore[arg-type]
    vectors = packed.run(inputs)
    assert packed.kernel_calls() == len(packed.packed_weights()) == 12
    with torch.no_grad():
        torch.testing.assert_close(vectors, packed.runtime(*inputs), rtol=0, atol=2e-3)
    assert not torch.equal(vectors, model.run(inputs))


def test_a_model_runs_natively_only_where_it_can() -> None:
    network = made(ODD)
    assert isinstance(native_forward(network), NativeEncoder)
    assert native_forward(network.double()) is None
    assert native_forward(torch.nn.Linear(2, 2)) is None


def test_what_it_cannot_take_is_refused() -> None:
    network = made(ODD)
    native = NativeEncoder(network)
    ids, mask = asked(ODD, 8)
    for bad, message in ((ids + 50, "vocabulary"), (ids - 50, "vocabulary")):
        with pytest.raises(ValueError, match=message):
            native(bad, mask)
    with pytest.raises(ValueError, match="positions"):
        native(torch.zeros(1, 201, dtype=torch.int64), torch.ones(1, 201, dtype=torch.bool))
    network.layers[1].up = torch.nn.Linear(48, 71)
    with pytest.raises(ValueError, match="up is 71x48, not 72x48"):
        NativeEncoder(network)


def test_no_memory_is_an_error_and_the_next_call_works() -> None:
    native = NativeEncoder(made(ODD))
    ids, mask = asked(ODD, 20, 30)
    cpu.fail_allocation(2)
    try:
        with pytest.raises(MemoryError):
            native(ids, mask)
    finally:
        cpu.fail_allocation(0)
    assert np.isfinite(native(ids, mask).numpy()).all()
