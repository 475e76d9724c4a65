"""False alarms counted in images: the two scores that carry every operating point, and thresholds at a budget.

The *alarm score* of an image is its k-th largest pixel score, the *critical score* of a component that of which a given
share of its pixels is at least as high. An image alarms, and a component is hit, at every threshold up to its score. So
recall, detection limits and image-level detection at all thresholds are functions of one number for each image and each
component.

Words, in code and in reports: a *budget* is the share of the good images that may alarm (in records it stands in the
column `fpr_limit`); the *limit* is the score above which images alarm and components are hit; the *threshold* is the
next edge above it, at or above which a pixel is predicted defective. A good image that alarms is a *false alarm*, a
defective one is *called*, and called *right* if one of its components is hit.

Scores are rounded down to the edges of the evidence's bins (a relative step of 2**-13; none in exact evidence), and
thresholds are such edges. Nothing is approximated then: counts of alarms and hits are those of the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, betabinom

from hrbench.evidence import Calibration, Evidence
from hrbench.evidence.histograms import Counts, Keys, NormalScores, key_scores, score_keys

__all__ = [
    "FalseAlarms",
    "Matched",
    "alarm_scores",
    "allowed",
    "conformal_rank",
    "conformal_threshold",
    "critical_scores",
    "drifted",
    "held_out_alarms",
    "images_needed",
    "matched_limits",
    "matched_point",
]

Floats = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996


@dataclass(frozen=True)
class FalseAlarms:
    """How many good images alarm at a threshold, and what that says of images that were not seen.

    Attributes
    ----------
    count, good : int
        Good images that alarm, and all good images.
    """

    count: int
    good: int

    @property
    def rate(self) -> float:
        """Share of the good images; NaN without any."""
        return self.count / self.good if self.good else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided interval of the true rate by Clopper and Pearson (Biometrika 26, 1934).

        Examples
        --------
        >>> low, high = FalseAlarms(3, 60).interval()
        >>> round(low, 4), round(high, 4)
        (0.0104, 0.1392)
        """
        if not self.good:
            return math.nan, math.nan
        tail = (1 - level) / 2
        low = float(beta.ppf(tail, self.count, self.good - self.count + 1)) if self.count else 0.0
        return low, self.upper(1 - tail)

    def upper(self, level: float = 0.95) -> float:
        """Return the one-sided upper limit of the true rate: ``1 - (1 - level)^(1 / n)`` without an alarm among n."""
        if not self.good:
            return math.nan
        all_alarm = self.count == self.good
        return 1.0 if all_alarm else float(beta.ppf(level, self.count + 1, self.good - self.count))


def alarm_scores(evidence: Evidence, pixels: int = 1) -> Floats:
    """Return each image's alarm score, (n,): its `pixels`-th largest one; the smallest one if it has fewer pixels."""
    ranks, ends = evidence.ranks, np.cumsum(evidence.images["defect_pixels"].to_numpy())
    defects = (ranks.keys[_largest(place, pixels)] for place in np.split(ranks.place, ends[:-1]))
    top = [_kth_largest(normal, defect, pixels) for normal, defect in zip(evidence.pixels, defects, strict=True)]
    return key_scores(np.array(top, dtype=ranks.keys.dtype), evidence.shift).astype(np.float64)


def held_out_alarms(calibration: Calibration, pixels: int = 1) -> Floats:
    """Return the alarm score of each held-out image, (n',)."""
    parts = calibration.normals
    nothing = parts[0].keys[:0]
    top = np.array([_kth_largest(part, nothing, pixels) for part in parts], dtype=nothing.dtype)
    return key_scores(top, parts[0].shift).astype(np.float64)


def _kth_largest(normal: NormalScores, defect: Keys, k: int) -> np.unsignedinteger[Any]:
    """Return the k-th largest key of an image's normal and defect pixels, or the smallest one if there are fewer."""
    highest = normal.ranked(normal.total - 1 - np.arange(min(k, normal.total)))
    joined = np.sort(np.concatenate([highest, defect]))
    result: np.unsignedinteger[Any] = joined[-min(k, joined.size)]
    return result


def _largest(values: Counts, k: int) -> Counts:
    """Return the k largest values, or all if there are fewer."""
    if values.size <= k:
        return values
    top: Counts = values.max(keepdims=True) if k == 1 else np.partition(values, -k)[-k:]
    return top


def critical_scores(evidence: Evidence, share: float) -> Floats:
    """Return each component's critical score, (K,): its ``ceil(share * area)``-th largest one."""
    areas = evidence.components["area"].to_numpy()
    number = np.maximum(1, np.ceil(share * areas * (1 - 1e-12))).astype(np.int64)  # a share of 1/3 of 3 pixels is one
    ranks, critical = evidence.ranks, np.empty(areas.size, np.int64)
    for component, (start, area, k) in enumerate(zip(evidence.component_starts, areas, number, strict=True)):
        critical[component] = _largest(ranks.place[start : start + area], k).min()
    return key_scores(ranks.keys[critical], evidence.shift).astype(np.float64)


def allowed(good: int, budget: float) -> int:
    """Return how many of the good images may alarm at a budget: the one place that turns shares into numbers.

    Examples
    --------
    >>> allowed(100, 0.29), allowed(12, 0.05)
    (29, 0)
    """
    return int(_allowed(np.array(good), np.array(budget)))


