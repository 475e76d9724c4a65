"""How many images a useful interval needs: what to collect next, from the intervals that there are.

The half-width of an interval falls with the square root of what it rests on. That holds for a share, and for the
logarithm of a size; whether a bootstrap over images or a formula has given the interval does not matter.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from scipy.stats import beta

__all__ = ["SHARE", "TIMES", "good_images_for", "number_for_share", "number_for_size"]

SHARE = 0.05
"""Half-width at which an interval of a share is useful: a recall of 0.80 within 0.75 and 0.85."""

TIMES = 2.0
"""Ratio of its ends at which an interval of a size, or of a rate of false alarms, is useful."""


def number_for_share(number: int, low: float, high: float, half_width: float = SHARE) -> int:
    """Return how many defects are needed in all for an interval of a share of this half-width.

    Parameters
    ----------
    number : int
        Defects behind the interval that there is.
    low, high : float
        Its ends.
    half_width : float

    Examples
    --------
    >>> number_for_share(100, 0.7, 0.9)
    400
    """
    return _scaled(number, (high - low) / 2 / half_width)


def number_for_size(number: int, low: float, high: float, times: float = TIMES) -> int:
    """Return how many defects are needed in all for an interval of a size whose upper end is `times` its lower one.

    Parameters
    ----------
    number : int
        Defects behind the interval that there is.
    low, high : float
        Its ends, positive and finite, in pixels.
    times : float

    Examples
    --------
    >>> number_for_size(100, 100, 400)
    400
    """
    return _scaled(number, math.log(high / low) / math.log(times))


def _scaled(number: int, ratio: float) -> int:
    return math.ceil(number * ratio**2 - 1e-6)  # rounding must not ask for one more


def good_images_for(rate: float, times: float = TIMES, level: float = 0.95) -> int:
    """Return how many good images show that a rate of false alarms is at most `times` what it is found to be.

    The least number for which the interval of Clopper and Pearson ends at or below ``times * rate``; the number that
    alarms is ``rate`` of them, whole or not: as it is whole, the interval may end beyond by less than one image.

    Parameters
    ----------
    rate : float
        Share of the good images that alarm, above 0 and with ``times * rate < 1``.
    times, level : float

    Examples
    --------
    >>> good_images_for(0.05)
    142
    """

    def ends(good: int) -> float:
        return float(beta.ppf((1 + level) / 2, rate * good + 1, (1 - rate) * good))

    enough = 1
    while ends(enough) > times * rate:
        enough *= 2
    return bisect_left(range(enough), True, lo=enough // 2, key=lambda good: ends(good) <= times * rate)
