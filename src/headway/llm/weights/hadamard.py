"""Block Hadamard matrices along the columns of a matrix: outliers of one column are spread over its block.

A block of n columns (a power of two) is multiplied by H_n, which is its own inverse but for 1 / n:
    w x^T = (2^-ceil(log2(n) / 2) w H_n) (2^-floor(log2(n) / 2) x H_n)^T
so weights are turned once, activations as they come, and both factors are exact. Blocks have `size` columns; the last
columns are cut into smaller powers of two. The butterflies run in the order of kernels/cpu/bipolar_quantise.h: the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headway.core.weight import F32


def turned(x: F32, size: int) -> F32:
    """Activations (rows, columns) as kernels turn them; of a turned weight, its value. `size` 0: x itself."""
    return _turn(x, size, lambda log: -(log // 2))


def turned_weight(w: F32, size: int) -> F32:
    """A weight (out, columns) such that w x^T = turned_weight(w) turned(x)^T."""
    return _turn(w, size, lambda log: log // 2 - log)


def turned_moment(hessian: F32, size: int) -> F32:
    """The second moment of turned activations from that of activations, (columns, columns)."""
    return np.ascontiguousarray(turned(np.ascontiguousarray(turned(hessian, size).T), size).T)


def _turn(x: F32, size: int, power: Callable[[int], int]) -> F32:
    if not size:
        return x
    y = np.array(x, np.float32, order="C")
    columns, at = y.shape[1], 0
    while at < columns:
        n = size
        while n > columns - at:
            n //= 2
        count = max(1, (columns - at) // n) if n == size else 1
        log = n.bit_length() - 1
        part = y[:, at : at + count * n] * np.float32(2.0 ** power(log))
        for h in (1 << k for k in range(log)):
            pairs = part.reshape(len(y), -1, 2, h)
            part = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
        y[:, at : at + count * n] = part.reshape(len(y), count * n)
        at += count * n
    return y
