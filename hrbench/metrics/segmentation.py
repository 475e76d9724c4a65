"""Overlap of thresholded maps with the masks: IoU, F1, false-positive rate; thresholds without test labels."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, Evidence
from hrbench.evidence.histograms import KEY_SHIFT, Keys, SortedKeys, key_scores, score_keys
from hrbench.metrics.alarms import conformal_threshold
from hrbench.metrics.curves import UNDEFINED, Certified
from hrbench.protocol import ThresholdRule

__all__ = [
    "AUTOMATIC",
    "DECISION",
    "MATCHED",
    "ORACLE",
    "OperatingPoint",
    "Overlap",
    "automatic_threshold",
    "component_hits",
    "f1_of",
    "oracle_iou",
    "oracle_mean_iou",
    "overlap_at",
    "overlap_of_decisions",
    "predicted_pixels",
    "require_normal_pixels",
]

Floats = npt.NDArray[np.float64]


def automatic_threshold(evidence: Evidence, rule: ThresholdRule, pixels: int = 1) -> float | None:
    """Return the operating threshold of evidence, see :func:`calibrated_threshold`; None without held-out images."""
    return None if evidence.calibration is None else calibrated_threshold(evidence.calibration, rule, pixels)


def calibrated_threshold(calibration: Calibration, rule: ThresholdRule, pixels: int = 1) -> float | None:
    """Return the operating threshold that `rule` sets on held-out normal images; None without enough of them.

    `pixels` are those that make an image alarm, for the conformal rule; the others need a single image.

    A pixel is predicted defective if its score is at least the threshold, which is rounded up to the next edge of
    the evidence's bins (a relative step of 2**-13), so that false positives are counted and not estimated.
    """
    if rule.rule == "conformal":
        return conformal_threshold(calibration, rule.alarms, pixels)
    normal = calibration.scores
    if rule.rule == "mean+k*sigma":
        wanted = np.float32(calibration.mean + rule.k * calibration.std)
        key = score_keys(np.array([wanted]), KEY_SHIFT)[0]
        if key_scores(np.array([key]), KEY_SHIFT)[0] < wanted:
            key += np.uint32(1)
    else:
        allowed = int(rule.fpr * normal.total)
        key = normal.ranked(normal.total - 1 - allowed) + np.uint32(1)  # at most `allowed` pixels are above
    return float(key_scores(np.array([key], dtype=np.uint32), KEY_SHIFT)[0])


class OperatingPoint(NamedTuple):
    """What decides which pixels are predicted defective: the suffix of metrics at it, and where it is, in words."""

    suffix: str
    where: str


AUTOMATIC = OperatingPoint("", "at the threshold set on normal images")
MATCHED = OperatingPoint("_matched", "at equal false alarms: the threshold is matched on the good test images")
DECISION = OperatingPoint("_decision", "at the method's own decision")
ORACLE = OperatingPoint("_oracle", "at the best threshold in hindsight: an upper limit, not a result")


class Overlap(NamedTuple):
    """Per image: pixels of either kind, predicted defect pixels, and predicted normal pixels (an interval)."""

    normal: Floats
    defect: Floats
    hits: Floats
    false_low: Floats
    false_high: Floats

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Whether it is known of each image which of its pixels are normal, (n,)."""
        return self.normal + self.defect > 0

    def iou(self) -> Certified:
        """Intersection over union, pooled over all images."""
        defect, hits = self.defect.sum(), self.hits.sum()
        return _interval(_share(hits, defect + self.false_high.sum()), _share(hits, defect + self.false_low.sum()))

    def image_ious(self, false: Floats) -> Floats:
        """Return each image's intersection over union with `false` predicted normal pixels; 1 where both are empty."""
        union = self.defect + false
        return np.divide(self.hits, union, out=np.ones_like(union), where=union > 0)

    def mean_iou(self, members: npt.NDArray[np.bool_] | None = None, *, good: bool = False) -> Certified:
        """Mean over images of each one's intersection over union: over the defective ones, or all with `good`.

        Of the defective ones, only `members` (n,) count where they are given; there must be one.

        A good image counts 1 if nothing is predicted in it and 0 otherwise, as in the tables of U-Flow (arXiv
        2211.12353) and papers that follow it: there, silence on good images is worth as much as a perfect mask.
        """
        counted = self.known if good else self.defect > 0
        if members is not None:
            counted &= members
        low, high = (float(self.image_ious(false)[counted].mean()) for false in (self.false_high, self.false_low))
        return _interval(low, high)

    def f1(self) -> Certified:
        """F1 of the pooled pixels, ``2 IoU / (1 + IoU)``."""
        return f1_of(self.iou())

    def fpr(self) -> Certified:
        """Share of all normal pixels that are predicted defective."""
        if not self.known.any():
            return UNDEFINED
        return _interval(self.false_low.sum() / self.normal.sum(), self.false_high.sum() / self.normal.sum())


