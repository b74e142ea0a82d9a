"""Prefix codes: as short as can be, bounded, and their tables walk the same tree."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.llm.weights.huffman import MOST_TABLES, code_lengths, codes, pack_lengths, tables, unpack_lengths

COUNTS = st.dictionaries(st.integers(0, 239), st.integers(1, 1 << 40), min_size=1, max_size=240)


def counted(found: dict[int, int]) -> np.ndarray:
    counts = np.zeros(256, np.uint64)
    for exponent, count in found.items():
        counts[exponent] = count
    return counts


def huffman_bits(counts: np.ndarray) -> int:
    """Total bits of an unbounded Huffman code: the sum of its merged weights."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


@given(COUNTS)
def test_a_code_is_complete_bounded_and_the_shortest_where_no_bound_binds(found):
    counts = counted(found)
    lengths = code_lengths(counts)
    used = lengths[lengths > 0].astype(int)
    assert set(np.flatnonzero(lengths)) == set(found)
    assert used.max() <= 32
    total = int((counts * lengths).sum())
    if len(found) == 1:
        assert used.tolist() == [1]
        return
    assert sum(2.0**-bits for bits in used) == 1
    assert total >= huffman_bits(counts)
    if used.max() not in (8, 16, 32):
        assert total == huffman_bits(counts)


@given(COUNTS, st.integers(8, 14))
def test_the_bound_is_kept(found, bound):
    assert code_lengths(counted(found), bound).max() <= bound


@given(COUNTS)
def test_the_tables_find_every_code(found):
    lengths = code_lengths(counted(found))
    made = tables(lengths)
    assert len(made) - 1 <= MOST_TABLES
    assert np.array_equal(made[-1], lengths)
    for exponent, (code, bits) in codes(lengths).items():
        for filler in (0, (1 << (32 - bits)) - 1):
            window = code << (32 - bits) | filler
            symbol, shift = int(made[0, window >> 24]), 24
            while symbol >= 240:
                shift -= 8
                symbol = int(made[256 - symbol, window >> shift & 255])
            assert symbol == exponent


@given(COUNTS)
def test_lengths_come_back_from_their_compact_form(found):
    lengths = code_lengths(counted(found))
    stored = pack_lengths(lengths)
    assert np.array_equal(unpack_lengths(stored), lengths)
    assert len(stored) == 2 + max(found) - min(found)


@pytest.mark.parametrize("stored", [[], [3], [255, 1, 1], [0] * 258])
def test_what_is_no_codebook_is_refused(stored):
    with pytest.raises(ValueError, match="codebook"):
        unpack_lengths(np.array(stored, np.uint8))


def test_nothing_counted_has_no_code():
    with pytest.raises(ValueError, match="0 exponents"):
        code_lengths(np.zeros(256, np.uint64))
