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

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from hrbench.evidence import Evidence
from hrbench.metrics.sizes import size_subsets
from hrbench.protocol import Protocol
from hrbench.scores import score_keys

__all__ = [
    "Certified",
    "binary_auroc",
    "binary_average_precision",
    "component_areas",
    "defect_ranks",
    "partial_area",
    "pixel_areas",
    "pixel_average_precision",
    "pro_curve",
    "roc_curve",
]

Floats = npt.NDArray[np.float64]


class Certified(NamedTuple):
    """A value and the interval that provably holds the true one: scalars, or arrays of one shape."""

    value: Any
    low: Any
    high: Any

    @property
    def bound(self) -> Any:
        """Largest possible error of `value`."""
        return np.maximum(self.high - self.value, self.value - self.low)

    def mean(self, keep: npt.NDArray[np.bool_] | slice = slice(None)) -> Certified:
        """Average over the kept entries; NaN if there is none."""
        if self.value[keep].size == 0:
            return Certified(np.nan, np.nan, np.nan)
        return Certified(*(float(part[keep].mean()) for part in self))


def defect_ranks(evidence: Evidence) -> tuple[Floats, Floats]:
    """Return, per defect pixel, the shares of normal pixels (above its key, at or above its key)."""
    ranking, total = evidence.ranking, evidence.normal_pixels
    return ranking.per_pixel(ranking.above / total), ranking.per_pixel(ranking.at_least / total)


def partial_area(above: Floats, at_least: Floats, limit: float) -> Floats:
    """Return g(a, b; L) per pixel: the mean of ``max(L - x, 0)`` for x from `above` to `at_least`."""
    tied = at_least - above
    inside = limit - (above + at_least) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = (limit - above) ** 2 / (2 * tied)
    return np.where(at_least <= limit, inside, np.where(above < limit, crossing, 0.0))


def pixel_areas(evidence: Evidence, limit: float, ranks: tuple[Floats, Floats] | None = None) -> Certified:
    """Return each defect pixel's share of the normalised area up to FPR `limit`, in [0, 1].

    `ranks` are those of :func:`defect_ranks`, where they are known.
    """
    above, at_least = ranks or defect_ranks(evidence)
    value = partial_area(above, at_least, limit) / limit
    if evidence.lossless:
        return Certified(value, value, value)
    return Certified(value, np.maximum(limit - at_least, 0) / limit, np.maximum(limit - above, 0) / limit)


def component_areas(evidence: Evidence, limits: Sequence[float]) -> dict[float, Certified]:
    """Return each component's own AUPRO, (K,), per FPR limit: AUPRO of any subset is the mean over it."""
    areas = evidence.components["area"].to_numpy(dtype=np.float64)
    result, ranks = {}, defect_ranks(evidence)
    for limit in limits:
        pixels = pixel_areas(evidence, limit, ranks)
        sums = (np.add.reduceat(part, evidence.component_starts) for part in pixels)
        result[limit] = Certified(*(part / areas for part in sums))
    return result


def pixel_average_precision(evidence: Evidence) -> Certified:
    """Return the average precision over all pixels: the step-wise sum of precision over recall."""
    ranking, number = evidence.ranking, evidence.defect_scores.size
    hits = number - ranking.starts  # defect pixels at or above each distinct score
    pixels = np.diff(ranking.starts, append=number)
    if evidence.lossless:
        value = float(pixels @ (hits / (hits + ranking.at_least))) / number
        return Certified(value, value, value)
    fewest = np.arange(number, 0, -1)  # equal scores may have differed before they became float32
    low = float(np.mean(fewest / (fewest + np.repeat(ranking.at_least, pixels))))
    high = float(pixels @ (hits / (hits + ranking.above))) / number
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
    called = np.bincount(inverse, minlength=thresholds.size)[::-1]
    return float(np.sum(hits / total * np.cumsum(hits) / np.cumsum(called)))


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
    kept = size_subsets(areas, protocol.size_bins)[subset]
    weights = np.repeat(np.where(kept, 1 / areas, 0.0) / max(1, kept.sum()), areas)
    return _curve(evidence, weights, points)


def _curve(evidence: Evidence, weights: Floats, points: int) -> tuple[Floats, Floats]:
    normal = evidence.normal.distinct
    keys = score_keys(evidence.defect_scores, evidence.shift)
    thresholds = np.unique(np.concatenate([normal.keys, keys]))[::-1]
    order = np.argsort(keys)
    gained = np.concatenate([[0.0], np.cumsum(weights[order[::-1]])])
    reached = keys.size - np.searchsorted(keys[order], thresholds, side="left")
    fpr = np.concatenate([[0.0], normal.at_least(thresholds) / normal.total])
    value = np.concatenate([[0.0], gained[reached]])
    if fpr.size > points:
        wanted = np.concatenate([np.geomspace(1 / normal.total, 1, points // 2), np.linspace(0, 1, points // 2)])
        chosen = np.unique(np.concatenate([[0, fpr.size - 1], np.searchsorted(fpr, np.sort(wanted))]))
        fpr, value = fpr[chosen.clip(max=fpr.size - 1)], value[chosen.clip(max=fpr.size - 1)]
    return fpr, value
