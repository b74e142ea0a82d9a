"""Any torch module as a model: what it copies, what it shares, and that the user's own module stays as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headway.core.errors import BadInput
from headway.core.module_model import ModuleModel
from headway.core.packed_modules import PackedConv1x1, PackedLinear, TensorWeight
from headway.llm.weights.grouped import Int8Weight


class Net(nn.Module):
    """Calls its layers in another order than it registers them."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(24, 5)
        self.stem = nn.Conv2d(3, 48, 3)
        self.point = nn.Conv2d(48, 24, 1, stride=2, bias=False)
        self.depth = nn.Conv2d(24, 24, 3, groups=24)
        self.norm = nn.BatchNorm2d(24)
        self.spare = nn.Linear(24, 24)

    def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
        x = self.norm(self.depth(self.point(self.stem(image))))
        return self.late(x.mean((-1, -2))) * scale


def int8(matrix: np.ndarray) -> Int8Weight:
    """Round to nearest with one scale per group of 32 columns."""
    out, inside = matrix.shape
    groups = -(-inside // 32)
    padded = np.zeros((out, groups * 32), np.float32)
    padded[:, :inside] = matrix
    scale = np.maximum(np.abs(padded.reshape(out, groups, 32)).max(2) / 127, 1e-6).astype(np.float32)
    codes = np.round(padded / np.repeat(scale, 32, 1))[:, :inside].clip(-127, 127).astype(np.int8)
    return Int8Weight(codes, scale, group_size=32)


def quantised(model: ModuleModel, *sites: str) -> ModuleModel:
    names = sites or tuple(site.name for site in model.sites())
    return model.with_weights({name: int8(model.weight(name).dequantize()) for name in names})


@pytest.fixture
def net() -> Iterator[Net]:
    torch.manual_seed(0)
    yield Net()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def snapshot(module: nn.Module) -> dict[str, object]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "objects": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "grads": {name: tensor.grad for name, tensor in tensors.items()},
        "modules": {name: (type(child), child.training) for name, child in module.named_modules()},
        "hooks": sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules()),
    }


def test_sites_are_the_layers_the_sample_reaches_in_the_order_of_their_calls(net: Net, image: Tensor) -> None:
    sites = [(s.name, s.kind, s.out_features, s.in_features) for s in ModuleModel(net, image).sites()]
    assert sites == [("point", "conv1x1", 24, 48), ("late", "linear", 5, 24)]


def test_the_users_module_is_never_changed(net: Net, image: Tensor) -> None:
    before = snapshot(net)
    model = quantised(ModuleModel(net, image))
    model.run(image)
    model.module()(image).sum().backward()
    model.fingerprint()
    after = snapshot(net)
    values = zip(before.pop("values").values(), after.pop("values").values(), strict=True)  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in values)
    assert before == after


def test_a_new_model_shares_every_parameter_and_weight_it_does_not_replace(net: Net, image: Tensor) -> None:
    model = ModuleModel(net, image)
    first = quantised(model, "point")
    second = quantised(first, "late")
    assert second.runtime.stem.weight is net.stem.weight
    assert second.runtime.norm.running_var is model.runtime.norm.running_var
    assert second.weight("point") is first.weight("point")
    assert isinstance(first.runtime.late, nn.Linear) and isinstance(second.runtime.late, PackedLinear)
    assert isinstance(model.runtime.point, nn.Conv2d) and isinstance(second.runtime.point, PackedConv1x1)


def test_the_wrapped_module_computes_what_the_module_in_eval_does(net: Net, image: Tensor) -> None:
    model = ModuleModel(net, (image, 2.0))
    net.eval()
    for inputs in ((image, 2.0), {"image": image, "scale": 2.0}):
        assert torch.equal(model.run(inputs), net(image, 2.0))
    assert torch.equal(model(image, scale=2.0), net(image, 2.0))
    assert torch.equal(model.run(image), net(image))


def test_packed_sites_compute_with_their_kernels_what_the_readable_module_computes(net: Net, image: Tensor) -> None:
    model = quantised(ModuleModel(net, image))
    assert model.kernel_calls() == 0
    y = model.run(image)
    assert model.kernel_calls() == 2
    readable = model.module()
    assert torch.equal(readable.late.weight, torch.from_numpy(model.weight("late").dequantize()))
    torch.testing.assert_close(y, readable(image).detach(), rtol=2e-2, atol=2e-2)
    assert [name for name, _ in readable.named_modules()] == [name for name, _ in net.named_modules()]
    assert {type(child) for child in readable.modules()} == {type(child) for child in net.modules()}


