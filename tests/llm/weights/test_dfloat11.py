"""The system `dfloat11`: what it takes, how it groups, what it leaves alone and says, and that no bit changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from known_machine import UNMEASURED
from tiny_models import TinyFolder
from torch import nn

from headway.core.errors import BadFile, BadInput
from headway.core.model import Site
from headway.core.module_model import ModuleModel
from headway.core.registry import entry
from headway.core.system import Context
from headway.llm.load import load, load_saved
from headway.llm.weights.coded import CodedWeight
from headway.llm.weights.dense import DenseWeight, from_bf16, to_bf16
from headway.llm.weights.dfloat11 import LEAST_GROUP, Dfloat11, bfloat16_bits, coded_bytes, counts, grouped
from headway.llm.weights.grouped import Int8Weight

SYSTEM = Dfloat11()


class Net(nn.Module):
    """Convolutions and linear layers of every odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(20, 48, 1)
        self.blocks = nn.ModuleList([nn.Linear(48, 48) for _ in range(3)])
        self.out = nn.Linear(48, 70)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.mix(x)).mean((2, 3))
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.out(x)


@pytest.fixture
def net() -> ModuleModel:
    torch.manual_seed(0)
    module = Net()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return ModuleModel(module, torch.randn(2, 20, 6, 6))


def rounded(tiny: TinyFolder) -> Any:
    model = load(tiny.path)
    return model.with_weights({s.name: DenseWeight(model.weight(s.name).dequantize(), "bf16") for s in model.sites()})


def context() -> Context:
    return Context(UNMEASURED, threads=2)


def apply(model: Any, made: Context | None = None, **values: Any) -> Any:
    return SYSTEM.apply(model, SYSTEM.settings.parse(values, "dfloat11"), made or context())


