"""Coherence, entropy and anomaly of a session, from a rolling window of its figures. Pure.

A window holds the last n samples x_1 ... x_n of a figure, x_n the newest. All scores are in 0..1 and never NaN,
whatever the figures; a window without any variation (empty, of one sample, constant) has coherence 1, entropy 0 and
anomaly 0.

coherence   how well a series follows from its own recent past (Box and Jenkins, Time Series Analysis, 2.1.5):

                r_k = sum_{t=1}^{n-k} (x_t - m)(x_{t+k} - m) / sum_{t=1}^{n} (x_t - m)^2        m the mean
                coherence = (1 + mean(r_1 ... r_K)) / 2                                        K = min(lags, n - 1)

            White noise is near 1/2, a slow wave near 1, a series that alternates below 1/2.

entropy     how evenly the values are spread (Shannon 1948) over b bins of equal width from the least to the largest:

                entropy = - sum_i p_i log2(p_i) / log2(b)                                      p_i the share of bin i

anomaly     how far the newest sample is from those before it, by the figure that is farthest (Iglewicz and Hoaglin,
            How to Detect and Handle Outliers, 1993, "modified z-score"):

                MAD = median(|x_i - median(x)|),  i < n
                z   = |x_n - median(x)| / max(1.4826 MAD, 0.05 |median(x)|, floor)
                anomaly = z^2 / (z^2 + 3.5^2)

            of the figure with the largest z. 1.4826 MAD is the standard deviation of normal values; 3.5 is where the
            book calls a value an outlier: it scores 1/2, z = 10.5 scores 0.9. The other two in max() keep what never
            varied from making a catastrophe of a trifle: `floor` is the deviation of a figure that is nothing at all.

Coherence and entropy are those of the rate series, bytes in and out a second.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MAD_TO_SIGMA = 1.4826
LEAST_SHARE = 0.05
OUTLIER = 3.5
"""The z that scores 1/2."""


class Scores(NamedTuple):
    """Each in 0..1. `figure` is the one whose z decided about `anomaly`, "" where nothing deviates."""

    coherence: float
    entropy: float
    anomaly: float
    z: float = 0.0
    figure: str = ""


STILL = Scores(1.0, 0.0, 0.0)
"""Of a session that does nothing."""


def coherence(values: Sequence[float], lags: int) -> float:
    """Mean autocorrelation of lags 1 to `lags`, mapped from -1..1 to 0..1."""
    values, unit = _sane(values)
    n = len(values)
    lags = min(lags, n - 1)
    if lags < 1:
        return 1.0
    mean = sum(values) / n
    off = [value - mean for value in values]
    power = sum(map(mul, off, off))
    if power <= _NOTHING * unit * unit * n:
        return 1.0
    # map() ends with the shorter one, which is the shifted
    together = sum([sum(map(mul, off, off[lag:])) for lag in range(1, lags + 1)])
    return _unit((1.0 + together / (power * lags)) / 2.0)


def entropy(values: Sequence[float], bins: int) -> float:
    """Entropy of the histogram of `values`, as a share of that of `bins` equally full bins (2 or more)."""
    values, unit = _sane(values)
    if not values:
        return 0.0
    ordered = sorted(values)
    least = ordered[0]
    width = ordered[-1] - least
    if width * width <= _NOTHING * unit * unit:
        return 0.0
    n = len(ordered)
    bits, begin = 0.0, 0
    for edge in range(1, bins + 1):
        end = bisect_left(ordered, least + width * edge / bins, begin) if edge < bins else n
        if end > begin:
            count = end - begin
            bits -= count * math.log2(count / n)
        begin = end
    return _unit(bits / n / math.log2(bins))


def robust_z(before: Sequence[float], newest: float, floor: float, *, beat: float = 0.0) -> float:
    """|newest - median| in robust standard deviations of what was before it; 0 without a before.

    `floor` (above 0) is the least that counts as one deviation. A result at or below `beat` may come out as 0: whoever
    looks for the largest saves half the work.
    """
    if not before or not math.isfinite(newest):
        return 0.0
    ordered = sorted(before)
    median = _median(ordered)
    off = abs(newest - median)
    least = max(LEAST_SHARE * abs(median), floor)
    if off <= beat * least:
        return 0.0
    mad = _median(sorted([abs(value - median) for value in ordered]))
    z = off / max(MAD_TO_SIGMA * mad, least)
    return z if math.isfinite(z) else _LARGEST


def anomaly(z: float) -> float:
    """A z of 0 or more, squashed to 0..1."""
    if z <= 0.0:
        return 0.0
    ratio = OUTLIER / z
    return _unit(1.0 / (1.0 + ratio * ratio))


_NOTHING = 1e-24  # a square, as a share of that of the largest value: what rounding leaves of a constant series
_LARGEST = 1e9
_ROOM = 1e100  # values whose squares and sums are numbers


def _sane(values: Sequence[float]) -> tuple[Sequence[float], float]:
    """The finite ones of `values`, small enough to be multiplied, and the largest magnitude among them. The scores do
    not depend on the unit."""
    largest = max(map(abs, values), default=0.0)
    if 1 / _ROOM < largest < _ROOM and math.isfinite(sum(values)):
        return values, largest
    finite = [value for value in values if math.isfinite(value)]
    largest = max(map(abs, finite), default=0.0)
    if largest == 0.0:
        return finite, 1.0
    return [value / largest for value in finite], 1.0


def _median(ordered: Sequence[float]) -> float:
    n = len(ordered)
    middle = n // 2
    if n % 2:
        return ordered[middle]
    low, high = ordered[middle - 1], ordered[middle]
    # halves first: the sum of two huge values has no room; and none of equals: that of the smallest values is rounded
    return low if low == high else low / 2 + high / 2


def _unit(value: float) -> float:
    """`value`, which rounding may have pushed out of 0..1."""
    return 0.0 if value < 0.0 else 1.0 if value > 1.0 else value