def test_gradients_and_hooks_of_the_readable_module_stay_in_it(net: Net, image: Tensor) -> None:
    model = ModuleModel(net, image)
    readable = model.module()
    readable.late.register_forward_hook(lambda *_: pytest.fail("a hook leaked"))
    model.run(image)
    other = model.module()
    other(image).sum().backward()
    assert other.stem.weight.grad is not None
    assert net.stem.weight.grad is None and readable.stem.weight.grad is None
    assert other.stem.weight.data_ptr() == net.stem.weight.data_ptr()


@settings(max_examples=30, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_a_packed_1x1_convolution_is_the_convolution(
    channels: tuple[int, int], stride: tuple[int, int], size: tuple[int, int], bias: bool, last: bool
) -> None:
    conv = nn.Conv2d(channels[0], channels[1], 1, stride, bias=bias)
    x = torch.randn(2, channels[0], *size)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    model = ModuleModel(conv, x)
    packed = model.with_weights({"": TensorWeight(conv.weight[:, :, 0, 0])})
    assert packed.kernel_calls() == 0
    torch.testing.assert_close(packed.run(x), conv(x).detach(), rtol=1e-4, atol=1e-5)
    assert packed.kernel_calls() == 1


def test_a_layer_that_computes_something_else_is_no_site() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)

    class Convolved(nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(input, weight * 2, bias)

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    patched = nn.Linear(4, 4)
    patched.forward = lambda input: input  # type: ignore[method-assign]
    net = nn.Sequential(
        Standardised(4, 4, 1),
        Convolved(4, 4, 1),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Flatten(2),
    )
    assert ModuleModel(net, torch.ones(1, 4, 2, 2)).sites() == ()
    assert ModuleModel(nn.Sequential(Doubled(4, 4), patched), torch.ones(1, 4)).sites() == ()


def test_a_layer_with_hooks_is_left_alone_and_said_to_be() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)), nn.ReLU())
    net[0].register_forward_hook(lambda layer, given, output: output * 2)
    net[1].register_forward_pre_hook(lambda layer, given: (given[0] + 1,))
    net[2].register_full_backward_hook(lambda layer, into, out: None)  # changes nothing of what is computed
    net[4].register_forward_hook(lambda layer, given, output: output + 1)
    x = torch.randn(3, 4)
    model = ModuleModel(net, x)
    assert [site.name for site in model.sites()] == ["2", "3"]
    assert model.notes == ("left alone, since hooks run around them: 0, 1",)
    packed = model.with_weights({name: model.weight(name) for name in "23"})
    torch.testing.assert_close(packed.run(x), net(x).detach())
    with pytest.raises(BadInput, match="has no site '0'"):
        model.weight("0")
    assert not ModuleModel(nn.Linear(4, 4), x).notes


def test_a_layer_under_two_names_is_one_site_replaced_under_both() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    model = ModuleModel(net, torch.randn(3, 4))
    assert [site.name for site in model.sites()] == ["0"]
    packed = quantised(model)
    packed.run(torch.randn(3, 4))
    assert packed.kernel_calls() == 2 and packed.runtime[0] is packed.runtime[2]


def test_layers_held_in_plain_lists_and_bound_methods_follow_the_copy() -> None:
    class Indirect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.steps = [self.first]
            self.last = self.finish

        def finish(self, x: Tensor) -> Tensor:
            return self.first(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.steps[0](x))

    packed = quantised(ModuleModel(Indirect(), torch.randn(2, 4)))
    packed.run(torch.randn(2, 4))
    assert packed.kernel_calls() == 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("masked", [False, True])
def test_torchs_transformer_calls_the_packed_layers_instead_of_its_fused_path(masked: bool) -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 32)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = masked
    model = ModuleModel(net, {"src": x, "src_key_padding_mask": mask})
    assert [site.name for site in model.sites()] == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    packed = quantised(model)
    y = packed.run(packed.sample)
    assert packed.kernel_calls() == 4
    torch.testing.assert_close(y[~mask], model.run(model.sample)[~mask], rtol=0.1, atol=0.05)


def test_a_weight_read_instead_of_called_is_the_exact_value() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.to(self.layer.weight.dtype)) + self.layer.weight.sum() + self.layer.in_features

    model = quantised(ModuleModel(Reader(), torch.ones(1, 8)))
    torch.testing.assert_close(
        model.run(torch.ones(1, 8)), model.module()(torch.ones(1, 8)).detach(), rtol=0.02, atol=0.02
    )


