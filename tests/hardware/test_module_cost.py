"""A module's predicted latency is the traced one with the replaced sites exchanged."""

import pytest
import torch
from hardware_examples import kernel, make_target
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from headway.core.errors import BadInput
from headway.hardware.module_cost import (
    ModuleTrace,
    Replacement,
    SiteTable,
    TracedSite,
    predict_module,
    trace_module,
)

TARGET = make_target(kernel("int4", 4.5), kernel("int8", 8.5))
SITES = {
    "a": TracedSite("a", 512, 256, rows=1, calls=1, seconds=2e-4, nbytes=512 * 256 * 4),
    "b": TracedSite("b", 256, 512, rows=8, calls=2, seconds=5e-4, nbytes=512 * 256 * 4),
}
TRACE = ModuleTrace(seconds=1e-3, sites=SITES, nbytes=3 << 20)


def predict(replaced, **options):
    return predict_module(TRACE, replaced, TARGET, threads=1, **options)


def as_int4(site):
    return Replacement("int4", site.weights * 4.5 / 8)


def test_nothing_replaced_is_the_trace():
    costs = predict({}).costs
    assert (costs.latency_s, costs.memory_bytes, costs.size_bytes) == (1e-3, 3 << 20, 3 << 20)


def test_a_replaced_site_is_exchanged():
    found = predict({"b": as_int4(SITES["b"])})
    expected = 2 * (1e-6 + 512 * 256 * 16e-12)
    # eight rows: bits 4.5e-12 against arithmetic 1.6e-11 a weight
    assert found.parts["latency_s"]["matrices:int4"] == pytest.approx(expected)
    assert found.costs.latency_s == pytest.approx(5e-4 + expected)
    assert found.costs.size_bytes == (3 << 20) - 512 * 256 * 4 + 512 * 256 * 4.5 / 8


@given(st.sets(st.sampled_from(["a", "b"])))
def test_sites_add_up(names):
    base = predict({}).costs
    alone = [predict({name: as_int4(SITES[name])}).costs for name in names]
    together = predict({name: as_int4(SITES[name]) for name in names}).costs
    assert together.latency_s - base.latency_s == pytest.approx(sum(c.latency_s - base.latency_s for c in alone))
    assert together.size_bytes - base.size_bytes == pytest.approx(sum(c.size_bytes - base.size_bytes for c in alone))


@given(st.floats(1e5, 1e6), st.floats(1e5, 1e6))
def test_more_bytes_in_a_site_never_cost_less(one, other):
    low, high = (predict({"a": Replacement("int8", size)}).costs for size in sorted((one, other)))
    assert low.latency_s <= high.latency_s * 1.001
    assert low.size_bytes <= high.size_bytes
    assert low.memory_bytes <= high.memory_bytes


def test_measured_memory_and_size_are_the_base():
    site = SITES["a"]
    found = predict({"a": as_int4(site)}, baseline_memory_bytes=10e6, baseline_size_bytes=5e6)
    saved = site.nbytes - site.weights * 4.5 / 8
    assert found.costs.memory_bytes == pytest.approx(10e6 - saved)
    assert found.costs.size_bytes == pytest.approx(5e6 - saved)
    assert sum(found.memory.values()) == pytest.approx(found.costs.memory_bytes)


def test_a_measured_kind_of_layer_wins_over_the_kernel_and_is_measured_once():
    table, calls = SiteTable(), []
    site, new = SITES["a"], as_int4(SITES["a"])
    first = table.measure(site, new, lambda: calls.append(1), time_s=0.0)
    done = len(calls)
    assert table.measure(site, new, lambda: calls.append(1)) == first
    assert len(calls) == done
    assert predict({"a": new}, table=table).parts["latency_s"]["matrices:int4"] == first
    assert table.get(SITES["b"], as_int4(SITES["b"])) is None


def test_a_site_the_trace_never_met_is_refused():
    with pytest.raises(BadInput, match="'c'"):
        predict({"c": Replacement("int4", 1.0)})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.shared = nn.Linear(8, 8)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        y = self.conv(x).flatten(2).transpose(1, 2)
        return self.shared(input=self.shared(y))


def test_a_trace_counts_rows_calls_and_bytes():
    net = Net().eval()
    shapes = {"conv": (8, 3), "shared": (8, 8), "unused": (4, 4)}
    trace = trace_module(net, [torch.zeros(2, 3, 5, 7)], shapes, time_s=0.0)
    assert set(trace.sites) == {"conv", "shared"}
    assert (trace.sites["conv"].rows, trace.sites["conv"].calls) == (2 * 5 * 7, 1)
    assert (trace.sites["shared"].rows, trace.sites["shared"].calls) == (70, 2)
    assert trace.sites["shared"].macs == 70 * 64 * 2
    assert trace.sites["conv"].nbytes == 8 * 3 * 4
    assert trace.nbytes == sum(p.numel() * 4 for p in net.parameters())
    assert all(site.seconds > 0 for site in trace.sites.values())
    assert sum(site.seconds for site in trace.sites.values()) < trace.seconds
    assert not net.conv._forward_hooks and not net.conv._forward_pre_hooks


def test_a_trace_leaves_no_hook_behind_when_the_forward_fails():
    net = Net().eval()
    with pytest.raises(RuntimeError):
        trace_module(net, [torch.zeros(2, 4, 5, 7)], {"conv": (8, 3)})
    assert not net.conv._forward_hooks


def test_an_unknown_site_is_refused():
    with pytest.raises(BadInput, match="'nope'"):
        trace_module(Net(), [torch.zeros(1, 3, 2, 2)], {"nope": (1, 1)})
