"""Anomaly maps in float16, which keeps ten bits of a score: the scale on which few become equal, and how many do.

Float16 tells numbers apart by their distance from zero: 1,024 of them between a power of two and the next. So zero is
put amid the normal scores, where most pixels lie, and every octave of distance from there keeps its 1,024 scores,
however heavy the tail: from a thousandth of the normal scores' spread to 30 million times it. Past that the scale bends
instead of ending.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from hrbench.evidence import Calibration
from hrbench.evidence.histograms import Counts, key_scores

__all__ = ["HalfScale", "Merged"]

Half = npt.NDArray[np.float16]

_SPREAD = -10  # the power of two that half of the normal pixels reach: float16 has numbers from -24 to 15
_BEND, _LARGEST = np.float32(32768), np.float32(65504)  # the latter is float16's largest number
_CODES = 1 << 16
_MOST_DEFECTIVE = 0.1  # of all pixels: nobody knows how many defects private images show


@dataclasses.dataclass(frozen=True)
class HalfScale:
    """A rising map from scores to float16: ``(score - centre) * 2 ** exponent``, bent where float16 would end.

    It is decided by held-out normal images alone, before any other image is seen.

    Attributes
    ----------
    centre : float
        A float32.
    exponent : int
    """

    centre: float
    exponent: int

    @staticmethod
    def of(calibration: Calibration) -> HalfScale:
        """Return the scale on which the median of held-out normal pixels is 0, and their median distance small."""
        normal = calibration.scores
        scores = key_scores(normal.keys, normal.shift).astype(np.float64)
        centre = _median(scores, normal.counts)
        distances, pixels = np.abs(scores - centre), normal.counts
        apart = distances > 0
        spread = _median(distances[apart], pixels[apart]) if apart.any() else abs(centre)
        return HalfScale(centre, _SPREAD + 1 - math.frexp(spread)[1] if spread else 0)

    def __call__(self, scores: npt.NDArray[np.float32]) -> Half:
        """Return finite scores of any shape on the scale: none of two is higher than the other that was lower."""
        with np.errstate(over="ignore"):  # what leaves float32 is bent back, too
            distance = np.ldexp(scores - np.float32(self.centre), self.exponent)
        far = np.abs(distance)
        if far.max() > _BEND:  # a hyperbola of slope 1 here, that nears the largest number
            room = _LARGEST - _BEND
            bent = _LARGEST - room * (room / (far + (room - _BEND)))
            distance = np.where(far > _BEND, np.copysign(np.maximum(bent, _BEND), distance), distance)
        half: Half = distance.astype(np.float16)
        return half


def _median(values: npt.NDArray[np.float64], pixels: Counts) -> float:
    order = np.argsort(values, kind="stable")
    below = np.cumsum(pixels[order])
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])


class Merged:
    """Counts what float16 has made equal, image by image, in memory that does not grow.

    Attributes
    ----------
    images, pixels : int
    before, after : int
        Distinct scores of each image in float32 and in float16, summed over the images.
    """

    def __init__(self) -> None:
        self.images = self.pixels = self.before = self.after = 0
        self._counts = np.zeros(_CODES, np.int64)
        self._lowest = np.full(_CODES, np.inf, np.float32)
        self._highest = np.full(_CODES, -np.inf, np.float32)

    def add(self, scores: npt.NDArray[np.float32], half: Half) -> None:
        """Count an image's scores, and the same in float16."""
        order = np.sort(scores, axis=None)
        rising = np.sort(half, axis=None)  # the scale rises: these are the same pixels in the same order
        starts = np.flatnonzero(np.concatenate([[True], rising[1:] != rising[:-1]]))
        ends = np.append(starts[1:], rising.size)
        codes = (rising[starts] + np.float16(0)).view(np.uint16)  # -0 is 0
        self._counts[codes] += ends - starts
        self._lowest[codes] = np.minimum(self._lowest[codes], order[starts])
        self._highest[codes] = np.maximum(self._highest[codes], order[ends - 1])
        self.images += 1
        self.pixels += order.size
        self.before += 1 + int(np.count_nonzero(order[1:] != order[:-1]))
        self.after += starts.size

    @property
    def tied(self) -> int:
        """Pixels of all images whose float16 score other scores have become as well."""
        return int(self._counts[self._merged].sum())

    def moves(self, limit: float) -> float:
        """Return what AU-PRO up to a false-positive rate may move by, if at most a tenth of the pixels are defects.

        Where scores of a share f of the normal pixels and a share p of the defects' pixels become one, the curve is a
        straight line there instead of any rising one: its area moves by f p / 2 at most. All p are 1 together.
        """
        above = np.cumsum(self._by_score(self._counts)[::-1])[::-1] - self._by_score(self._counts)
        reached = above < (_MOST_DEFECTIVE + limit) * self.pixels
        merged = self._by_score(np.where(self._merged, self._counts, 0))[reached]
        return float(merged.max(initial=0)) / (1 - _MOST_DEFECTIVE) / max(self.pixels, 1) / (2 * limit)

    @property
    def _merged(self) -> npt.NDArray[np.bool_]:
        merged: npt.NDArray[np.bool_] = self._lowest < self._highest
        return merged

    @staticmethod
    def _by_score(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return what stands under the bits of float16 numbers in the order of these."""
        negative = values[_CODES // 2 :][::-1]
        return np.concatenate([negative, values[: _CODES // 2]])