def test_half_precision_stays_half_precision() -> None:
    net = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 4)).to(torch.bfloat16)
    model = ModuleModel(net, torch.randn(2, 32, dtype=torch.bfloat16))
    weight = model.weight("0")
    assert weight.meta() == {"dtype": "bf16"} and weight.nbytes == 2 * 32 * 16
    assert np.array_equal(weight.dequantize(), net[0].weight.detach().float().numpy())
    packed = quantised(model, "0")
    assert packed.run(model.sample).dtype == torch.bfloat16 and packed.runtime[1].weight is net[1].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_readable_module_of_a_network_of_another_type_runs_on_its_inputs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2), nn.ReLU(), nn.Flatten(2), nn.Linear(9, 4, bias=False))
    model = ModuleModel(net.to(dtype), torch.randn(2, 8, 5, 5).to(dtype))
    packed = quantised(model)
    readable = packed.module()
    assert all(
        np.array_equal(readable[int(n)].weight.detach().flatten(1).numpy(), packed.weight(n).dequantize()) for n in "03"
    )
    y = readable(packed.sample[0])
    assert y.dtype == dtype == packed.run(packed.sample).dtype
    torch.testing.assert_close(y.detach(), packed.run(packed.sample), rtol=0.05, atol=0.02)
    y.float().sum().backward()
    again = quantised(packed, "0").module()
    assert again(packed.sample[0]).dtype == dtype
    half = ModuleModel(nn.Linear(8, 4).to(dtype), torch.zeros(1, 8, dtype=dtype))
    assert type(quantised(half).module()) is not nn.Linear
    assert type(quantised(ModuleModel(nn.Linear(8, 4), torch.zeros(1, 8))).module()) is nn.Linear


# Fingerprint and size


def test_the_fingerprint_follows_content_and_structure_and_nothing_else(net: Net, image: Tensor) -> None:
    model = ModuleModel(net, image)
    base = model.fingerprint()
    assert ModuleModel(net, image[:1]).fingerprint() == base
    torch.manual_seed(0)
    assert ModuleModel(Net(), image).fingerprint() == base
    packed = quantised(model, "late")
    assert packed.fingerprint() != base and packed.fingerprint() == quantised(model, "late").fingerprint()
    with torch.no_grad():
        net.stem.weight[0, 0, 0, 0] += 1e-7
    changed = model.fingerprint()
    assert changed != base, "the parameters are shared, and so is a change made in place"
    net.norm.eps = 1e-3
    assert ModuleModel(net, image).fingerprint() != changed


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "import torch; from torch import nn; from headway.core.module_model import ModuleModel; torch.manual_seed(0);"
        "print(ModuleModel(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.ones(1, 8)).fingerprint())"
    )
    torch.manual_seed(0)
    here = ModuleModel(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.ones(1, 8)).fingerprint()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_a_changed_forward_of_a_users_class_changes_the_fingerprint() -> None:
    def made(source: str) -> ModuleModel:
        import linecache

        linecache.cache["<made>"] = (len(source), None, source.splitlines(True), "<made>")
        space: dict[str, object] = {"nn": nn, "__name__": "made"}
        sys.modules["made"] = type(sys)("made")
        sys.modules["made"].__file__ = "<made>"
        exec(compile(source, "<made>", "exec"), space)
        return ModuleModel(space["Made"](), torch.ones(2))  # type: ignore[operator]

    body = "class Made(nn.Module):\n    def forward(self, x):\n        return x * {}\n"
    assert made(body.format(2)).fingerprint() != made(body.format(3)).fingerprint()


def test_size_counts_tied_tensors_once_and_packed_weights_as_stored() -> None:
    net = nn.Sequential(nn.Embedding(10, 64), nn.Linear(64, 10, bias=False), nn.Linear(10, 6))
    net[1].weight = net[0].weight
    model = ModuleModel(net, torch.tensor([[1, 2]]))
    assert model.size_bytes() == 4 * (640 + 60 + 6)
    packed = quantised(model, "2")
    assert packed.size_bytes() == 4 * (640 + 6) + packed.weight("2").nbytes


# Bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(net: Net, image: Tensor, value: float) -> None:
    with torch.no_grad():
        net.point.weight[3, 5] = value
    with pytest.raises(BadInput, match=r"point\.weight holds (nan|inf) at \(3, 5, 0, 0\)"):
        ModuleModel(net, image)


