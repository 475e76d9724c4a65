"""Paired differences of many methods on the same images, each against each, from their bootstrap replicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.metrics.bootstrap import Replicates, expanded_percentiles
from hrbench.metrics.catalogue import METRICS
from hrbench.protocol import Bootstrap

__all__ = ["Pairwise", "pairwise"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pairwise:
    """What :func:`pairwise` returns; arrays are (M, M, R) for M methods and R rows of replicates.

    Attributes
    ----------
    difference : ndarray
        The first method minus the second.
    low, high : ndarray
        Its interval; NaN where none can be given.
    share_better : ndarray
        Share of the draws in which the first is better, ties counted one half; NaN where there is no interval.
    """

    difference: Floats
    low: Floats
    high: Floats
    share_better: Floats


def pairwise(parts: Sequence[Replicates], *, level: float = Bootstrap.level) -> Pairwise:
    """Compare each method with each as :func:`hrbench.metrics.bootstrap.paired_difference` does.

    Parameters
    ----------
    parts : sequence of Replicates, (M,)
        With the same keys, over the same images.
    level : float

    Raises
    ------
    HrbenchError
        If keys, images or draws differ.
    """
    first = parts[0]
    for part in parts[1:]:
        if not part.keys.equals(first.keys) or (part.sample, len(part.values)) != (first.sample, len(first.values)):
            raise HrbenchError("methods can be compared on the same images only, with the same metrics and draws")
    methods, rows = len(parts), len(first.keys)
    sign = np.array([METRICS[metric].sign for metric in first.keys["metric"]])
    difference, low, high, share = np.full((4, methods, methods, rows), np.nan)
    for i in range(methods):
        for j in range(i):
            a, b = parts[i], parts[j]
            values = a.values - b.values
            for row in np.flatnonzero(a.reliable & b.reliable):
                units = int(min(a.units[row], b.units[row]))
                low[i, j, row], high[i, j, row] = expanded_percentiles(values[:, row], units, level)
                defined = values[~np.isnan(values[:, row]), row]
                if defined.size:
                    share[i, j, row] = (1 + np.sign(sign[row] * defined)).mean() / 2
            difference[i, j] = a.estimate - b.estimate
            difference[j, i], low[j, i], high[j, i] = -difference[i, j], -high[i, j], -low[i, j]
            share[j, i] = 1 - share[i, j]
    return Pairwise(difference, low, high, share)
