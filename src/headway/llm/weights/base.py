"""Stored forms of a linear weight: what they share, and the table from a form's name to its class."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput
from headway.core.pages import release
from headway.core.weight import F32, Weight

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Part:
    """A term of a value that is linear in the numbers of its groups: codes * numbers, group by group of columns.

    codes: (out, in), of any type; None: all ones. numbers: (out, groups) float32. centre: what the codes lie around.
    """

    codes: Array | None
    numbers: F32
    centre: float = 0.0


class StoredWeight(ABC):
    """Base of the `Weight` forms: a form says how it stores, rebuilds and packs; the rest follows.

    `y = x @ W.T` with W of `shape` (out_features, in_features). Instances are immutable.
    """

    form: str
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays an artifact stores; the runtime reads as many in one product."""
        return sum(array.nbytes for array in self.tensors().values())

    @property
    def bits_per_weight(self) -> float:
        return 8.0 * self.nbytes / (self.shape[0] * self.shape[1])

    @abstractmethod
    def dequantize(self) -> F32:
        """The exact float32 value, shape `shape`."""

    @abstractmethod
    def tensors(self) -> Mapping[str, Array]:
        """The arrays that store this weight."""

    def meta(self) -> Mapping[str, str | int | float]:
        """What `tensors()` does not say of itself."""
        return {}

    def parts(self) -> Sequence[Part]:
        """The value as a sum of parts (before `rotate`, where the form has it); none where it is no such sum."""
        return ()

    def with_numbers(self, numbers: Sequence[F32]) -> Self:
        """The same codes with other numbers, one array for each of `parts()`, stored as precisely as before."""
        if numbers:
            raise ValueError(f"a {self.form} weight has no parts")
        return self

    @classmethod
    @abstractmethod
    def load(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        """The inverse of `tensors()` and `meta()`, bit for bit; raises `BadInput` for arrays that do not fit."""

    @abstractmethod
    def _pack(self) -> Any:
        """The kernel's own object; called once."""

    @cached_property
    def _native(self) -> Any:
        packed = self._pack()
        for array in self.tensors().values():  # the kernel has its own copy now
            release(array)
        return packed

    @property
    def packed(self) -> bool:
        """Whether `native` was made already."""
        return "_native" in vars(self)

    def native(self) -> Any:
        """The packed object the native runtime multiplies with, made at the first call."""
        return self._native

    def rows(self, indices: npt.NDArray[np.integer[Any]]) -> F32:
        """Rows of the exact value, as an embedding reads them: (n,) -> (n, in_features)."""
        return np.ascontiguousarray(self.dequantize()[indices])

    def matmul(self, x: F32) -> F32:
        """x: (rows, in_features) -> (rows, out_features), float32, by the form's native kernel."""
        return self.native().matmul(np.ascontiguousarray(x, np.float32))  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]}x{self.shape[1]}, {self.bits_per_weight:.2f} bits)"


F = TypeVar("F", bound=type[StoredWeight])
_FORMS: dict[str, type[StoredWeight]] = {}


def register_form(name: str) -> Callable[[F], F]:
    """Class decorator: `load_weight(name, ...)` makes this class.

    Write the name as a literal: a form no one imported yet is found by its decorator in the source of this folder.
    """

    def decorate(cls: F) -> F:
        cls.form = name
        _FORMS[name] = cls
        return cls

    return decorate


def form_class(name: str) -> type[StoredWeight]:
    """The class of a form; raises `BadInput` naming the known ones."""
    if name not in _FORMS:
        _import_forms(name)
    if name not in _FORMS:
        raise BadInput(f"no weight form {name!r}", f"forms are: {', '.join(sorted(_FORMS))}")
    return _FORMS[name]


def load_weight(form: str, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Weight:
    """The weight that `tensors()` and `meta()` of that form described, bit for bit."""
    return form_class(form).load(tensors, meta)


def _import_forms(name: str) -> None:
    """Import the modules beside this one whose source registers `name`."""
    package = __package__
    here = Path(__file__).parent
    for module in pkgutil.iter_modules([str(here)]):
        source = here / f"{module.name}.py"
        if source.is_file() and f'@register_form("{name}")' in source.read_text(encoding="utf-8"):
            importlib.import_module(f"{package}.{module.name}")


def by_rows(array: Array, read: Callable[[Any], Array] | None = None) -> Any:
    """A matrix for the kernels to pack piece by piece: `read(rows)` of a slice of rows, plain rows of `array` without.

    Pages of a mapped file under rows that were packed are given back as the packing goes on.
    """
    from headway.kernels import cpu

    def piece(begin: int, end: int) -> Array:
        release(array[:begin])
        return array[begin:end] if read is None else read(slice(begin, end))

    return cpu.Rows(array.shape, array.dtype, piece)


def frozen(array: Array, dtype: npt.DTypeLike | None = None) -> Array:
    """A contiguous array that nobody writes to (a view where possible)."""
    fixed = np.ascontiguousarray(array, dtype).view()
    fixed.flags.writeable = False
    return fixed


def stored_as(numbers: F32, like: Array) -> Array:
    """Numbers in the data type of others; what float16 cannot hold is cut to its largest."""
    most = np.finfo(like.dtype).max
    return numbers.clip(-most, most).astype(like.dtype)


def take(tensors: Mapping[str, Array], name: str, dtypes: tuple[str, ...], form: str) -> Array:
    """The array `name`; raises `BadInput` when it is missing or of another data type."""
    if name not in tensors:
        raise BadInput(f"{form} weight: no tensor {name!r}", "save the artifact again")
    array = np.asarray(tensors[name])
    if array.dtype.name not in dtypes or array.ndim != 2:
        raise BadInput(
            f"{form} weight: {name!r} is {array.dtype.name} with {array.ndim} axes, not 2 of {' or '.join(dtypes)}",
            "save the artifact again",
        )
    return array


def finite(array: Array, what: str) -> None:
    """Raise `BadInput` when `array` holds an infinity or a NaN."""
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0]
        raise BadInput(f"{what} is not finite at {tuple(int(i) for i in where)}", "check the weights it came from")
