"""Prefix codes of exponents: lengths of bounded codes, their compact storage, and the byte-wise tables of DFloat11.

A code is given by its lengths alone (`uint8[256]`, 0 = does not occur): codes of one length follow one another in the
order of the exponents, shorter ones come first (canonical Huffman code), written most significant bit first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

POINTERS = 240
"""Table entries from here on name another table, so that no exponent may be as large."""
MOST_TABLES = 17
"""The first and those that the pointers 255 down to 240 can name."""


def code_lengths(counts: npt.NDArray[np.integer], most_bits: int = 32) -> U8:
    """Lengths of the shortest prefix code for `counts` (256,) whose codes have at most `most_bits` bits.

    One exponent alone gets one bit. Shortened further, to 16 or 8 bits, in the rare case that the code would need more
    tables than the format has. Raises ValueError where nothing is counted, or 2^most_bits codes are too few.
    """
    used = np.flatnonzero(counts)
    if not len(used) or len(used) > 1 << most_bits:
        raise ValueError(f"{len(used)} exponents have no code of at most {most_bits} bits")
    for bound in (most_bits, min(most_bits, 16), min(most_bits, 8)):
        lengths = np.zeros(256, np.uint8)
        lengths[used] = _package_merge([int(counts[e]) for e in used], bound)
        if _tables_needed(lengths) <= MOST_TABLES:
            break
    return lengths


def _package_merge(counts: list[int], bound: int) -> list[int]:
    """Larmore and Hirschberg 1990: the best lengths of at most `bound` bits, in the order of `counts`."""
    if len(counts) == 1:
        return [1]
    leaves: list[tuple[int, tuple[int, ...]]] = sorted((count, (index,)) for index, count in enumerate(counts))
    level = leaves
    for _ in range(bound - 1):
        pairs = zip(level[::2], level[1::2], strict=False)
        packages = [(first + second, one + two) for (first, one), (second, two) in pairs]
        level = sorted(leaves + packages, key=lambda item: item[0])
    lengths = [0] * len(counts)
    for _, members in level[: 2 * len(counts) - 2]:
        for index in members:
            lengths[index] += 1
    return lengths


def codes(lengths: U8) -> dict[int, tuple[int, int]]:
    """Exponent -> (code, bits), in the order of the codes."""
    made: dict[int, tuple[int, int]] = {}
    code = before = 0
    for bits, exponent in sorted((int(bits), exponent) for exponent, bits in enumerate(lengths) if bits):
        code <<= bits - before
        made[exponent] = (code, bits)
        code, before = code + 1, bits
    return made


def tables(lengths: U8) -> U8:
    """The tables of the format (rows, 256): the code's tree, one byte of it a row, and last the lengths.

    An entry is the exponent whose code ends within the byte, or 256 - row of the table for the byte after it.
    """
    prefixes = _prefixes(lengths)
    if len(prefixes) > MOST_TABLES:
        raise ValueError(f"the code needs {len(prefixes)} tables; the format has {MOST_TABLES}")
    rows = {prefix: row for row, prefix in enumerate(prefixes)}
    made = np.zeros((len(rows) + 1, 256), np.uint8)
    for (value, length), row in rows.items():
        if length:
            made[rows[value >> 8, length - 8], value & 255] = 256 - row
    for exponent, (code, bits) in codes(lengths).items():
        whole = (bits - 1) // 8 * 8  # bits that lead to the table where the code ends
        rest = bits - whole
        first = (code & ((1 << rest) - 1)) << (8 - rest)
        made[rows[code >> rest, whole], first : first + (1 << (8 - rest))] = exponent
    made[-1] = lengths
    return made


def _prefixes(lengths: U8) -> list[tuple[int, int]]:
    """Whole bytes that begin some longer code: (value, bits), shortest first."""
    found = {(0, 0)}
    for code, bits in codes(lengths).values():
        found |= {(code >> (bits - whole), whole) for whole in range(8, bits, 8)}
    return sorted(found, key=lambda prefix: (prefix[1], prefix[0]))


def _tables_needed(lengths: U8) -> int:
    return len(_prefixes(lengths))


def pack_lengths(lengths: U8) -> U8:
    """First exponent that occurs, then the lengths from it to the last that does: about 45 bytes for 256."""
    used = np.flatnonzero(lengths)
    return np.concatenate([[used[0]], lengths[used[0] : used[-1] + 1]]).astype(np.uint8)


def unpack_lengths(stored: U8) -> U8:
    """The inverse of `pack_lengths`; ValueError for what it cannot have made."""
    if stored.ndim != 1 or stored.dtype != np.uint8 or len(stored) < 2 or int(stored[0]) + len(stored) - 1 > 256:
        raise ValueError("a codebook is the first exponent and the lengths from it on")
    lengths = np.zeros(256, np.uint8)
    lengths[int(stored[0]) : int(stored[0]) + len(stored) - 1] = stored[1:]
    return lengths