def _allowed(good: npt.NDArray[Any], budgets: Floats) -> Floats:
    whole: Floats = np.floor(good * budgets + _ROUNDING)
    return whole


def matched_limits(alarms: Floats, budgets: Sequence[float], weights: Floats | None = None) -> Floats:
    """Return the alarm score just above which at most the budgeted share of good images alarms.

    Parameters
    ----------
    alarms : ndarray, (g,)
        Alarm scores of the good images.
    budgets : sequence of float, (L,)
        Shares of the good images that may alarm.
    weights : ndarray, (B, g), optional
        How often each replicate draws each image; once by default (B = 1).

    Returns
    -------
    ndarray, (B, L)
        An image alarms, and a component is hit, if its score is above the limit; -infinite where all may alarm, and
        infinite without good images, of which a replicate may draw none.

    Examples
    --------
    >>> matched_limits(np.array([5.0, 1, 3, 2, 4, 9, 7, 8, 6, 10]), [0.05, 0.1, 0.2])
    array([[10.,  9.,  8.]])
    """
    drawn = np.ones((1, alarms.size)) if weights is None else weights
    if not (alarms.size and len(budgets)):
        return np.full((len(drawn), len(budgets)), np.inf)
    order = np.argsort(-alarms, kind="stable")
    falling = np.append(alarms[order], -np.inf)
    alarming = np.cumsum(drawn[:, order], axis=1)  # images drawn down to each score
    most = _allowed(alarming[:, -1:], np.asarray(budgets))
    places = np.stack([(alarming <= most[:, [i]]).sum(axis=1) for i in range(len(budgets))], axis=1)
    limits: Floats = np.where(alarming[:, -1:] > 0, falling[places], np.inf)
    return limits


@dataclass(frozen=True)
class Matched:
    """The operating point at which at most a budgeted share of the good test images alarms.

    No defective image is looked at. It compares methods at equal false alarms; what a deployment would get is said by
    the threshold that is set on training images.

    Attributes
    ----------
    budget : float
    limit : float
        An image alarms if its alarm score is above it.
    threshold : float
        The next edge of the evidence's bins: a pixel is predicted defective at or above it.
    alarms : FalseAlarms
        Fewer than allowed where alarm scores are tied.
    """

    budget: float
    limit: float
    threshold: float
    alarms: FalseAlarms

    @property
    def unresolved(self) -> bool:
        """Whether there are too few good images for a single alarm, so that none may."""
        return allowed(self.alarms.good, self.budget) == 0


def matched_point(evidence: Evidence, alarms: Floats, budget: float) -> Matched | None:
    """Return the operating point of a budget in [0, 1); None without good images."""
    good = alarms[evidence.images["label"].to_numpy() == 0]
    if not good.size:
        return None
    limit = float(matched_limits(good, [budget])[0, 0])
    threshold = _next_edge(limit, evidence.defect_scores.dtype, evidence.shift)
    return Matched(budget, limit, threshold, FalseAlarms(int((good > limit).sum()), good.size))


def _next_edge(score: float, dtype: npt.DTypeLike, shift: int) -> float:
    key = score_keys(np.array([score], dtype=dtype), shift)
    return float(key_scores(key + key.dtype.type(1), shift)[0])


def images_needed(budget: float) -> int:
    """Return how many held-out images a promise takes: ``n' >= 1 / budget - 1``."""
    return math.ceil(1 / budget - 1 - _ROUNDING)


def conformal_rank(images: int, budget: float) -> int | None:
    """Return which of the rising alarm scores of held-out images the conformal threshold lies just above.

    Split conformal prediction: the ``ceil((n' + 1) (1 - budget))``-th. If good images are exchangeable, an unseen one
    is above it with a probability of at most `budget`, whatever the method (Vovk, Gammerman and Shafer 2005;
    Angelopoulos and Bates, arXiv 2107.07511). None if there are too few, see :func:`images_needed`.

    Examples
    --------
    >>> [conformal_rank(n, 0.05) for n in (18, 19, 39, 99)]
    [None, 19, 38, 95]
    """
    rank = math.ceil((images + 1) * (1 - budget) - _ROUNDING)
    return rank if rank <= images else None


def drifted(alarms: FalseAlarms, images: int, budget: float, level: float = 0.95) -> bool:
    """Tell whether the good test images contradict a promise that `images` held-out ones made.

    They do if the interval of their rate lies above `budget`, and if so many alarms would be rarer than half of
    ``1 - level`` among images like those held out: the threshold is from a sample, too. With r the threshold's rank
    among n' scores, an image of the same kind alarms with a probability of distribution beta(n' - r + 1, r).
    """
    rank = conformal_rank(images, budget)
    if rank is None or not alarms.count:
        return False
    chance = betabinom.sf(alarms.count - 1, alarms.good, images - rank + 1, rank)
    return bool(alarms.interval(level)[0] > budget and chance <= (1 - level) / 2)


def conformal_threshold(calibration: Calibration, budget: float, pixels: int = 1) -> float | None:
    """Return the lowest threshold at which an unseen good image alarms with a probability of at most `budget`.

    None where there are too few held-out images, or an earlier version did not keep them apart.
    """
    rank = None if calibration.pooled else conformal_rank(calibration.images, budget)
    if rank is None:
        return None
    score = np.sort(held_out_alarms(calibration, pixels))[rank - 1]
    return _next_edge(score, np.float32, calibration.normals[0].shift)
