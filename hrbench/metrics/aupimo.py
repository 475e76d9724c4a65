"""AUPIMO (Bertoldo et al., arXiv 2401.01984): how much of a defect is found where good images are all but silent.

Each defective image has a curve of its own. Its y axis is the share of the image's defect pixels at or above a
threshold. The x axis is that of all: the mean over the *good* images of each one's own false-positive rate, so that
pixels around a defect, whose label is open to dispute, play no part. The area is taken over log x between the limits L
and U, and divided by its width. As in :mod:`hrbench.metrics.curves` all distinct scores are thresholds, with straight
lines across ties, and one identity serves: for a defect pixel let ``a`` be x just above its score and ``b`` x at it,

    AUPIMO of an image = mean over its defect pixels of g(a, b),
    g(a, b) = mean of G(x) over x in [a, b],    G(x) = log(U / x) / log(U / L), held between 0 and 1.

G falls, so where scores are binned, g(B, B) and g(A, A) of the bin's [A, B] enclose the true value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Keys, NormalScores
from hrbench.metrics.context import Context
from hrbench.metrics.curves import UNDEFINED, Certified
from hrbench.metrics.weighted import Draw, cut_keys

__all__ = ["FPR_RANGE", "aupimo", "aupimo_images", "aupimo_of", "aupimo_problem", "drawn_aupimo"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Limits = tuple[float, float]

FPR_RANGE = (1e-5, 1e-4)
"""The limits of the false-positive rate that define the metric."""


def aupimo_problem(evidence: Evidence, limits: Limits = FPR_RANGE) -> str:
    """Return why no image has an AUPIMO; "" if there is no reason."""
    pixels = evidence.images["normal_pixels"].to_numpy()[_good(evidence)]
    if not pixels.size:
        return "no good image, whose false-positive rate AUPIMO is about"
    step = 1 / (pixels.size * int(pixels.max()))
    if step <= limits[0] * (1 + 1e-9):
        return ""
    images = f"{pixels.size} good image{'s' * (pixels.size > 1)} of at most {pixels.max():,} pixels"
    return f"{images} cannot resolve a false-positive rate of {limits[0]:g}, only steps of {step:.1g}"


def aupimo_images(evidence: Evidence, limits: Limits = FPR_RANGE) -> Certified:
    """Return AUPIMO per image, (n,): NaN for one without a defect pixel, and for all if there is a problem.

    Parameters
    ----------
    evidence : Evidence
    limits : tuple of float
        False-positive rates between which the area is taken.
    """
    defect = evidence.images["defect_pixels"].to_numpy()
    rows = np.flatnonzero(defect)
    missing = np.full(defect.size, np.nan)
    if not rows.size or aupimo_problem(evidence, limits):
        return Certified.exactly(missing)
    parts = _good_parts(evidence)
    # Few images' high rates prove where the mean passes the upper limit: all pixels below are left alone.
    floor = _floor(parts, limits[1], max(math.ceil(math.sqrt(len(parts))), math.ceil(len(parts) * limits[1])))
    keys, rates = _tail(parts, floor)
    ranks = evidence.ranks
    first = int(np.searchsorted(ranks.keys, floor))
    own = ranks.keys[first:]
    above, at_least = (rates[np.searchsorted(keys, own, side=side)] for side in ("right", "left"))
    last = first + int(np.count_nonzero(at_least > limits[0]))  # from here on every pixel counts in full
    place, sizes = ranks.place, defect[rows]
    starts = np.cumsum(sizes) - sizes
    counted = place >= last
    whole = np.add.reduceat(counted, starts, dtype=np.int64)
    partly = np.flatnonzero((place >= first) ^ counted)
    owner = np.searchsorted(starts, partly, side="right") - 1
    keyed = place[partly].astype(np.intp) - first

    def per_image(gain: Floats) -> Floats:
        result = missing.copy()
        result[rows] = (whole + np.bincount(owner, gain[keyed], rows.size)) / sizes
        return result

    value = per_image(_gain(above, at_least, limits))
    if evidence.lossless:
        return Certified.exactly(value)
    return Certified(value, per_image(_height(at_least, limits)), per_image(_height(above, limits)))


def aupimo(context: Context, subset: str) -> Certified:
    """Return the mean over the images whose largest component is in the subset; NaN without any, or with a problem."""
    members = context.image_subsets[subset] & (context.largest > 0)
    return context.once(aupimo_of).mean(members) if members.any() else UNDEFINED


def drawn_aupimo(draw: Draw) -> dict[str, Floats]:
    """Return the same per subset for each replicate, (B,), whose x axis is that of the good images it draws."""
    context = draw.context
    bins = context.once(_Bins.of)
    if bins is None:
        return dict.fromkeys(context.image_subsets, draw.undefined)
    good, chosen = draw.weights[:, bins.good], draw.weights[:, bins.defective]
    at_least = good @ bins.rates / good.sum(axis=1, keepdims=True)
    above = np.concatenate([np.zeros((len(good), 1)), at_least[:, :-1]], axis=1)
    values = _gain(above, at_least, FPR_RANGE) @ bins.pixels.T
    members = np.stack(list(context.image_subsets.values()), axis=1)[bins.defective].astype(np.float64)
    means = (chosen * values) @ members / (chosen @ members)
    return dict(zip(context.image_subsets, means.T, strict=True))


@dataclass(frozen=True)
class _Bins:
    """Pixels in common bins of scores; bins fall down to where x is at least U in every replicate.

    Attributes
    ----------
    good, defective : ndarray
        Rows of the good images (g,) and of those with defect pixels (d,).
    rates : ndarray, (g, bins)
        Each good image's false-positive rate at each bin's lower edge.
    pixels : ndarray, (d, bins)
        Share of each image's defect pixels in each bin.
    """

    good: Ints
    defective: Ints
    rates: Floats
    pixels: Floats

    @staticmethod
    def of(context: Context) -> _Bins | None:
        evidence = context.evidence
        if aupimo_problem(evidence):
            return None
        good, defective = np.flatnonzero(_good(evidence)), np.flatnonzero(context.largest)
        parts = _good_parts(evidence)
        edges = _edges(*_tail(parts, _floor(parts, FPR_RANGE[1], len(parts))))
        rates = np.stack([part.at_least(edges[::-1]) / part.total for part in parts])
        ranks, sizes = evidence.ranks, evidence.images["defect_pixels"].to_numpy()[defective]
        first = int(np.searchsorted(ranks.keys, edges[0]))
        bins = edges.size - np.searchsorted(edges, ranks.keys[first:], side="right")
        kept = np.flatnonzero(ranks.place >= first)
        owner = np.searchsorted(np.cumsum(sizes), kept, side="right")
        flat = owner * edges.size + bins[ranks.place[kept].astype(np.intp) - first]
        counts = np.bincount(flat, minlength=defective.size * edges.size).reshape(-1, edges.size)
        return _Bins(good, defective, rates, counts / sizes[:, None])


def _good(evidence: Evidence) -> npt.NDArray[np.bool_]:
    good: npt.NDArray[np.bool_] = evidence.images["label"].to_numpy() == 0
    return good


def _good_parts(evidence: Evidence) -> list[NormalScores]:
    return [part for part, good in zip(evidence.normals, _good(evidence), strict=True) if good]


def aupimo_of(context: Context) -> Certified:
    """Return AUPIMO per image, (n,), see :func:`aupimo_images`."""
    return aupimo_images(context.evidence)


def _floor(parts: Sequence[NormalScores], limit: float, number: int) -> np.unsignedinteger[Any]:
    """Return a key at which the mean rate of n parts has reached `limit`: `number` of them have n / number times it.

    Where that number is n, every weighted mean has reached it, too.
    """
    rate = len(parts) * limit / number
    lowest = [part.ranked(part.total - min(part.total, int(rate * part.total) + 2)) for part in parts]
    floor: np.unsignedinteger[Any] = np.sort(lowest)[-number]
    return floor


def _tail(parts: Sequence[NormalScores], floor: np.unsignedinteger[Any]) -> tuple[Keys, Floats]:
    """Return the distinct keys from `floor` on (K,), rising, and the mean rate at each and above the last, (K + 1,)."""
    keys = [np.unique(part.keys[np.searchsorted(part.keys, floor) :]) for part in parts]
    steps = [
        (part.at_least(own) - part.above(own)) / (part.total * len(parts))
        for part, own in zip(parts, keys, strict=True)
    ]
    joined, place = np.unique(np.concatenate(keys), return_inverse=True)
    sums = np.bincount(place, np.concatenate(steps), joined.size)
    return joined, np.concatenate([np.cumsum(sums[::-1])[::-1], [0.0]])


def _edges(keys: Keys, rates: Floats) -> Keys:
    """Return rising lower edges of bins, even on a logarithmic axis of rates around the limits."""
    places = np.arange(keys.size)
    if keys.size > 1000:
        low, high = FPR_RANGE
        wanted = [np.geomspace(low / 10, 10 * high, 400), np.geomspace(10 * high, 1, 40)]
        places = np.unique(np.append(np.searchsorted(-rates[1:], -np.concatenate(wanted)).clip(max=keys.size - 1), 0))
    return cut_keys(keys, places)


def _height(rate: Floats, limits: Limits) -> Floats:
    """Return G(x)."""
    low, high = limits
    result: Floats = np.log(high / np.clip(rate, low, high)) / math.log(high / low)
    return result


def _gain(above: Floats, at_least: Floats, limits: Limits) -> Floats:
    """Return g(a, b), by the antiderivative of G in closed form."""
    low, high = limits
    width = math.log(high / low)
    heights, areas = [], []
    for rate in (above, at_least):
        inside = np.clip(rate, low, high)
        logarithm = np.log(high / inside)
        heights.append(logarithm / width)
        areas.append((inside * logarithm + inside) / width + np.minimum(rate - low, 0))
    tied = at_least - above
    mean = np.divide(areas[1] - areas[0], tied, out=heights[0].copy(), where=tied > 0)
    return np.clip(mean, heights[1], heights[0])  # rounding must not leave the certified interval