def overlap_at(evidence: Evidence, threshold: float) -> Overlap:
    """Count pixels with a score at or above `threshold`, both in the evidence's precision (float32, in one pass).

    Exact if the threshold is an edge of the evidence's bins, or the evidence is lossless.
    """
    if not np.isfinite(threshold):
        raise HrbenchError(f"threshold is {threshold}, expected a finite number")
    lowest = evidence.defect_scores.dtype.type(threshold)
    key = score_keys(np.array([lowest]), evidence.shift)
    above = key + key.dtype.type(1)
    on_edge = key_scores(key, evidence.shift)[0] == lowest
    sums = _ImageSums(evidence)
    high = sums.normals_from(key if on_edge or not evidence.lossless else above)[:, 0]
    low = high if on_edge else sums.normals_from(above)[:, 0]
    predicted = predicted_pixels(evidence, threshold)
    hits = np.bincount(evidence.component_images, weights=predicted, minlength=len(evidence.images)).astype(np.float64)
    return Overlap(sums.normal, sums.defect, hits, low, high)


def predicted_pixels(evidence: Evidence, threshold: float) -> npt.NDArray[np.int64]:
    """Return how many pixels of each component are at or above `threshold`, (K,)."""
    if not evidence.defect_scores.size:
        return np.zeros(0, np.int64)
    predicted = evidence.defect_scores >= evidence.defect_scores.dtype.type(threshold)
    return np.add.reduceat(predicted, evidence.component_starts, dtype=np.int32).astype(np.int64)


def component_hits(evidence: Evidence, threshold: float | None, share: float) -> npt.NDArray[np.bool_]:
    """Return whether at least `share` of each component's pixels, and at least one, is predicted defective, (K,).

    That is what is at or above `threshold` or, where that is None, in the method's own decision.
    """
    components = evidence.components
    if threshold is None:
        predicted = components["decision_pixels"].to_numpy(dtype=np.int64)
    else:
        predicted = predicted_pixels(evidence, threshold)
    areas = components["area"].to_numpy()
    hits: npt.NDArray[np.bool_] = (predicted >= share * areas * (1 - 1e-12)) & (predicted > 0)
    return hits


def overlap_of_decisions(evidence: Evidence) -> Overlap | None:
    """Return the overlap of the method's own decisions; None unless every image has one."""
    images = evidence.images
    if images["decision_tp"].isna().any():
        return None
    false = np.where(evidence.known, images["decision_fp"].to_numpy(dtype=np.float64), 0.0)
    hits = images["decision_tp"].to_numpy(dtype=np.float64)
    normal, defect = (images[name].to_numpy(dtype=np.float64) for name in ("normal_pixels", "defect_pixels"))
    return Overlap(normal, defect, hits, false, false)


def oracle_iou(evidence: Evidence) -> Certified:
    """Return the highest pooled IoU over all thresholds. It looks at test labels."""
    ranks, defect = evidence.ranks, evidence.defect_scores.size
    hits = np.cumsum(ranks.pixels[::-1])[::-1]
    low = float(np.max(hits / (defect + ranks.at_least)))
    high = low if evidence.lossless else float(np.max(hits / (defect + ranks.above)))
    return Certified(low, low, high)


