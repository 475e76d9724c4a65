"""Rank metrics with certified error bounds, and the curves that reports draw.

Everything follows from one identity. For a defect pixel with score s let ``a`` be the share of normal pixels
above s and ``b`` the share at or above s. On the curve over all thresholds, with straight lines across ties,

    area up to FPR limit L = mean over defect pixels of g(a, b; L),
    g(a, b; L) = mean of max(L - x, 0) over x in [a, b],

where the mean weighs every pixel equally (ROC) or every component equally (PRO). Where normal scores are
binned, a and b are only known to lie within their bin's [A, B]; as g falls in both, g(B, B) and g(A, A) enclose
the true value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from hrbench.evidence import Evidence
from hrbench.evidence.histograms import DefectRanks, score_keys
from hrbench.metrics.sizes import evidence_subsets
from hrbench.protocol import Protocol

__all__ = [
    "UNDEFINED",
    "Certified",
    "binary_auroc",
    "binary_average_precision",
    "component_areas",
    "group_areas",
    "partial_area",
    "pixel_average_precision",
    "pro_curve",
    "roc_curve",
]

Floats = npt.NDArray[np.float64]

_PIECE = 1 << 16  # pixels at a time, where all at once would cost memory


class Certified(NamedTuple):
    """A value and the interval that provably holds the true one: scalars, or arrays of one shape."""

    value: Any
    low: Any
    high: Any

    @staticmethod
    def exactly(value: Any) -> Certified:
        """Return a value that is known without error."""
        return Certified(value, value, value)

    @property
    def bound(self) -> Any:
        """Largest possible error of `value`."""
        return np.maximum(self.high - self.value, self.value - self.low)

    def mean(self, members: npt.NDArray[np.bool_], weights: Floats | None = None) -> Certified:
        """Average over the members; NaN if there is none."""
        if not members.any():
            return UNDEFINED
        own_weights = None if weights is None else weights[members]
        return Certified(*(float(np.average(part[members], weights=own_weights)) for part in self))


UNDEFINED = Certified.exactly(np.nan)


def partial_area(above: Floats, at_least: Floats, limit: float) -> Floats:
    """Return g(a, b; L) per pixel: the mean of ``max(L - x, 0)`` for x from `above` to `at_least`."""
    tied = at_least - above
    inside = limit - (above + at_least) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = (limit - above) ** 2 / (2 * tied)
    return np.where(at_least <= limit, inside, np.where(above < limit, crossing, 0.0))


def component_areas(evidence: Evidence, limits: Sequence[float]) -> dict[float, Certified]:
    """Return each component's own AUPRO, (K,), per FPR limit: AUPRO of any subset is the mean over it.

    At limit 1, the mean weighted by area is the ROC area of the subset's pixels.
    """
    areas, ranks = evidence.components["area"].to_numpy(), evidence.ranks
    return group_areas(ranks, areas, evidence.normal_pixels, limits, lossless=evidence.lossless)


def group_areas(
    ranks: DefectRanks, sizes: npt.NDArray[np.int64], total: int, limits: Sequence[float], *, lossless: bool
) -> dict[float, Certified]:
    """Return the mean of g(a, b; L) / L over each group of defect pixels, (K,), per FPR limit L.

    Parameters
    ----------
    ranks : DefectRanks
        Of the pixels, group after group.
    sizes : ndarray of int, (K,)
        Pixels of each group, at least one.
    total : int
        Normal pixels that they are ranked among.
    limits : sequence of float
    lossless : bool
        Whether every key is one score.
    """
    if not sizes.size:
        return dict.fromkeys(limits, Certified.exactly(np.zeros(0)))
    all_starts = np.cumsum(sizes) - sizes
    # A piece of keys, or whole groups of about a piece of pixels, at a time: arrays of all would be wide.
    first = np.searchsorted(all_starts, np.arange(0, sizes.sum(), _PIECE))
    blocks = list(pairwise(np.unique([*first, sizes.size])))  # a piece may begin inside the last group

    def per_group(area: Callable[[Floats, Floats, float], Floats], limit: float) -> Floats:
        shares = np.empty(ranks.keys.size)
        for start in range(0, shares.size, _PIECE):
            piece = slice(start, start + _PIECE)
            shares[piece] = area(ranks.above[piece] / total, ranks.at_least[piece] / total, limit) / limit
        sums = []
        for start, stop in blocks:
            starts = all_starts[start:stop]
            pixels = ranks.place[starts[0] : starts[-1] + sizes[stop - 1]]
            sums.append(np.add.reduceat(shares[pixels], starts - starts[0]))
        means: Floats = np.concatenate(sums) / sizes
        return means

    result = {}
    for limit in limits:
        value = per_group(partial_area, limit)
        ends = (value, value)
        if not lossless:
            ends = per_group(_least_area, limit), per_group(_largest_area, limit)
        result[limit] = Certified(value, *ends)
    return result


def _least_area(_: Floats, at_least: Floats, limit: float) -> Floats:
    return np.maximum(limit - at_least, 0)


def _largest_area(above: Floats, _: Floats, limit: float) -> Floats:
    return np.maximum(limit - above, 0)


def pixel_average_precision(evidence: Evidence) -> Certified:
    """Return the average precision over all pixels: the step-wise sum of precision over recall."""
    ranks, number = evidence.ranks, evidence.defect_scores.size
    if evidence.lossless:  # every key is one score
        hits = np.cumsum(ranks.pixels[::-1])[::-1]  # defect pixels at or above each key
        value = float(ranks.pixels @ (hits / (hits + ranks.at_least))) / number
        return Certified.exactly(value)
    scores = np.sort(evidence.defect_scores)
    ends = np.cumsum(ranks.pixels)
    low = high = 0.0
    first = 0  # place of the first pixel with the score of the one before
    for start in range(0, number, _PIECE):
        stop = min(start + _PIECE, number)
        lowest, highest = np.searchsorted(ends, [start, stop - 1], side="right")
        inside = np.diff(ends[lowest:highest].clip(start, stop), prepend=start, append=stop)
        key = np.repeat(np.arange(lowest, highest + 1), inside)
        places = np.arange(start, stop)
        part = scores[start:stop]
        previous = scores[max(start - 1, 0) : stop - 1] if start else np.concatenate([part[:1], part[:-1]])
        same = part == previous
        firsts = np.where(same, 0, places)
        firsts[0] = first if same[0] else start
        firsts = np.maximum.accumulate(firsts)
        first = int(firsts[-1])
        hits = number - firsts
        high += float((hits / (hits + ranks.above[key])).sum()) / number
        fewest = number - places  # equal scores may have differed before float32
        low += float((fewest / (fewest + ranks.at_least[key])).sum()) / number
    return Certified((low + high) / 2, low, high)


def binary_auroc(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the area under the ROC curve, ties counted one half; NaN unless both labels occur."""
    positive = labels == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def binary_average_precision(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Return the step-wise average precision, tied scores taken together; NaN without a positive."""
    total = int(labels.sum())
    if not total:
        return float("nan")
    thresholds, inverse = np.unique(scores, return_inverse=True)
    hits = np.bincount(inverse, weights=labels, minlength=thresholds.size)[::-1]
    predicted = np.bincount(inverse, minlength=thresholds.size)[::-1]
    return float(np.sum(hits / total * np.cumsum(hits) / np.cumsum(predicted)))


def roc_curve(evidence: Evidence, points: int = 1000) -> tuple[Floats, Floats]:
    """Return the pixel ROC curve as (FPR, TPR), from (0, 0) to (1, 1), at most about `points` long."""
    weights = np.full(evidence.defect_scores.size, 1 / evidence.defect_scores.size)
    return _curve(evidence, weights, points)


def pro_curve(evidence: Evidence, protocol: Protocol, subset: str = "all", points: int = 1000) -> tuple[Floats, Floats]:
    """Return the PRO curve as (FPR, mean overlap of the subset's components), from (0, 0) to (1, 1).

    Parameters
    ----------
    evidence : Evidence
    protocol : Protocol
    subset : str
        A size subset, see :func:`hrbench.metrics.size_subsets`.
    points : int
        About the largest number of points; they crowd at low FPR, evenly on a logarithmic axis.
    """
    areas = evidence.components["area"].to_numpy()
    members = evidence_subsets(evidence, protocol.size_bins)[subset]
    weights = np.repeat(np.where(members, 1 / areas, 0.0) / max(1, members.sum()), areas)
    return _curve(evidence, weights, points)


def _curve(evidence: Evidence, weights: Floats, points: int) -> tuple[Floats, Floats]:
    normal = evidence.normal.histogram()
    keys = score_keys(evidence.defect_scores, evidence.shift)
    thresholds = np.unique(np.concatenate([normal.keys, keys]))[::-1]
    order = np.argsort(keys)
    gained = np.concatenate([[0.0], np.cumsum(weights[order[::-1]])])
    reached = keys.size - np.searchsorted(keys[order], thresholds, side="left")
    fpr = np.concatenate([[0.0], normal.at_least(thresholds) / normal.total])
    value = np.concatenate([[0.0], gained[reached]])
    if fpr.size > points:
        wanted = np.concatenate([np.geomspace(1 / normal.total, 1, points // 2), np.linspace(0, 1, points // 2)])
        places = np.unique(np.concatenate([[0, fpr.size - 1], np.searchsorted(fpr, np.sort(wanted))]))
        fpr, value = fpr[places.clip(max=fpr.size - 1)], value[places.clip(max=fpr.size - 1)]
    return fpr, value