def test_a_mask_of_minus_infinities_is_no_broken_weight_but_a_nan_is() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4,), float("-inf")), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(self.layer(x), self.mask)

    net = Masked()
    ModuleModel(net, torch.ones(1, 4))
    net.mask[2] = float("nan")
    with pytest.raises(BadInput, match=r"mask holds nan at \(2,\)"):
        ModuleModel(net, torch.ones(1, 4))


def test_a_lazy_layer_is_refused_until_it_has_a_shape() -> None:
    net = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(BadInput, match="has no shape yet; run the module once"):
        ModuleModel(net, torch.zeros(1, 4))
    net(torch.zeros(1, 4))
    assert len(ModuleModel(net, torch.zeros(1, 4)).sites()) == 1


def test_bad_samples_sites_and_modules_are_refused_in_one_line(net: Net, image: Tensor) -> None:
    model = ModuleModel(net, image)
    with pytest.raises(BadInput, match=r"Net does not run on its sample: .*channels"):
        ModuleModel(net, image[:, :1])
    with pytest.raises(BadInput, match=r"names do not fit.*it takes: image, scale"):
        ModuleModel(net, {"picture": image})
    with pytest.raises(BadInput, match="has no site 'stem'"):
        model.weight("stem")
    with pytest.raises(BadInput, match=r"site 'late' is \(5, 24\), the weight \(24, 48\)"):
        model.with_weights({"late": model.weight("point")})
    with pytest.raises(BadInput, match=r"is not a torch\.nn\.Module"):
        ModuleModel(np.ones(3), image)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="brings no data of its own"):
        model.workload()
    with torch.device("meta"):
        hollow = nn.Linear(2, 2)
    with pytest.raises(BadInput, match="meta device"):
        ModuleModel(hollow, torch.ones(1, 2))
    net.lock = __import__("threading").Lock()
    with pytest.raises(BadInput, match="cannot be copied"):
        ModuleModel(net, image)


def test_an_argument_that_only_a_name_can_give_is_refused() -> None:
    class ByName(nn.Module):
        def forward(self, x: Tensor, *, scale: float = 1.0, **rest: object) -> Tensor:
            return x * scale

    assert torch.equal(ModuleModel(ByName(), {"x": torch.ones(2)}).run({"x": torch.ones(2)}), torch.ones(2))
    with pytest.raises(BadInput, match="scale cannot be given by position"):
        ModuleModel(ByName(), {"x": torch.ones(2), "scale": 2.0})
    with pytest.raises(BadInput, match="other cannot be given by position"):
        ModuleModel(ByName(), {"x": torch.ones(2), "other": 2.0})


def test_a_name_after_one_left_out_finds_its_place() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, scale: float = 3.0, shift: float = 0.0) -> Tensor:
            return x * scale + shift

    model = ModuleModel(Optional(), {"x": torch.ones(2), "shift": 1.0})
    assert model.sample[1:] == (3.0, 1.0)
    assert torch.equal(model.run(model.sample), torch.full((2,), 4.0))


def test_a_function_that_a_module_holds_is_part_of_what_it_is() -> None:
    class Held(nn.Module):
        def __init__(self, function: object) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.function = function

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.function(self.layer(x))  # type: ignore[operator]

    torch.manual_seed(0)
    one = Held(lambda x: x + 1.0)
    prints = set()
    for function in (
        one.function,
        lambda x: x + 2.0,
        torch.relu,
        partial(torch.clamp, min=0),
        partial(torch.clamp, min=1),
    ):
        made = Held(function)
        made.load_state_dict(one.state_dict())
        prints.add(ModuleModel(made, torch.zeros(1, 3)).fingerprint())
    assert len(prints) == 5


def test_whatever_an_attribute_holds_is_part_of_what_a_module_is() -> None:
    @dataclass
    class Config:
        loops: int

    class Held(nn.Module):
        def __init__(self, value: object, name: str = "value") -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            setattr(self, name, value)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    torch.manual_seed(0)
    state = Held(0).state_dict()

    def fingerprint(value: object, name: str = "value") -> str:
        made = Held(value, name)
        made.load_state_dict(state)
        return ModuleModel(made, torch.zeros(1, 3)).fingerprint()

    values = [
        {"a": 1},
        {"a": 2},
        Config(1),
        Config(2),
        np.zeros(2),
        np.ones(2),
        {1, 2},
        {1, 3},
        torch.ones(1),
        (1, [2]),
    ]
    prints = [fingerprint(value) for value in values] + [fingerprint(1, "_k"), fingerprint(2, "_k")]
    assert len(set(prints)) == len(prints)
    assert prints[2] == fingerprint(Config(1)) and prints[4] == fingerprint(np.zeros(2))