def oracle_mean_iou(evidence: Evidence, tolerance: float = 1e-5, start: int = 128) -> Certified:
    """Return the highest mean IoU of defective images over all common thresholds. It looks at test labels.

    Branch and bound over the keys of defect pixels, one of which is best: from one key up to, not including,
    another the hits are at most those at the first and the false positives at least those at the second.
    Intervals whose bound exceeds the best value by more than `tolerance` (0 for lossless evidence) are split, down to
    single bins.
    """
    sums = _ImageSums(evidence)
    if evidence.lossless:
        tolerance = 0.0
    defective = sums.defect > 0
    defect = sums.defect[defective]
    keys = evidence.ranks.keys
    counts: dict[int, tuple[Floats, Floats]] = {keys.size: (np.zeros(defect.size), np.zeros(defect.size))}

    def count(indices: list[int]) -> float:
        hits, false = sums.defects_from(keys[indices])[defective], sums.normals_from(keys[indices])[defective]
        counts.update({index: (hits[:, n], false[:, n]) for n, index in enumerate(indices)})
        return float((hits / (defect[:, None] + false)).mean(axis=0).max(initial=0.0))

    edges = sorted({int(x) for x in np.linspace(0, keys.size - 1, min(start, keys.size))})
    best = bound = count(edges)
    intervals = list(zip(edges, [*edges[1:], keys.size], strict=True))
    while intervals:
        split = []
        for low, high in intervals:
            upper = float((counts[low][0] / (defect + counts[high][1])).mean())
            if upper > best + tolerance and high - low > 1:
                split.append((low, high))
                continue
            if upper > best and high - low == 1:  # a single bin: only its own ties are unknown
                above = keys[[low]] + keys.dtype.type(0 if evidence.lossless else 1)
                upper = float((counts[low][0] / (defect + sums.normals_from(above)[defective, 0])).mean())
            bound = max(bound, upper)
        middles = [(low + high) // 2 for low, high in split]
        best = max(best, count(middles)) if middles else best
        intervals = [
            part for (low, high), middle in zip(split, middles, strict=True) for part in ((low, middle), (middle, high))
        ]
    return Certified(best, best, max(best, bound))


class _ImageSums:
    """Per-image counts of pixels at or above given keys."""

    def __init__(self, evidence: Evidence) -> None:
        self.normal = evidence.images["normal_pixels"].to_numpy(dtype=np.float64)
        self.defect = evidence.images["defect_pixels"].to_numpy(dtype=np.float64)
        self._normals = evidence.normals
        self._scores, self._shift = evidence.defect_scores, evidence.shift

    @cached_property
    def _defects(self) -> list[SortedKeys]:
        ends = np.cumsum(self.defect, dtype=np.int64)
        parts = np.split(score_keys(self._scores, self._shift), ends[:-1])
        for part in parts:
            part.sort()
        return [SortedKeys(part, self._shift) for part in parts]

    def defects_from(self, keys: Keys) -> Floats:
        """Return (images, keys): defect pixels with a key at or above each."""
        return np.stack([part.at_least(keys) for part in self._defects]).astype(np.float64)

    def normals_from(self, keys: Keys) -> Floats:
        """Return (images, keys): normal pixels with a key at or above each."""
        return np.stack([part.at_least(keys) for part in self._normals]).astype(np.float64)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _interval(low: float, high: float) -> Certified:
    return Certified((low + high) / 2, low, high)


def f1_of(iou: Certified) -> Certified:
    """Return the F1 of the pooled pixels, ``2 IoU / (1 + IoU)``."""
    return Certified(*(2 * part / (1 + part) for part in iou))


def require_normal_pixels(evidence: Evidence) -> None:
    """Raise an error if there are defects and nothing else."""
    if len(evidence.components) and not evidence.normal_pixels:
        raise HrbenchError("no normal pixel in any image: the masks cover everything, are they inverted?")
