"""Paired statistics: ratios and differences with intervals that keep their promise on noisy machines.

Two kinds of data come from paired experiments here.

*Times.* Each round times every arm once, in random order, and gives one ratio per candidate. Round noise is anything
but Gaussian: drift, preemption spikes of many times the value, two clock speeds. Because the order is random, under
"no difference" the sign of every log ratio is a fair coin whatever the noise looks like, so the number of positive
ones is binomial, exactly. The median and its bootstrap distribution depend on the data only through order statistics
and binomials (Efron 1979, Hutson & Ernst 2000), so they are computed exactly, without resampling, and keep that
guarantee; means, trimmed means and BCa of a median do not, or pay several times the width under spikes.

*Log-probabilities.* Paired by token, correlated inside a window: whole blocks are resampled, BCa (Efron 1987), with
the small-sample correction of Hesterberg (2015, section 5.3) and the percentile interval where BCa is undefined. Where
the pieces are so few that even their range covers too seldom, Student's interval with the jackknife's error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Verdict = Literal["faster", "slower", "none", "too few pairs"]

LEVEL = 0.95
SAME = 1e-9
"""Values this close are equal: what rounding leaves of a constant series has no sign."""
RESAMPLES = 2999
MOST_BLOCKS = 256
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval. `n` is the number of independent pieces it rests on."""

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    def excludes(self, point: float) -> bool:
        """Whether the interval lies wholly on one side of `point`."""
        return self.low > point or self.high < point

    @property
    def width(self) -> float:
        return self.high - self.low

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing or decreasing function of the estimate."""
        ends = sorted((function(self.low), function(self.high)))
        return Interval(function(self.value), ends[0], ends[1], self.n, self.level)

    def text(self, digits: int = 3) -> str:
        if not math.isfinite(self.width):
            return f"{self.value:.{digits}f} ({too_few(self.n)})"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def too_few(pairs: int) -> str:
    """What is said in place of an interval that `pairs` are too few for."""
    return f"{pairs} {'pair' if pairs == 1 else 'pairs'}: too few to say"


def fewest_pairs(level: float = LEVEL) -> int:
    """The least number of pairs whose range covers the median with probability `level`: 6 at 95%."""
    return 1 + math.ceil(-math.log2(1 - level))


def median_ratio(
    candidate: Sequence[float] | Array, baseline: Sequence[float] | Array, level: float = LEVEL
) -> Interval:
    """Median of candidate[i] / baseline[i] with its bootstrap interval.

    Both are positive series of equal length, paired by round. Serially correlated ratios widen the interval by the
    square root of their correlation time. Fewer than `fewest_pairs(level)` pairs give the interval (0, inf).
    """
    ratios = np.log(_series(candidate)) - np.log(_series(baseline))
    return median(ratios, level).map(math.exp)


def median(values: Sequence[float] | Array, level: float = LEVEL) -> Interval:
    """Median of a series with the exact bootstrap interval; infinite ends for fewer than `fewest_pairs(level)`."""
    series = _series(values)
    n = len(series)
    middle = float(np.median(series)) if n else math.nan
    if n < fewest_pairs(level):
        return Interval(middle, -math.inf, math.inf, n, level)
    ordered = np.sort(series)
    masses = _median_masses(n)
    centres = np.cumsum(masses) - masses / 2
    half = (n - 1) / 2
    reach = (half - np.interp((1 - level) / 2, centres, np.arange(n))) * math.sqrt(sign_correlation_time(series))
    low, high = np.interp([half - reach, half + reach], np.arange(n), ordered)
    beyond = max(1.0, reach / half)  # so correlated that even the range says too little: in proportion beyond it
    return Interval(middle, float(middle + (low - middle) * beyond), float(middle + (high - middle) * beyond), n, level)


@lru_cache(maxsize=256)
def _median_masses(n: int) -> Array:
    """Probability that the median of a resample of n is the k-th order statistic, k = 0..n-1.

    For even n the median is the mean of two; each of the two carries half.
    """
    from scipy.special import bdtrc

    share = np.arange(n + 1) / n
    upper = [bdtrc(n // 2 - 1, n, share), bdtrc(n // 2, n, share)]  # P(at least so many of n fall below)
    distribution = upper[1] if n % 2 else (upper[0] + upper[1]) / 2
    masses: Array = np.diff(distribution)
    return masses


def sign_correlation_time(series: Array) -> float:
    """1 + 2 * sum of the autocorrelations of sign(x - median): how many rounds carry one independent round's news.

    Lags are added while they stand out of the noise of n signs, so an uncorrelated series gives 1.
    """
    centred = series - np.median(series)
    signs = np.where(np.abs(centred) > SAME * max(1.0, float(np.abs(series).max())), np.sign(centred), 0.0)
    power = float(signs @ signs)
    if power == 0.0:
        return 1.0
    n = len(signs)
    time = 1.0
    for lag in range(1, n // 3):
        correlation = float(signs[:-lag] @ signs[lag:]) / power
        if correlation < 2 / math.sqrt(n):
            break
        time += 2 * correlation
    return time


def noise_floor(again: Interval) -> float:
    """The largest relative difference that A against A leaves possible: 0.02 says that 2% is noise here."""
    if again.low <= 0:
        return math.inf
    return max(again.high, 1 / again.low) - 1


def verdict(ratio: Interval, floor: float = 0.0) -> Verdict:
    """`faster` or `slower` for a ratio of times whose interval excludes 1 and whose value is beyond the floor."""
    if not math.isfinite(ratio.width):
        return "too few pairs"
    if ratio.high < 1 and 1 / ratio.value - 1 > floor:
        return "faster"
    if ratio.low > 1 and ratio.value - 1 > floor:
        return "slower"
    return "none"


def bootstrap(
    sample: Array,
    statistic: Callable[[Array], Any],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """BCa interval of a smooth statistic; percentile where BCa is undefined (a constant sample, no resample below).

    Fewer than `fewest_pairs(level)` rows give Student's interval, which may lie beyond what the statistic can be.
    sample: (n,) or (n, columns), rows resampled together. statistic: maps (..., n) or (..., n, columns) to (...).
    """
    n = len(sample)
    value = float(statistic(sample))
    if n < 2:
        return Interval(value, -math.inf, math.inf, n, level)
    jackknife = _jackknife(sample, statistic)
    if n < fewest_pairs(level):
        half = _student(n, level) * math.sqrt((n - 1) * float(jackknife.var()))
        return Interval(value, value - half, value + half, n, level)
    generator = np.random.default_rng(seed)
    step = max(1, (1 << 21) // sample.size)
    replicas = np.concatenate(
        [
            np.atleast_1d(statistic(sample[generator.integers(0, n, (min(step, resamples - start), n))]))
            for start in range(0, resamples, step)
        ]
    )
    tails = _bca_tails(value, replicas, jackknife, _small_sample_tail(n, level))
    low, high = np.quantile(replicas, tails)
    return Interval(value, float(low), float(high), n, level)


def _jackknife(sample: Array, statistic: Callable[[Array], Any]) -> Array:
    n = len(sample)
    keep = np.arange(n - 1) + (np.arange(n - 1) >= np.arange(n)[:, None])
    values: Array = np.asarray(statistic(sample[keep]), dtype=np.float64)
    return values


def _small_sample_tail(n: int, level: float) -> float:
    """Tail probability that makes a percentile interval of n pieces as wide as Student's."""
    return _NORMAL.cdf(-math.sqrt(n / (n - 1)) * _student(n, level))


