"""Bytes are counted exactly on graphs simple enough to count by hand, and by owner."""

from __future__ import annotations

import gc
import mmap
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core import resident as residence
from headway.core.allocator import REST, Counter
from headway.core.errors import Lacking
from headway.core.resident import ResidentPeak, resident_bytes

MB = 1 << 20


def test_a_chain_peaks_at_two_neighbours() -> None:
    with Counter() as counter, torch.no_grad():
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1
    assert (counter.now, counter.peak) == (4000, 8000)
    del x
    assert counter.now == 0


def test_views_share_and_the_last_one_ends_the_storage() -> None:
    with Counter() as counter:
        base = torch.zeros(100, 10)
        row = base[3]
        flat = base.reshape(-1).expand(2, 1000)
        del base, flat
        assert counter.now == 4000
        del row
        assert counter.now == 0


def test_a_matrix_product_holds_its_operands_and_its_result() -> None:
    a, b = torch.zeros(30, 20), torch.zeros(20, 50)
    with Counter() as counter:
        assert counter.hold("weights", [a, b, a.T]) == 4 * (600 + 1000)
        product = a @ b
    assert counter.peak == 4 * (600 + 1000 + 1500)
    assert counter.at_peak == {"weights": 6400, REST: 6000}
    del product
    assert counter.owners[REST].now == 0 and counter.owners["weights"].now == 6400


def test_views_of_what_nobody_counted_are_no_news_and_hold_takes_over() -> None:
    weight = torch.zeros(100)
    with Counter() as counter:
        weight.view(10, 10).add_(1)
        assert counter.peak == 0
        made = torch.zeros(50)
        assert counter.hold("weights", [weight, made]) == 400
    assert counter.owners["weights"].now == 600 and counter.owners[REST].now == 0
    assert counter.now == 600
    assert counter.hold("sparse", [torch.eye(3).to_sparse()]) == 0


def test_owners_nest_and_end_with_their_block() -> None:
    with Counter() as counter:
        with counter.owner("kv"):
            keys = torch.zeros(10)
            with counter.owner("adapters"):
                extra = torch.zeros(20)
            values = torch.zeros(30)
        rest = torch.zeros(40)
    sizes = {name: held.now for name, held in counter.owners.items()}
    assert sizes == {"kv": 160, "adapters": 80, REST: 160}
    del keys, extra, values, rest


def test_growing_in_place_is_counted() -> None:
    with Counter() as counter:
        x = torch.zeros(10)
        x.resize_(1000)
        assert counter.now == 4000
        counter.reset_peak()
        del x
    assert (counter.peak, counter.now) == (4000, 0)


def test_a_new_peak_begins_from_what_is_alive() -> None:
    with Counter() as counter:
        kept = torch.zeros(100)
        torch.zeros(10_000)
        counter.reset_peak()
        torch.zeros(50)
    assert counter.peak == 600 and counter.at_peak == {REST: 600}
    del kept


def test_backward_keeps_what_it_needs_until_it_is_done() -> None:
    """Forward: x, exp(x) kept for backward, its sum; backward: gradients of the size of x."""
    with Counter() as counter:
        x = torch.zeros(1000, requires_grad=True)
        loss = x.exp().sum()
        assert counter.now == 4000 + 4000 + 4
        loss.backward()
        del loss
        gc.collect()
        assert counter.now == 8000, "x and its gradient"
    del x


def test_other_devices_are_not_counted() -> None:
    with Counter() as counter:
        torch.zeros(1000, device="meta")
    assert counter.peak == 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 500)), max_size=40))
def test_any_history_equals_the_sum_over_slots(history: list[tuple[int, int]]) -> None:
    slots: dict[int, torch.Tensor] = {}
    peak = 0
    with Counter() as counter:
        for slot, size in history:
            slots.pop(slot, None)
            slots[slot] = torch.empty(size, dtype=torch.uint8)
            total = sum(len(tensor) for tensor in slots.values())
            peak = max(peak, total)
            assert counter.now == total
        assert counter.peak == peak
        slots.clear()
        assert counter.now == 0


@pytest.mark.parametrize("allowed", [True, False])
def test_the_resident_peak_sees_what_came_and_went(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not allowed:
        monkeypatch.setattr(residence, "reset_resident_peak", lambda: False)
    for _ in range(2):  # a second block must not see the first one's peak
        with ResidentPeak() as small:
            pass
        assert small.over_bytes < 16 * MB
        with ResidentPeak() as large:
            block = mmap.mmap(-1, 64 * MB)
            for page in range(0, 64 * MB, 4096):
                block[page] = 1
            resident = resident_bytes()
            deadline = time.monotonic() + 20  # the thread that looks may have to wait for a processor
            while not large.exact and large.peak_bytes < resident - MB and time.monotonic() < deadline:
                time.sleep(0.001)
            block.close()
        assert 24 * MB < large.over_bytes < 80 * MB
        assert large.peak_bytes >= resident - MB, "the kernel batches its counts by thread"
        assert large.exact <= allowed


def test_a_kernel_that_forbids_the_reset_is_noticed(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(residence.reset_resident_peak(), bool)
    monkeypatch.setattr(residence, "_CLEAR", residence.Path("/proc/self/absent"))
    assert not residence.reset_resident_peak()
    with pytest.raises(Lacking, match="Linux"):
        residence._status("NoSuchField")
