"""`Target`: a machine, measured. Saved as JSON, so that a plan for another machine can be made here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from headway.core.errors import BadInput

SCHEMA = 1
"""Version of the JSON form. A file with a higher one is refused."""
MOST_DISPATCH_S = 1.0
_OF_THE_VERB = ("headway", "target", "seed")
"""Keys that `headway probe --json` prints besides, as every verb does."""


@dataclass(frozen=True)
class MemoryLevel:
    """One level of the memory hierarchy: `L1`, `L2`, `L3` or `DRAM`."""

    level: str
    size_bytes: int
    """Size of one instance as the system reports it, or as the latency steps show (for DRAM: what may be used)."""
    read_bytes_per_s: float
    """Sequential read rate of all usable cores together."""
    read_bytes_per_s_one_core: float
    latency_s: float
    """Seconds of one dependent load (pointer chase over a random cycle)."""
    shared_by: int = 1
    """How many of the usable cores share one instance."""
    effective_bytes: int = 0
    """How much one core really keeps there at that rate, measured; 0 = as `size_bytes`."""

    @property
    def holds_bytes(self) -> int:
        return self.effective_bytes or self.size_bytes


@dataclass(frozen=True)
class ComputeRate:
    """Peak rate of one kind of arithmetic: a multiply-add is two operations, a shuffled byte one."""

    dtype: str
    """`f32`, `bf16`, `int8` or `byte`."""
    unit: str
    """The instruction: `fma512`, `fma256`, `vdpbf16`, `vnni512`, `maddubs256`, `shuffle512` ..."""
    ops_per_s: float
    """All usable cores together."""
    ops_per_s_one_core: float


@dataclass(frozen=True)
class KernelPoint:
    """One measurement of a weight form's kernel: `rows` activations against matrices read in turn."""

    rows: int
    set_bytes: int
    """Packed bytes of the matrices walked through: decides which memory level feeds the kernel."""
    seconds_per_weight: float
    """Seconds per element of W, all rows together, the fixed cost of a call taken off."""


