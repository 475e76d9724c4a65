"""Scores under order-preserving integer keys, histograms of them, and what a map must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.protocol import ImageScoreRule

__all__ = [
    "KEY_SHIFT",
    "Counts",
    "Keys",
    "NormalScores",
    "Scores",
    "check_map",
    "image_score",
    "key_scores",
    "score_keys",
]

Keys = npt.NDArray[np.unsignedinteger[Any]]
Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.floating[Any]]

KEY_SHIFT = 10  # float32 bits dropped in one-pass evidence: 22 remain, a relative width of 2**-13 per bin


def score_keys(scores: Scores, shift: int = 0) -> Keys:
    """Return unsigned integers in the order of the scores; equal scores (and -0, +0) have equal keys.

    Parameters
    ----------
    scores : ndarray of float32 or float64
        Finite values.
    shift : int
        Low bits to drop: scores that share the rest fall into one bin.
    """
    size = scores.dtype.itemsize
    signed, unsigned = np.dtype(f"i{size}"), np.dtype(f"u{size}")
    bits = (scores + scores.dtype.type(0)).view(signed)  # -0 + 0 = +0
    flip = bits >> signed.type(8 * size - 1)  # all ones below zero: every bit turns; else none but the sign
    flip |= np.iinfo(signed).min
    flip ^= bits
    keys: Keys = flip.view(unsigned)
    return np.right_shift(keys, unsigned.type(shift), out=keys) if shift else keys


def key_scores(keys: Keys, shift: int = 0) -> Scores:
    """Return the lowest score of each key's bin: the inverse of :func:`score_keys`."""
    unsigned = keys.dtype
    full = keys << unsigned.type(shift) if shift else keys
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    return np.where(full & sign, full ^ sign, ~full).view(f"f{unsigned.itemsize}")


def image_score(anomaly_map: Scores, rule: ImageScoreRule) -> float:
    """Reduce an (H, W) map to one score: its maximum, mean, or the mean of its highest share of pixels."""
    if rule.share is None:
        return float(anomaly_map.max())
    if rule.share == 1:
        return float(anomaly_map.mean(dtype=np.float64))
    kept = max(1, int(anomaly_map.size * rule.share))
    top = np.partition(anomaly_map.ravel(), anomaly_map.size - kept)[-kept:]
    return float(np.sort(top).mean(dtype=np.float64))  # sorted: the sum must not depend on the partition's order


def check_map(anomaly_map: npt.ArrayLike, size: tuple[int, int] | None, name: str) -> Scores:
    """Return the map as a float32 or float64 array, or raise an error that names it.

    Raises
    ------
    HrbenchError
        If it is not two-dimensional, not of `size` (H, W), not numeric, or holds NaN or infinity.
    """
    array = np.asarray(anomaly_map)
    if array.ndim != 2 or 0 in array.shape or (size is not None and array.shape != size):
        expected = "(H, W)" if size is None else f"{size}, that of the image"
        raise HrbenchError(f"{name}: the anomaly map has shape {array.shape}, expected {expected}")
    if array.dtype.kind not in "fiub":
        raise HrbenchError(f"{name}: the anomaly map is of type {array.dtype}, expected real numbers")
    wide = array.dtype.kind in "iu" and array.dtype.itemsize > 2
    array = array.astype(np.float64 if array.dtype == np.float64 or wide else np.float32, copy=False)
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):  # both spread NaN
        bad = int(array.size - np.isfinite(array).sum())
        raise HrbenchError(f"{name}: the anomaly map has {bad} NaN or infinite pixels, expected finite scores")
    return array


@dataclasses.dataclass(frozen=True)
class NormalScores:
    """A histogram of normal pixels' scores under order-preserving keys.

    Attributes
    ----------
    keys : ndarray of unsigned, (K,)
        Rising, unique.
    counts : ndarray of int64, (K,)
    shift : int
        Bits that the keys dropped.
    """

    keys: Keys
    counts: Counts
    shift: int

    @cached_property
    def total(self) -> int:
        """Number of normal pixels."""
        return int(self.counts.sum())

    @cached_property
    def _cumulative(self) -> Counts:
        return np.concatenate([[0], np.cumsum(self.counts)])

    def at_least(self, keys: Keys) -> Counts:
        """Count the normal pixels with a key at or above each of `keys`."""
        return self.total - self._cumulative[np.searchsorted(self.keys, keys, side="left")]

    def above(self, keys: Keys) -> Counts:
        """Count the normal pixels with a key above each of `keys`."""
        return self.total - self._cumulative[np.searchsorted(self.keys, keys, side="right")]

    @staticmethod
    def of(scores: Scores, shift: int) -> NormalScores:
        """Count scores of any shape."""
        return NormalScores(*_count(score_keys(scores.ravel(), shift)), shift)

    @staticmethod
    def sum(parts: Sequence[NormalScores]) -> NormalScores:
        """Add histograms of one shift."""
        shift = parts[0].shift
        keys = np.concatenate([part.keys for part in parts])
        counts = np.concatenate([part.counts for part in parts])
        if shift:  # few distinct keys: add under a dense index (float64 sums of integers below 2**53 are exact)
            low = keys.min(initial=np.iinfo(keys.dtype).max)
            dense = np.bincount((keys - low).astype(np.int64), weights=counts) if keys.size else np.zeros(0)
            used = np.flatnonzero(dense)
            return NormalScores(used.astype(keys.dtype) + low, dense[used].astype(np.int64), shift)
        return NormalScores(*_count(np.repeat(keys, counts)), shift)


def _count(keys: Keys) -> tuple[Keys, Counts]:
    unique, counts = np.unique(keys, return_counts=True)
    return unique, counts.astype(np.int64)
