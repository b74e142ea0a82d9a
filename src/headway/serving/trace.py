"""`Trace`: requests as they arrive, from a file or drawn from a table of quantiles; arrivals never wait (open loop).

The length tables describe published traces (Azure's 2023 conversation and code services, and arXiv summarisation, as
Sarathi-Serve, OSDI 2024, uses them); a sample is drawn from their piecewise-linear inverse distribution.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headway.core.errors import BadInput

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
MOST = 1e12
"""Seconds or tokens in a file, beyond which they are a mistake."""
LEVELS = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Lengths:
    """How long prompts and answers are: their values, in tokens, at `LEVELS`, and how arrivals are spread."""

    name: str
    prompt: tuple[float, ...]
    output: tuple[float, ...]
    gap_cv: float = 1.0
    """Standard deviation of the time between arrivals over its mean; 1: Poisson."""

    def draw(self, count: int, random: np.random.Generator) -> tuple[I64, I64]:
        return _draw(self.prompt, count, random), _draw(self.output, count, random)


TABLES: dict[str, Lengths] = {
    table.name: table
    for table in (
        Lengths(
            "azure-conv",
            (2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 14050),
            (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000),
            1.09,
        ),
        Lengths(
            "azure-code",
            (3, 17, 75, 147, 578, 1469, 2744, 5188, 7303, 7436, 7437),
            (6, 6, 6, 7, 9, 13, 24, 55, 90, 251, 1899),
            13.2,
        ),
        Lengths(
            "arxiv-4k",
            (1, 73, 749, 1242, 1986, 2730, 3370, 3702, 3813, 3933, 4054),
            (5, 36, 60, 78, 115, 167, 242, 372, 736, 3271, 4056),
        ),
    )
}


@dataclass(frozen=True)
class Trace:
    """Arrivals in seconds from the start, rising; tokens of prompts and answers. All of the same length."""

    arrival: F64
    prompt: I64
    output: I64
    keys: Sequence[Sequence[int]] | None = None
    """Ids of the pages of each prompt, equal where the tokens are (for prefix reuse)."""

    def __post_init__(self) -> None:
        count = len(self.arrival)
        if not count or len(self.prompt) != count or len(self.output) != count:
            raise BadInput("a trace has one arrival, prompt and output per request", "and at least one request")
        if not np.isfinite(self.arrival).all() or (np.diff(self.arrival) < 0).any() or self.arrival[0] < 0:
            raise BadInput("arrivals must be seconds that never fall", "sort the trace by arrival")
        if (self.prompt < 1).any() or (self.output < 1).any():
            raise BadInput("a request has no token of prompt or output", "give at least one of each")

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self) / max(float(self.arrival[-1] - self.arrival[0]), 1e-9)

    def at_rate(self, rate: float) -> Trace:
        """The same requests in the same order and pattern, arriving faster or slower."""
        if not rate > 0:
            raise BadInput(f"a rate of {rate} requests per second", "it must be above 0")
        return replace(self, arrival=self.arrival * (self.rate / rate))

    def scaled(self, factor: float, most_prompt: int, most_output: int) -> Trace:
        """Lengths times a factor, at least 1 and at most as given: the shape of a trace for a smaller model."""

        def scale(values: I64, most: int) -> I64:
            return np.clip(np.rint(values * factor), 1, most).astype(np.int64)

        return replace(self, prompt=scale(self.prompt, most_prompt), output=scale(self.output, most_output))

    def first(self, count: int) -> Trace:
        """Its first requests, from the first arrival on."""
        return replace(
            self,
            arrival=self.arrival[:count] - self.arrival[0],
            prompt=self.prompt[:count],
            output=self.output[:count],
            keys=None if self.keys is None else self.keys[:count],
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        return int((self.prompt + self.output).max())

    def fitted(self, context: int) -> tuple[Trace, float]:
        """The trace with lengths scaled so that its longest request fits a context, and by what factor (at most 1)."""
        if self.longest <= context:
            return self, 1.0
        factor = max(context - 2, 1) / self.longest  # rounding and the least of one token add less than two
        return self.scaled(factor, context - 1, context - 1), factor


def named(source: str, count: int, seed: int = 0) -> Trace:
    """The first `count` requests of a trace file, or as many of a length table; they begin with the first arrival.

    Raises `BadInput` for what is neither, for fewer than two requests, and for requests that come all at once.
    """
    if source in TABLES:
        found = generate(source, count, 1.0, seed)
    elif Path(source).is_file():
        found = read_csv(source)
    else:
        raise BadInput(
            f"--trace {source!r} is no length table and no file", f"tables are: {', '.join(TABLES)}; or a CSV file"
        )
    found = found.first(count)
    if len(found) < 2 or not found.arrival[-1] > 0:
        raise BadInput(f"--trace {source}: {len(found)} requests that come at one time", "a rate needs two times")
    return found


def generate(table: str | Lengths, count: int, rate: float, seed: int = 0) -> Trace:
    """`count` requests of a length table arriving at `rate` per second: gamma gaps of the table's spread."""
    lengths = _table(table) if isinstance(table, str) else table
    if count < 1 or not rate > 0:
        raise BadInput(f"{count} requests at {rate} per second", "both must be above 0")
    random = np.random.default_rng(seed)
    prompt, output = lengths.draw(count, random)
    shape = 1.0 / lengths.gap_cv**2
    gaps = random.gamma(shape, 1.0 / (rate * shape), count)
    return Trace(np.cumsum(gaps), prompt, output)


def read_csv(path: str | Path) -> Trace:
    """A trace file: a header with an arrival (`arrived_s`), prompt and output tokens, under the names in common use.

    Raises `BadInput` naming the missing column or the line that is no number.
    """
    path = Path(path)
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {error}", "give a CSV file of requests") from None
    columns = [_column(path, rows, names) for names in _COLUMNS]
    order = np.argsort(columns[0], kind="stable")
    arrival = columns[0][order]
    return Trace(arrival - arrival[0], columns[1][order].astype(np.int64), columns[2][order].astype(np.int64))


_COLUMNS = (
    ("arrived_s", "arrival_s", "arrival"),
    ("context_tokens", "num_prefill_tokens", "input_tokens", "prompt"),
    ("generated_tokens", "num_decode_tokens", "output_tokens", "output"),
)


def _column(path: Path, rows: list[dict[str, str]], names: Sequence[str]) -> F64:
    name = next((name for name in names if rows and name in rows[0]), None)
    if name is None:
        raise BadInput(f"{path}: no column {names[0]!r}", f"name it one of: {', '.join(names)}")
    values = np.empty(len(rows))
    for at, row in enumerate(rows):
        try:
            values[at] = float(row[name])
        except (TypeError, ValueError):
            raise BadInput(f"{path}: line {at + 2}: {name}={row[name]!r}", "give a number") from None
        if not abs(values[at]) <= MOST:
            raise BadInput(f"{path}: line {at + 2}: {name}={row[name]!r}", f"give a number of at most {MOST:g}")
    return values


def _table(name: str) -> Lengths:
    if name not in TABLES:
        raise BadInput(f"no length table {name!r}", f"tables are: {', '.join(TABLES)}")
    return TABLES[name]


def _draw(values: Sequence[float], count: int, random: np.random.Generator) -> I64:
    return np.maximum(np.rint(np.interp(random.random(count), LEVELS, values)), 1).astype(np.int64)