@dataclass(frozen=True)
class KernelRate:
    """How fast the kernel of one weight form runs on this machine, as measured."""

    form: str
    bits_per_weight: float
    isa: str
    threads: int
    call_s: float
    """Fixed cost of one call from Python, fitted over matrix sizes."""
    points: tuple[KernelPoint, ...]


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch describes it."""

    name: str
    memory_bytes: int
    capability: str
    multiprocessors: int


@dataclass(frozen=True)
class Target:
    """What predictions and recipes need to know of a machine. Immutable; rates are measured medians."""

    name: str
    fingerprint: str
    """Hex digest of what the machine is (CPU, flags, cores, memory, kernel), not of how fast it was."""
    memory: tuple[MemoryLevel, ...]
    """From the fastest level to DRAM."""
    compute: tuple[ComputeRate, ...]
    dispatch_s: float
    """Seconds one small torch operator costs (without torch: one crossing into native code)."""
    crossing_s: float
    """Seconds one crossing into native code costs."""
    ram_bytes: int
    """Memory the process may use: the machine's, or the control group's limit when lower."""
    available_bytes: int
    """Part of it that was free when the probe ran."""
    cores: int
    """Usable cores: affinity and control-group quota taken into account."""
    isa: tuple[str, ...]
    barrier_s: float = 0.0
    """Seconds of one barrier between all usable cores, spinning."""
    kernels: tuple[KernelRate, ...] = ()
    gpu: tuple[Gpu, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    level: str = "quick"
    """How thorough the probe was: `quick`, `default` or `deep`."""
    measured_at: str = ""
    """UTC time, ISO 8601."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))
        if not self.memory:
            raise BadInput(f"target {self.name!r} has no memory level", "run: headway probe")
        if self.cores < 1:
            raise BadInput(f"target {self.name!r} has {self.cores} cores", "run: headway probe")
        names = [level.level for level in self.memory]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise BadInput(f"target {self.name!r} has the memory level {twice[0]!r} twice", "leave one of them out")
        for level in self.memory:
            if level.shared_by < 1 or level.latency_s > MOST_DISPATCH_S:
                has = f"shared_by={level.shared_by}, latency_s={level.latency_s:g}"
                what = f"target {self.name!r}: level {level.level} has {has}"
                raise BadInput(what, f"a level has 1 core or more, and takes under {MOST_DISPATCH_S:g} s")
        if any(kernel.threads < 1 for kernel in self.kernels):
            raise BadInput(f"target {self.name!r} has a kernel on 0 threads", "leave it out, or run: headway probe")
        if self.dispatch_s > MOST_DISPATCH_S:
            what = f"target {self.name!r}: dispatch_s={self.dispatch_s:g}: no operator takes over {MOST_DISPATCH_S:g} s"
            raise BadInput(what, "give seconds, or run: headway probe")

    @property
    def dram(self) -> MemoryLevel:
        return self.memory[-1]

    def level_for(self, working_set_bytes: float, threads: int = 1) -> MemoryLevel:
        """The fastest level that keeps `working_set_bytes` spread over `threads` cores between two passes."""
        for level in self.memory[:-1]:
            instances = max(1, math.ceil(min(threads, self.cores) / level.shared_by))
            if working_set_bytes <= level.holds_bytes * instances:
                return level
        return self.dram

    def read_rate(self, level: MemoryLevel, threads: int) -> float:
        """bytes/s that `threads` cores read from `level`: linear from one core to all of them."""
        return _between(level.read_bytes_per_s_one_core, level.read_bytes_per_s, threads, self.cores)

    def compute_rate(self, dtype: str, threads: int, unit: str | None = None) -> float:
        """Operations/s on `threads` cores of the fastest unit for `dtype` (or `unit`); raises `BadInput`."""
        found = [rate for rate in self.compute if rate.dtype == dtype and unit in (None, rate.unit)]
        if not found:
            raise BadInput(
                f"target {self.name!r} has no rate for {dtype}{'' if unit is None else '/' + unit}",
                f"it has: {', '.join(f'{rate.dtype}/{rate.unit}' for rate in self.compute) or 'none'}",
            )
        best = max(found, key=lambda rate: rate.ops_per_s)
        return _between(best.ops_per_s_one_core, best.ops_per_s, threads, self.cores)

    def with_kernels(self, kernels: Sequence[KernelRate]) -> Target:
        """The same machine with these kernels' rates added; a rate of the same key replaces the old one."""
        known = {_kernel_key(kernel): kernel for kernel in (*self.kernels, *kernels)}
        return replace(self, kernels=tuple(known.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`; `from_json` gives an equal target back."""
        return {"schema": SCHEMA, **_plain(self)}

    @classmethod
    def from_json(cls, document: Any) -> Target:
        """The inverse of `to_json`, also of the document of `probe --json`.

        Raises `BadInput` naming the key that is missing or wrong.
        """
        if not isinstance(document, Mapping):
            raise BadInput(f"a target is a JSON object, not {type(document).__name__}", "make one: headway probe -o F")
        schema = document.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise BadInput(f"target: schema={schema!r} is no version number", "make one: headway probe -o FILE")
        if schema > SCHEMA:
            raise BadInput(
                f"target: schema {schema} is newer than this headway reads ({SCHEMA})",
                "update headway, or probe again",
            )
        besides = ("schema", *(_OF_THE_VERB if "headway" in document else ()))
        value: Target = _decode(cls, {k: v for k, v in document.items() if k not in besides}, "target")
        return value

    def dumps(self) -> str:
        return json.dumps(self.to_json(), indent=1)

    @classmethod
    def load(cls, path: str | Path) -> Target:
        """Read what `headway probe -o` wrote or `headway probe --json` printed; raises `BadInput`."""
        if Path(path).exists() and not Path(path).is_file():
            raise BadInput(f"{path} is no plain file", "make one: headway probe -o FILE")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise BadInput(f"{path}: {reason}", "make one: headway probe -o FILE") from None
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadInput(f"{path}: not JSON ({error})", "make one: headway probe -o FILE") from None
        try:
            return cls.from_json(document)
        except BadInput as error:
            raise BadInput(f"{path}: {error.what}", error.mend) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Target.from_json, (self.to_json(),)


def _between(one: float, every: float, threads: int, cores: int) -> float:
    if threads <= 1 or cores <= 1:
        return one
    return one + (every - one) * (min(threads, cores) - 1) / (cores - 1)


def _kernel_key(kernel: KernelRate) -> tuple[str, float, str, int]:
    return kernel.form, round(kernel.bits_per_weight, 2), kernel.isa, kernel.threads


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


T = TypeVar("T")


def _decode(kind: type[T], document: Any, where: str) -> T:
    """Build the dataclass `kind` from plain values, checking every field by its annotation."""
    if not isinstance(document, Mapping):
        raise BadInput(f"{where}: an object is expected, not {document!r}"[:200], "probe again")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise BadInput(f"{where}: unknown key {unknown[0]!r}", f"keys are: {', '.join(known)}")
    values = {name: _value(hints[name], document[name], f"{where}.{name}") for name in known if name in document}
    required = _required(kind)
    missing = [name for name in required if name not in values]
    if missing:
        raise BadInput(f"{where}: key {missing[0]!r} is missing", "probe again")
    return kind(**values)


def _required(kind: type[Any]) -> list[str]:
    return [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _decode(hint, value, where)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list):
            raise BadInput(f"{where}: a list is expected, not {value!r}"[:200], "probe again")
        return tuple(_value(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None:
        if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
            raise BadInput(f"{where}: an object of strings is expected", "probe again")
        return dict(value)
    if hint is str:
        if not isinstance(value, str):
            raise BadInput(f"{where}={value!r} is no text"[:200], "probe again")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{where}={value!r} is no number"[:200], "probe again")
    if not math.isfinite(value) or value < 0:
        raise BadInput(f"{where}={value!r} must be finite and not negative", "probe again")
    if value == 0 and "_per_s" in where.rsplit(".", 1)[-1]:
        raise BadInput(f"{where}=0: a rate must be positive", "probe again")
    if hint is int:
        if int(value) != value:
            raise BadInput(f"{where}={value!r} must be a whole number", "probe again")
        return int(value)
    return float(value)
