"""Give memory back: resident pages under memory-mapped arrays (read from the file again when touched), freed heaps."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt


def release(array: npt.NDArray[Any]) -> int:
    """Drop the whole pages inside `array`, where it is a contiguous view of a mapped file; gives their bytes."""
    mapped = _mapping(array)
    if mapped is None or not hasattr(mapped, "madvise") or not array.flags.c_contiguous or not array.nbytes:
        return 0
    start = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return 0
    mapped.madvise(mmap.MADV_DONTNEED, first, last - first)
    return last - first


def trim() -> None:
    """Give the system what was freed but is still in the allocator's heaps; nothing where the C library cannot."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _mapping(array: Any) -> mmap.mmap | None:
    """The mapping at the bottom of a chain of views, if there is one."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array
