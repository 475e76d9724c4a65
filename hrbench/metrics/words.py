"""What is found, in plain words: how small a defect is found reliably, at how many false alarms.

The page's script says the same of every number of false alarms, word for word: see ``report/operating.js``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hrbench.metrics.alarms import FalseAlarms, allowed
from hrbench.metrics.detection import FLAT, Detection, DetectionLimit
from hrbench.metrics.sizes import equivalent_diameter

__all__ = [
    "alarms_text",
    "budget_text",
    "counted",
    "detection_limit_text",
    "figure_text",
    "finding",
    "odds_text",
    "opening",
    "percent_text",
    "pixels_text",
    "range_text",
    "rate_text",
    "seen",
    "sentence",
    "size_text",
    "times_text",
]

_MOST_TIMES = 100


def sentence(found: Detection, name: str = "it") -> str:
    """Say in one sentence what a method finds at an operating point.

    Examples
    --------
    >>> from hrbench.metrics.detection import fit_detection
    >>> found = fit_detection([4, 9, 15, 27, 49, 60, 90, 110, 164, 245], [0, 0, 1, 0, 1, 0, 1, 1, 1, 1])
    >>> sentence(found, "FastFlow")
    'At the threshold FastFlow finds 9 of 10 defects of 233 px (17 px across) or more; this rests on 10 defects.'
    """
    alarms, interval = found.alarms, seen(found.interval.get("bootstrap"), found.areas.tolist())
    if found.budget is not None:
        start = opening(found.budget, alarms.good)
    else:
        start = "At the threshold" + f" {found.threshold:.4g}" * math.isfinite(found.threshold)
        if alarms.good:
            verb = "alarms" if alarms.good == 1 else "alarm"
            start += f" ({alarms.count:,} of {counted(alarms.good, 'good image')} {verb})"
    hit = int(found.hits.sum())
    return finding(f"{start} {name}", found.areas.tolist(), hit, found.a90, found.pod.probability, interval)


def finding(
    start: str,
    areas: Sequence[float],
    hit: int,
    limit: DetectionLimit,
    probability: float,
    interval: tuple[float, float] | None = None,
) -> str:
    """Say in one sentence what is found.

    Parameters
    ----------
    start : str
        Its beginning: where, and who.
    areas : sequence of float
        Of all defects.
    hit : int
        How many of them are hit.
    limit : DetectionLimit
        The smallest size that is found reliably.
    probability : float
        What counts as reliable: 0.9 is "9 of 10".
    interval : (float, float), optional
        Of `limit`.
    """
    of, number = odds_text(probability), len(areas)
    if not number:
        return f"{start} has no defect to find."
    defects = counted(number, "defect")
    if limit.area is not None:
        end = f"this rests on {defects}"
        if interval is not None and math.isfinite(interval[0]):
            end = f"{defects} cannot say it better than {range_text(*interval)}"
        return f"{start} finds {of} defects of {size_text(limit.area)} or more; {end}."
    low, high = pixels_text(min(areas)), pixels_text(max(areas))
    if hit == number:
        found = f"the only defect, of {low}" if number == 1 else f"all {defects}, the smallest of {low}"
        return f"{start} finds {found}: where it begins to miss cannot be told."
    if not hit:
        return f"{start} finds none of {defects}, the largest of {high}."
    if low == high:
        return f"{start} finds {hit:,} of {defects}, all of {low}: nothing can be said of other sizes."
    if limit.reason == FLAT:
        return f"{start} finds {hit:,} of {defects}, large ones not more often than small ones."
    return f"{start} does not find {of} defects of any size seen here (largest {high})."


def opening(budget: float, good: int) -> str:
    """Begin a sentence with the number of false alarms; too few good images for a single one have their own words."""
    if allowed(good, budget):
        return f"At {alarms_text(budget)}"
    upper = percent_text(1 - 0.05 ** (1 / good))
    return f"With zero alarms among {counted(good, 'good image')} (the true rate may be up to {upper})"


def alarms_text(budget: float) -> str:
    """Write a share of the good images as ``5 false alarms per 100 good images``."""
    return f"{budget_text(budget)} false alarm{'s' * (budget_text(budget) != '1')} per 100 good images"


def budget_text(budget: float) -> str:
    """Write a share of the good images as their number per 100."""
    return f"{100 * budget:g}"


def rate_text(alarms: FalseAlarms, level: float = 0.95) -> str:
    """Write false alarms as ``3 of 60 good images alarm, 5 per 100 (95 % interval 1.0 to 13.9)``."""
    low, high = alarms.interval(level)
    verb = f"alarm{'s' * (alarms.good == 1)}"
    return (
        f"{alarms.count:,} of {counted(alarms.good, 'good image')} {verb}, {100 * alarms.rate:.3g} per 100 "
        f"({100 * level:g} % interval {100 * low:.1f} to {100 * high:.1f})"
    )


def size_text(area: float) -> str:
    """Write an area with the diameter of the circle that has it: ``1,240 px (40 px across)``."""
    return f"{pixels_text(area)} ({pixels_text(float(equivalent_diameter(area)))} across)"


def seen(interval: tuple[float, float] | None, areas: Sequence[float]) -> tuple[float, float] | None:
    """Return an interval of sizes, open where it ends beyond the defects that were seen: there nothing is claimed.

    Examples
    --------
    >>> seen((857, 16656), [18, 4982])
    (857, inf)
    >>> seen((0.02, 3000), [18, 4982])
    (0.0, 3000)
    """
    if interval is None:
        return None
    low, high = interval
    return 0.0 if low < min(areas, default=0) else low, high if high <= max(areas, default=0) else math.inf


def range_text(low: float, high: float) -> str:
    """Write an interval of areas; its lower end may be 0, its upper one infinite.

    Examples
    --------
    >>> range_text(0.0, math.inf)
    'from below the smallest to beyond the largest seen here'
    """
    if low <= 0 and not math.isfinite(high):
        return "from below the smallest to beyond the largest seen here"
    if not math.isfinite(high):
        return f"from {pixels_text(low)} to beyond the largest seen here"
    return f"{figure_text(low)} to {pixels_text(high)}" if low > 0 else f"anything up to {pixels_text(high)}"


def times_text(times: float, *, reached: bool) -> str:
    """Write a score in units of a threshold that it reaches or not: rounded down, so that the number agrees with that.

    Examples
    --------
    >>> times_text(0.998, reached=False), times_text(1.499, reached=True), times_text(1e9, reached=True)
    ('0.99 × threshold', '1.49 × threshold', 'over 100 × threshold')
    """
    if times >= _MOST_TIMES:  # the exponential score of a likelihood has no more to say
        return f"over {_MOST_TIMES} × threshold"
    whole = math.floor(100 * times + 1e-9) / 100
    return f"{max(1.0, whole) if reached else min(0.99, whole):.2f} × threshold"


def detection_limit_text(limit: DetectionLimit) -> str:
    """Write a limit in one line: ``312 px``, ``not reached``, ``not estimable``."""
    return limit.reason.partition(" (")[0] if limit.area is None else pixels_text(limit.area)


def pixels_text(value: float) -> str:
    """Write a number of pixels."""
    return f"{figure_text(value)} px"


def figure_text(value: float) -> str:
    """Write a number without decimals where it has two digits or more."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def percent_text(share: float) -> str:
    """Write a share in percent, with a decimal where it is small."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.1f} %"


def counted(number: int, word: str) -> str:
    """Write ``1 image`` and ``1,200 images``."""
    return f"{number:,} {word}{'s' * (number != 1)}"


def odds_text(probability: float) -> str:
    """Write a probability as ``9 of 10``."""
    tenths = round(10 * probability)
    return f"{tenths} of 10" if abs(10 * probability - tenths) < 1e-9 else f"{budget_text(probability)} of 100"
