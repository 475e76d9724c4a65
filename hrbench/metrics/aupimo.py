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

_WITHOUT = 4  # images that a replicate may lack before its bins get coarse: 98 % of the replicates have one of them


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
    tail = _Tail.of(parts, floor)
    rates = tail.rates(np.ones(len(parts)))
    ranks = evidence.ranks
    first = int(np.searchsorted(ranks.keys, floor))
    own = ranks.keys[first:]
    above, at_least = (rates[np.searchsorted(tail.keys, own, side=side)] for side in ("right", "left"))
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
        edges = _edges(_Tail.of(parts, _floor(parts, FPR_RANGE[1], len(parts))))
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


@dataclass(frozen=True)
class _Tail:
    """The pixels of n images from some key on.

    Attributes
    ----------
    keys : ndarray, (K,)
        Distinct, rising.
    place, image, share : ndarray
        Place in `keys`, number of the image, and share of the image's pixels, of each distinct key of each image.
    """

    keys: Keys
    place: Ints
    image: Ints
    share: Floats

    @staticmethod
    def of(parts: Sequence[NormalScores], floor: np.unsignedinteger[Any]) -> _Tail:
        own = [np.unique(part.keys[np.searchsorted(part.keys, floor) :]) for part in parts]
        share = [(part.at_least(keys) - part.above(keys)) / part.total for part, keys in zip(parts, own, strict=True)]
        keys, place = np.unique(np.concatenate(own), return_inverse=True)
        image = np.repeat(np.arange(len(parts)), [each.size for each in own])
        return _Tail(keys, place, image, np.concatenate(share))

    def rates(self, weights: Floats) -> Floats:
        """Return the images' weighted mean rate at each key and, at last, above all: (K + 1,), falling."""
        sums = np.bincount(self.place, self.share * weights[self.image], self.keys.size) / weights.sum()
        return np.concatenate([np.cumsum(sums[::-1])[::-1], [0.0]])

    def of_images(self, start: int) -> Floats:
        """Return each image's own rate at the key of number `start`."""
        rates: Floats = np.bincount(self.image, np.where(self.place >= start, self.share, 0.0)).astype(np.float64)
        return rates


def _edges(tail: _Tail) -> Keys:
    """Return rising lower edges of bins, about even on a logarithmic axis of rates around the limits.

    A replicate may lack the few images that decide the rates of all, and have its limits at far lower scores: there
    are bins where the limits lie without the image that is loudest at them, without the two loudest, and so on. A key
    whose normal pixels take a large step is a bin of its own, for defect pixels to be tied with it or not.
    """
    last = tail.keys.size - 1
    if last < 1000:
        return cut_keys(tail.keys, np.arange(last + 1))
    low, high = FPR_RANGE
    levels = np.geomspace(low / 4, high * 4, 200)
    places, steep, weights = np.zeros(1, np.int64), np.zeros(0, np.int64), np.ones(int(tail.image[-1]) + 1)
    for _ in range(min(weights.size, _WITHOUT + 1)):
        above = tail.rates(weights)[1:]
        wanted = np.searchsorted(-above, -levels).clip(max=last)
        steep = np.append(steep, wanted[1:][wanted[1:] == wanted[:-1]])  # a step over two levels
        resolved = np.isin(np.arange(levels.size), np.searchsorted(levels, above[places]))
        places = np.unique(np.append(places, wanted[~resolved]))
        loudest = np.argmax(tail.of_images(int(np.searchsorted(-above, -high))) * weights)
        weights[loudest] = 0
    return np.unique(np.append(cut_keys(tail.keys, places), tail.keys[steep] + tail.keys.dtype.type(1)))


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
