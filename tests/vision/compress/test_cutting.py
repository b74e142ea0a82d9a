"""Cutting: exact where nothing is lost, mended where something is, and counted."""

from __future__ import annotations

import pytest
import torch
from slim_nets import images, net
from torch import nn

from headway.core.errors import BadInput
from headway.core.module_cut import Cut, resized
from headway.vision.compress.channels import groups_of
from headway.vision.compress.cutting import cut, moments_of, predicted
from headway.vision.compress.widths import ordered
from headway.vision.count import count, stored
from headway.vision.fold import fold, relative_error


def test_cutting_nothing_is_exact() -> None:
    whole, x = net(), images(4)
    groups = groups_of(whole, x[:1])
    moments = moments_of(whole, groups, [x], "classification", 0)
    kept = {group.name: torch.arange(group.width) for group in groups}
    for given in (None, moments):
        made, sizes = cut(whole, groups, kept, given)
        assert torch.equal(made(x), whole(x))
        assert not sizes.left_out and stored(made) == stored(whole)


def test_channels_that_nobody_reads_change_nothing_in_any_subset() -> None:
    whole, x = net(), images(4)
    groups = groups_of(whole, x[:1])
    generator = torch.Generator().manual_seed(3)
    kept = {
        group.name: torch.randperm(group.width, generator=generator)[: group.width // 2].sort()[0] for group in groups
    }
    with torch.no_grad():
        for group in groups:
            gone = torch.ones(group.width, dtype=torch.bool)
            gone[kept[group.name]] = False
            for reader in group.readers:
                whole.get_submodule(reader).weight[:, gone] = 0.0
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    made, sizes = cut(whole, groups, kept)
    assert relative_error(whole(x), made(x)) < 1e-6
    assert relative_error(fold(whole, x)(x), fold(made, x)(x)) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    old, new = count(whole, x[:1]), count(made, x[:1])
    wide = 64 + 16 * 64 * 2 + 9 * 64 + 2 * 2 * 64  # of a block's parts, see slim_nets.Inverted
    assert new.stored < old.stored and new.layer_macs < old.layer_macs and wide < old.stored
    assert sizes.widths["blocks.0.filter"] == (32, 32) and sizes.widths["blocks.0.squeeze"] == (32, 8)


def test_counts_are_those_of_a_network_built_so() -> None:
    whole, x = net(), images(1)
    groups = [group for group in groups_of(whole, x) if group.name == "hidden"]
    made, _ = cut(whole, groups, {"hidden": torch.arange(0, 48, 3)})
    old, new = count(whole, x), count(made, x)
    assert old.linear_macs - new.linear_macs == 32 * (16 + 10)
    assert old.stored - new.stored == 32 * (16 + 1 + 10)


def test_a_block_without_channels_is_left_out() -> None:
    whole, x = net(), images(4)
    groups = groups_of(whole, x[:1])
    made, sizes = cut(whole, groups, {"blocks.1.expand": torch.zeros(0, dtype=torch.long)})
    assert list(sizes.left_out) == ["blocks.1"]
    without = net()
    without.blocks[1] = nn.Identity()
    assert torch.equal(made(x), without(x))


def test_what_is_predicted_by_what_stays_is_not_missed() -> None:
    """A channel that is a sum of two others, a constant one: mended exactly."""
    whole, x = net(), images(16)
    with torch.no_grad():
        whole.hidden.weight[:] = whole.hidden.weight.abs() + 0.1
        whole.hidden.bias[:] = 9.0  # never cut off by the ReLU
        whole.hidden.weight[5], whole.hidden.bias[5] = whole.hidden.weight[3] + whole.hidden.weight[4], 18.0
        whole.hidden.weight[6] = 0.0
    groups = [group for group in groups_of(whole, x[:1]) if group.name == "hidden"]
    moments = moments_of(whole, groups, x.split(4), "classification", 0)
    kept = {"hidden": torch.tensor([c for c in range(48) if c not in (5, 6)])}
    made = cut(whole, groups, kept, moments)[0]
    assert relative_error(whole(x), made(x)) < 2e-2 < relative_error(whole(x), cut(whole, groups, kept)[0](x))


def test_channels_that_the_answer_does_not_feel_have_no_importance() -> None:
    whole, x = net(), images(16)
    with torch.no_grad():
        whole.out.weight[:, 7] = 0.0
    for task in ("classification", "other"):
        groups = groups_of(whole, x[:1])
        moments = moments_of(whole, groups, x.split(8), task, 0)
        assert moments.importance["hidden"][7] == 0
        assert int((moments.importance["hidden"] > 0).sum()) > 20
        assert int(ordered(moments, groups, "importance", 0)["hidden"][0]) == int(moments.importance["hidden"].argmax())
        assert 7 not in ordered(moments, groups, "importance", 0)["hidden"][:20]


def test_a_channel_is_predicted_by_those_that_make_it_up() -> None:
    """x2 = x0 - 2 x1 + 3: what varies is found, not its mean alone."""
    random = torch.Generator().manual_seed(0)
    kept = torch.randn(500, 2, dtype=torch.float64, generator=random)
    x = torch.cat((kept, kept @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64) + 3.0), 1)
    mean = x.mean(0)
    a, b = predicted(mean, x.T @ x / len(x) - mean.outer(mean), torch.tensor([0, 1]))
    error = kept @ a.T + b - x
    assert float(error.std() / x[:, 2].std()) < 0.1 and float(error.mean(0).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("widths", "left_out", "said"),
    [
        ({"hidden": (16, 99)}, (), "has 16 and 48 channels, not 16 and 99"),
        ({"blocks": (3, 3)}, (), "has no channels that can be cut"),
        ({"nothing.here": (3, 3)}, (), "does not fit"),
        ({}, ("blocks.9",), "does not fit"),
        ({"blocks.0.filter": (8, 4)}, (), "groups of channels"),
    ],
)
def test_sizes_of_another_network_are_refused(
    widths: dict[str, tuple[int, int]], left_out: tuple[str, ...], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        Cut(widths, left_out).of(net())


def test_sizes_go_through_json_and_add_up() -> None:
    first = Cut({"a.b": (3, 4), "c": (5, 5)}, ("d",))
    assert Cut.from_json(first.as_json()) == first
    both = first.then(Cut({"c": (5, 2)}, ("a",)))
    assert both == Cut({"c": (5, 2)}, ("d", "a"))
    for wrong in ({"a": [1]}, {"a": [0, 1]}, {"a": [1.5, 2]}, {"a": [True, 2]}):
        with pytest.raises(ValueError, match="pairs of positive numbers"):
            Cut.from_json({"widths": wrong, "left_out": []})


def test_a_resized_layer_keeps_its_other_settings() -> None:
    made = resized(nn.Conv2d(8, 12, (3, 5), 2, (1, 2), bias=False), 4, 6)
    assert isinstance(made, nn.Conv2d) and made.weight.shape == (6, 4, 3, 5) and made.stride == (2, 2)