def _student(n: int, level: float) -> float:
    """Standard errors that the interval of a mean of n values reaches to each side."""
    from scipy.special import stdtrit

    return -float(stdtrit(n - 1, (1 - level) / 2))


def _bca_tails(value: float, replicas: Array, jackknife: Array, tail: float) -> tuple[float, float]:
    below = float(np.mean(replicas < value) + np.mean(replicas == value) / 2)
    centred = jackknife.mean() - jackknife
    power = float(np.sum(centred**2)) ** 1.5
    if not 0 < below < 1 or not math.isfinite(power) or power == 0.0:
        return tail, 1 - tail
    bias = _NORMAL.inv_cdf(below)
    acceleration = float(np.sum(centred**3)) / (6 * power)
    ends = []
    for z in (_NORMAL.inv_cdf(tail), -_NORMAL.inv_cdf(tail)):
        stretched = 1 - acceleration * (bias + z)
        if stretched <= 0:
            return tail, 1 - tail
        ends.append(_NORMAL.cdf(bias + (bias + z) / stretched))
    return ends[0], ends[1]


def mean_difference(
    candidate: Sequence[float] | Array,
    baseline: Sequence[float] | Array,
    *,
    windows: Sequence[int] | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Mean of candidate[i] - baseline[i] with a block bootstrap interval.

    windows: lengths of the stretches whose neighbours are correlated (the windows of a perplexity), in order, summing
    to the number of pairs; one stretch when not given. Blocks never cross a window.
    """
    difference = _series(candidate) - _series(baseline)
    lengths = [len(difference)] if windows is None else list(windows)
    if sum(lengths) != len(difference):
        raise ValueError(f"windows hold {sum(lengths)} values, the series {len(difference)}")
    stretches = np.split(difference, np.cumsum(lengths)[:-1])
    block = block_length(stretches)
    blocks = [
        part for stretch in stretches if len(stretch) for part in np.array_split(stretch, max(1, len(stretch) // block))
    ]
    table = np.array([(part.sum(), len(part)) for part in blocks], dtype=np.float64).reshape(-1, 2)
    return bootstrap(table, lambda t: t[..., 0].sum(-1) / t[..., 1].sum(-1), level=level, seed=seed)


def block_length(stretches: Sequence[Array]) -> int:
    """Block length that balances bias and variance of the bootstrapped mean, (2r / (1 - r^2))^(2/3) * n^(1/3).

    r is the correlation of neighbours (Carlstein 1986 for a first-order process); at least n / MOST_BLOCKS.
    """
    n = sum(len(stretch) for stretch in stretches)
    centre = sum(float(stretch.sum()) for stretch in stretches) / max(n, 1)
    power = sum(float(np.sum((stretch - centre) ** 2)) for stretch in stretches)
    pairs = sum(float((stretch[:-1] - centre) @ (stretch[1:] - centre)) for stretch in stretches)
    r = min(abs(pairs) / power, 0.95) if power > 0 else 0.0
    wanted = math.pow(2 * r / (1 - r * r), 2 / 3) * math.pow(n, 1 / 3)
    return max(1, math.ceil(wanted), math.ceil(n / MOST_BLOCKS))


def perplexity_ratio(
    candidate: Sequence[float] | Array,
    baseline: Sequence[float] | Array,
    *,
    windows: Sequence[int] | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """perplexity(candidate) / perplexity(baseline) from their log-probabilities of the same tokens, paired.

    Natural logarithms, one per scored token; see `mean_difference` for `windows`. 1.04 = 4% worse.
    """
    return mean_difference(baseline, candidate, windows=windows, level=level, seed=seed).map(_exp)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _series(values: Sequence[float] | Array) -> Array:
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"a series has one dimension, not {series.ndim}")
    return series
