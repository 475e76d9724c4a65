"""Whether methods differ in rank over several data sets: Friedman's test, and Nemenyi's critical difference.

As Demšar recommends and writes them ("Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006,
section 3.2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import f as f_distribution
from scipy.stats import rankdata, studentized_range

from hrbench.errors import HrbenchError

__all__ = ["RankTest", "cliques", "critical_difference", "rank_test"]

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class RankTest:
    """What ranks over data sets tell of methods.

    Attributes
    ----------
    ranks : ndarray
        Mean rank of each method over the data sets; 1 is best, ties share the mean of their ranks.
    data_sets : int
    chi2 : float
        Friedman's statistic, without a correction for ties (which makes it smaller, never larger).
    f : float
        The less conservative statistic of Iman and Davenport (1980) made of it.
    p : float
        Probability of an `f` at least as large were all methods alike, from F with k - 1 and (k - 1)(N - 1) degrees
        of freedom.
    critical : float
        Nemenyi's difference: two methods whose mean ranks lie at least that far apart differ.
    level : float
        Confidence of both tests.
    """

    ranks: Floats
    data_sets: int
    chi2: float
    f: float
    p: float
    critical: float
    level: float

    @property
    def differ(self) -> bool:
        """Whether Friedman's test tells any methods apart; else none of their differences counts."""
        return self.p < 1 - self.level


def rank_test(values: npt.ArrayLike, level: float = 0.95) -> RankTest:
    """Compare methods by their ranks on each of several data sets.

    Parameters
    ----------
    values : array_like, (data sets, methods)
        Higher is better.
    level : float
        Confidence, 0.95 for tests at 5 %.

    Returns
    -------
    RankTest

    Raises
    ------
    HrbenchError
        If a value is missing, or there are fewer than two data sets or two methods.

    Examples
    --------
    >>> from hrbench.metrics.rank_tests import rank_test
    >>> found = rank_test([[0.9, 0.8, 0.7], [0.8, 0.6, 0.7], [0.9, 0.7, 0.6], [0.7, 0.6, 0.5]])
    >>> found.ranks.tolist(), round(found.p, 4)
    ([1.0, 2.25, 2.75], 0.0066)
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise HrbenchError(f"values of shape {table.shape}, expected finite ones of at least 2 data sets x 2 methods")
    n, k = table.shape
    ranks = np.asarray(rankdata(-table, axis=1), dtype=np.float64).mean(axis=0)
    chi2 = 12 * n / (k * (k + 1)) * float(((ranks - (k + 1) / 2) ** 2).sum())
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 else math.inf  # the same order on every data set
    p = float(f_distribution.sf(f, k - 1, (k - 1) * (n - 1)))
    return RankTest(ranks, n, chi2, f, p, critical_difference(k, n, level), level)


def critical_difference(methods: int, data_sets: int, level: float = 0.95) -> float:
    """Return Nemenyi's critical difference of mean ranks ``q * sqrt(k * (k + 1) / (6 * N))``.

    `q` is the quantile of the studentized range of so many methods with infinitely many degrees of freedom, divided
    by the square root of two.
    """
    q = float(studentized_range.ppf(level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * data_sets))


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Return the largest groups of methods that do not differ, as first and last place of each.

    Parameters
    ----------
    ranks : sequence of float
        Mean ranks, ascending.
    critical : float
        Difference from which on two methods differ.

    Returns
    -------
    list of (int, int)
        Groups of two methods at least; none lies inside another one.
    """
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(place for place, other in enumerate(ranks) if other == rank or other - rank < critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
