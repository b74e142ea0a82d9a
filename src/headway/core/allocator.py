"""Counting memory: the bytes torch holds, by owner, at any time and at most.

`Counter` sees every tensor storage that an operation makes while it is on, and its end. Storages made before count
when they are given to `hold`. What an operator allocates and frees within itself (workspaces) has no storage of its
own and is not seen: `headway.core.resident.ResidentPeak` sees all, in pages.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REST = "scratch"
"""Owner of what is made outside every `owner` block: activations and temporaries."""


@dataclass
class Held:
    """Bytes of one owner, or of all."""

    now: int = 0
    peak: int = 0

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass
class _Life:
    """A storage that is counted, until `end` takes it off."""

    owner: str
    size: int


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages of one device type while it is on.

    >>> with Counter() as counter:
    ...     counter.hold("weights", module.parameters())
    ...     with counter.owner("kv"):
    ...         cache = torch.zeros(1024)
    ...     module(inputs)
    >>> counter.peak, counter.owners["kv"].now, counter.at_peak
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.owners: dict[str, Held] = {}
        self.at_peak: dict[str, int] = {}
        """Bytes of each owner at the moment when the total was largest."""
        self._total = Held()
        self._lives: dict[int, _Life] = {}
        self._owner: list[str] = []
        self._lock = threading.RLock()

    @property
    def now(self) -> int:
        """Bytes alive now."""
        return self._total.now

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once."""
        return self._total.peak

    def reset_peak(self) -> None:
        """Begin a new peak from what is alive now."""
        with self._lock:
            for held in (self._total, *self.owners.values()):
                held.peak = held.now
            self.at_peak = {name: held.now for name, held in self.owners.items()}

    def hold(self, owner: str, tensors: Iterable[torch.Tensor]) -> int:
        """Count storages that exist already (weights) as `owner`'s, each once. Gives the bytes added.

        Storages that were counted for another owner pass to this one.
        """
        before = self.now
        for tensor in tensors:
            self._count(tensor, owner)
            life = self._lives.get(_key(tensor) or 0)
            if life is not None and life.owner != owner:
                with self._lock:
                    self.owners[life.owner].add(-life.size)
                    life.owner = owner
                    self.owners.setdefault(owner, Held()).add(life.size)
        return self.now - before

    @contextmanager
    def owner(self, name: str) -> Iterator[None]:
        """What is made inside belongs to `name`."""
        self._owner.append(name)
        try:
            yield
        finally:
            self._owner.pop()

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {key for leaf in tree_leaves((args, kwargs)) if (key := _key(leaf)) is not None}
        for leaf in tree_leaves(made):
            key = _key(leaf)
            if key is not None and (key not in given or key in self._lives):  # a view of the uncounted is no news
                self._count(leaf, self._owner[-1] if self._owner else REST)
        return made

    def _count(self, tensor: torch.Tensor, owner: str) -> None:
        key = _key(tensor)
        if key is None or tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        with self._lock:
            known = self._lives.get(key)
            if known is not None:
                if known.size != size:  # resized in place
                    self._add(known.owner, size - known.size)
                    known.size = size
                return
            self._lives[key] = _Life(owner, size)
            weakref.finalize(storage, self._end, key).atexit = False
            self._add(owner, size)

    def _end(self, key: int) -> None:
        with self._lock:
            life = self._lives.pop(key)
            self._add(life.owner, -life.size)

    def _add(self, owner: str, size: int) -> None:
        self.owners.setdefault(owner, Held()).add(size)
        self._total.add(size)
        if self._total.now == self._total.peak:
            self.at_peak = {name: held.now for name, held in self.owners.items()}


def _key(value: Any) -> int | None:
    """Which storage a value has; none for what is no strided tensor."""
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return int(value.untyped_storage()._cdata)
    return None
