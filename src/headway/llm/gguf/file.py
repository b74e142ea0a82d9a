"""An open GGUF file: its header and, for each tensor, a view of its bytes in the memory map."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadFile, BadInput
from headway.llm.gguf import blocks
from headway.llm.gguf.blocks import BLOCKS, F32, U8, Affine
from headway.llm.gguf.header import Header, TensorInfo
from headway.llm.stored_form import all_finite


class GGUFFile:
    """Opens and checks the header; tensor data is read when it is asked for.

    Raises `BadInput` when there is no such regular file, `BadFile` when it breaks a rule of the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map = _map(self.path)
        self.header = Header(self.path, memoryview(self._map))

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return self.header.tensors

    def raw(self, name: str) -> U8:
        """The tensor's bytes, a read-only view of the file."""
        info = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.start)

    def quantised(self, name: str) -> bool:
        return BLOCKS[self.tensors[name].kind].bits > 0

    def values(self, name: str) -> F32:
        """The exact float32 value, in the tensor's shape; `BadFile` names a tensor that holds NaN or infinity."""
        info = self.tensors[name]
        columns = info.shape[-1]
        values = blocks.dequantise(self.raw(name), info.kind, (int(np.prod(info.shape)) // columns, columns))
        if not np.isfinite(values).all():
            raise self._not_finite(info)
        return values.reshape(info.shape)

    def words(self, name: str) -> npt.NDArray[Any]:
        """A plain-float tensor's words (BF16 as its bits), a read-only view of the file; `BadFile` as in `values`."""
        info = self.tensors[name]
        dtype = BLOCKS[info.kind].name
        words = self.raw(name).view({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype]).reshape(info.shape)
        if not all_finite(words, dtype):
            raise self._not_finite(info)
        return words

    def affine(self, name: str) -> Affine:
        """Codes, scales and minimums of a quantised matrix; `BadFile` as in `values`."""
        info = self.tensors[name]
        if len(info.shape) != 2:
            raise BadFile(self.path, info.start, f"tensor {name!r} has shape {info.shape}, a matrix was expected")
        parts = blocks.affine(self.raw(name), info.kind, (info.shape[0], info.shape[1]))
        if not (np.isfinite(parts.scale).all() and np.isfinite(parts.minimum).all()):
            raise self._not_finite(info)
        return parts

    def _not_finite(self, info: TensorInfo) -> BadFile:
        return BadFile(self.path, info.start, f"tensor {info.name!r} holds NaN or infinite values")


def _map(path: Path) -> mmap.mmap | bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{path}: {reason}", "give the path of a .gguf file") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{path} is not a regular file", "give the path of a .gguf file")
        if status.st_size == 0:
            return b""
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