def sites(*names: str, parameters: int = LEAST_GROUP, kind: Any = "linear") -> list[Site]:
    return [Site(name, parameters // 16, 16, kind) for name in names]


def test_a_language_model_keeps_every_bit_and_sheds_a_third(tiny):
    model = rounded(tiny)
    small = apply(model)
    tokens = np.arange(1, 20)
    for site in model.sites():
        weight = small.weight(site.name)
        assert isinstance(weight, CodedWeight)
        assert np.array_equal(weight.bits(), bfloat16_bits(model.weight(site.name))[0])
    for kind in ("native", "exact"):
        ours, theirs = (m.with_runtime(kind).logits(tokens) for m in (small, model))
        assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    coded, held = (sum(m.weight(site.name).nbytes for site in m.sites()) for m in (small, model))
    assert coded < 0.72 * held


def test_it_comes_back_from_an_artifact(tiny, tmp_path):
    model = rounded(tiny)
    small = apply(model)
    small.save(tmp_path)
    again = load_saved(tmp_path)
    assert again.fingerprint() == small.fingerprint()
    assert np.array_equal(again.logits(np.arange(9)), model.logits(np.arange(9)))


def test_a_flipped_bit_of_a_saved_stream_names_the_file_or_the_group(tiny, tmp_path):
    apply(rounded(tiny)).save(tmp_path)
    path = tmp_path / "language.safetensors"
    data = bytearray(path.read_bytes())
    for at in (len(data) // 3, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 16
        path.write_bytes(changed)
        with pytest.raises(BadFile, match=r"dfloat11 group|language"):
            load_saved(tmp_path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput):
        load_saved(tmp_path)


def test_any_module_gives_the_bits_of_its_bfloat16_weights(net, tmp_path):
    small = apply(net)
    dense = net.with_weights({s.name: DenseWeight(net.weight(s.name).dequantize(), "bf16") for s in net.sites()})
    # `DenseWeight` multiplies with torch's kernel in a module; its native form is the kernel that is compared.
    x = torch.randn(3, 20, 6, 6, generator=torch.Generator().manual_seed(2))
    for site in net.sites():
        rows = np.random.default_rng(0).standard_normal((3, site.in_features), dtype=np.float32)
        ours, theirs = (m.weight(site.name).native().matmul(rows) for m in (small, dense))
        assert np.array_equal(ours, theirs)
    assert torch.allclose(small.run(x), net.run(x), rtol=1e-5, atol=1e-6)
    assert small.kernel_calls() == len(net.sites())
    small.save(tmp_path)
    again = ModuleModel.load(tmp_path, module=Net())
    assert torch.equal(again.run(x), small.run(x))


@pytest.mark.parametrize(("dtype", "said"), [(torch.float32, "f32"), (torch.float64, "f64"), (torch.float16, "f16")])
def test_other_floats_need_the_cast_and_its_loss_is_stated(dtype, said):
    torch.manual_seed(0)
    model = ModuleModel(Net().to(dtype), torch.randn(2, 20, 6, 6, dtype=dtype))
    with pytest.raises(
        BadInput, match=rf"mix is {said}, not bf16; cast=bf16 rounds it, which loses: relative error up to 0\.00"
    ):
        apply(model)
    made = context()
    small = apply(model, made, cast="bf16")
    assert np.array_equal(small.weight("out").bits(), to_bf16(model.weight("out").dequantize()))
    assert any("mix rounded to bf16, relative error up to 0.00" in note for note in made.notes)


def test_large_exponents_stay_uncompressed_and_are_named(net):
    value = net.weight("out").dequantize().copy()
    value[3, 4] = 2.0**113
    made = context()
    small = apply(net.with_weights({"out": DenseWeight(value, "bf16")}), made)
    assert small.weight("out").form == "dense"
    assert isinstance(small.weight("mix"), CodedWeight)
    assert any("out holds exponents of 240 or more" in note for note in made.notes)


def test_quantised_weights_and_those_that_would_not_shrink_stay(net):
    codes = np.zeros((70, 48), np.int8)
    held = Int8Weight(codes, np.ones((70, 1), np.float16), group_size=48)
    random = np.random.default_rng(0).integers(0, 0x7800, (48, 48)).astype(np.uint16)
    made = context()
    model = net.with_weights({"out": held, "blocks.1": DenseWeight(from_bf16(random), "bf16")})
    small = apply(model, made, groups="module")
    assert small.weight("out") is held
    assert small.weight("blocks.1").form == "dense"
    assert any("out is int8" in note for note in made.notes)
    assert any("blocks.1 would not shrink" in note for note in made.notes)


def test_it_does_not_apply_to_a_model_without_float_weights(net):
    int8 = {
        site.name: Int8Weight(
            np.zeros((site.out_features, site.in_features), np.int8),
            np.ones((site.out_features, -(-site.in_features // 16)), np.float16),
            group_size=16,
        )
        for site in net.sites()
    }
    verdict = SYSTEM.applies(net.with_weights(int8), UNMEASURED)
    assert not verdict and "no floats (int8)" in verdict.reason
    assert SYSTEM.applies(net, UNMEASURED)


def test_blocks_share_a_codebook_and_small_ones_join_their_neighbours():
    big = sites("layers.0.q", "layers.0.down", "layers.1.q", "layers.1.down")
    assert list(grouped(big, "block")) == ["layers.0", "layers.1"]
    assert list(grouped(big, "module")) == [site.name for site in big]
    small = sites("stem", "blocks.0.a", "blocks.1.a", "blocks.2.a", parameters=LEAST_GROUP // 2) + sites("blocks.3.a")
    assert list(grouped(small, "block")) == ["rest..blocks.0", "blocks.1..blocks.2", "blocks.3"]
    assert list(grouped(small[1:4], "block")) == ["blocks.0..blocks.2"]
    head = sites("head", parameters=64, kind="head")
    apart = grouped([*sites("embedding", parameters=64, kind="embedding"), *big, *head], "block")
    assert list(apart) == ["embedding", "layers.0", "layers.1", "head"]


def test_weights_of_a_group_have_one_codebook_and_its_name(tiny):
    small = apply(rounded(tiny))
    for group, members in grouped(small.sites(), "block").items():
        weights = [small.weight(site.name) for site in members]
        assert {weight.group for weight in weights} == {group}
        assert len({weight.lengths.tobytes() for weight in weights}) == 1


def test_resident_groups_are_the_first(tiny):
    small = apply(rounded(tiny), resident=1)
    first, *others = grouped(small.sites(), "block").values()
    assert all(small.weight(site.name).resident for site in first)
    assert not any(small.weight(site.name).resident for members in others for site in members)


def test_sizes_are_predicted_to_the_byte(tiny):
    model = rounded(tiny)
    small = apply(model)
    assert SYSTEM.predict(model, UNMEASURED, SYSTEM.settings()).size_bytes == small.size_bytes()
    for site in small.sites():
        weight = small.weight(site.name)
        assert coded_bytes(counts(weight.bits()), weight.lengths) == weight.nbytes


def test_the_search_is_offered_the_cast_only_where_it_is_needed(net):
    assert list(SYSTEM.options(net, UNMEASURED)) == [{}]
    other = net.with_weights({"out": DenseWeight(net.weight("out").dequantize() * np.float32(1.001))})
    assert list(SYSTEM.options(other, UNMEASURED)) == [{"cast": "bf16"}]


def test_applying_it_twice_changes_nothing(net):
    once = apply(net)
    again = apply(once)
    assert all(np.array_equal(again.weight(s.name).bits(), once.weight(s.name).bits()) for s in net.sites())


def test_the_registry_knows_it_and_its_proof():
    found = entry("dfloat11")
    assert isinstance(found.load(), Dfloat11)
    assert found.proof_module == "headway.llm.weights.dfloat11_proof"
