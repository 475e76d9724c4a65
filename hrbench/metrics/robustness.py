"""Robustness to defect size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hrbench.metrics.curves import Certified

__all__ = ["drawn_robustness", "size_robustness"]

Floats = npt.NDArray[np.float64]


def size_robustness(areas: Sequence[Certified]) -> Certified:
    """Return ``rho = mean(a_1 .. a_4) * min(a_1, a_4) / max(a_1, a_4)``, 0 if the maximum is 0.

    Parameters
    ----------
    areas : sequence of Certified
        AUPRO at one FPR limit of the four size subsets, smallest defects first.

    Examples
    --------
    >>> from hrbench.metrics import Certified, size_robustness
    >>> rho = size_robustness([Certified(a, a, a) for a in (0.80, 0.84, 0.88, 0.92)])
    >>> round(rho.value, 4)
    0.7478
    """
    first, last = areas[0], areas[-1]
    certified = not any(math.isnan(end) for area in areas for end in (area.low, area.high))

    def mean(part: int) -> float:
        return float(sum(area[part] for area in areas)) / len(areas)

    if first.low <= last.high and last.low <= first.high:
        best_ratio = float(max(first.high, last.high) > 0)  # the two may be equal
    else:
        best_ratio = _ratio(first.high, last.low) if first.high < last.low else _ratio(first.low, last.high)
    worst_ratio = min(_ratio(first.low, last.high), _ratio(first.high, last.low))
    value = mean(0) * _ratio(first.value, last.value)
    if not certified:
        return Certified(value, math.nan, math.nan)
    return Certified(value, min(value, mean(1) * worst_ratio), max(value, mean(2) * best_ratio))


def drawn_robustness(areas: Sequence[Floats]) -> Floats:
    """Return rho (B,) of many draws from their AUPRO (B,) of each size subset, smallest defects first."""
    first, last = areas[0], areas[-1]
    high = np.maximum(first, last)
    ratio = np.divide(np.minimum(first, last), high, out=np.zeros_like(high), where=high != 0)
    return sum(areas, np.zeros_like(first)) / len(areas) * ratio


def _ratio(a: float, b: float) -> float:
    return min(a, b) / max(a, b) if max(a, b) > 0 else 0.0
