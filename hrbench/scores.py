"""Scores under order-preserving integer keys, histograms of them, and what a map must be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
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
    "pooled_ranks",
    "score_keys",
]

Keys = npt.NDArray[np.unsignedinteger[Any]]
Counts = npt.NDArray[np.integer[Any]]
Scores = npt.NDArray[np.floating[Any]]

_PIECE = 1 << 16  # pixels that stay in the cache between two steps
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
    bits, sign = scores.view(signed), 8 * size - 1
    if bits.size and bits.min() < 0:
        bits = (scores + scores.dtype.type(0)).view(signed)  # -0 + 0 = +0
        flip = bits >> signed.type(sign)  # all ones below zero: every bit turns; else none but the sign
        flip |= np.iinfo(signed).min
        flip ^= bits
        keys: Keys = flip.view(unsigned)
        return np.right_shift(keys, unsigned.type(shift), out=keys) if shift else keys
    keys = bits.view(unsigned) >> unsigned.type(shift)
    keys |= unsigned.type(1 << (sign - shift))
    return keys


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
    """Normal pixels' scores under order-preserving keys: a histogram, or in exact mode every one of them.

    Attributes
    ----------
    keys : ndarray of unsigned, (K,)
        Rising; unique where there are counts.
    counts : ndarray of int, (K,), or None
        Pixels per key; None in exact mode, where each key stands for one pixel.
    shift : int
        Bits that the keys dropped.
    """

    keys: Keys
    counts: Counts | None
    shift: int

    @cached_property
    def total(self) -> int:
        """Number of normal pixels."""
        return self.keys.size if self.counts is None else int(self.counts.sum(dtype=np.int64))

    def at_least(self, keys: Keys) -> Counts:
        """Count the normal pixels with a key at or above each of `keys`."""
        return self.total - self._below(np.searchsorted(self.keys, keys, side="left"))

    def above(self, keys: Keys) -> Counts:
        """Count the normal pixels with a key above each of `keys`."""
        return self.total - self._below(np.searchsorted(self.keys, keys, side="right"))

    def ranked(self, ranks: npt.ArrayLike) -> Keys:
        """Return the keys of the pixels of the given zero-based ranks, counted from the lowest score."""
        if self.counts is None:
            return self.keys[np.asarray(ranks, dtype=np.int64)]
        return self.keys[np.searchsorted(self._cumulative[1:], ranks, side="right")]

    @cached_property
    def distinct(self) -> NormalScores:
        """The same with counts."""
        return self if self.counts is not None else NormalScores(*np.unique_counts(self.keys), self.shift)

    @cached_property
    def _cumulative(self) -> Counts:
        counts = self.distinct.counts
        assert counts is not None
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def _below(self, positions: npt.NDArray[np.int64]) -> Counts:
        return positions if self.counts is None else self._cumulative[positions]

    @staticmethod
    def of(scores: Scores, shift: int, without: Scores | None = None) -> NormalScores:
        """Count scores of any shape in bins of `shift` bits, less those of `without`, which are among them.

        The work is done in pieces that stay in the cache; memory is that of the bins between the extremes.
        """
        flat, size = scores.ravel(), _PIECE
        low, high = (int(score_keys(np.array([end]), shift)[0]) for end in (flat.min(), flat.max()))
        bins = np.zeros(high - low + 1, dtype=np.int64)
        base = score_keys(flat[:1], shift).dtype.type(low)

        def index(part: Scores) -> npt.NDArray[np.intp]:
            return np.subtract(score_keys(part, shift), base, dtype=np.intp, casting="same_kind")

        for start in range(0, flat.size, size):
            np.add.at(bins, index(flat[start : start + size]), 1)
        if without is not None:
            np.subtract.at(bins, index(without), 1)
        used = np.flatnonzero(bins)
        return NormalScores(used.astype(base.dtype) + base, bins[used].astype(np.uint32), shift)

    @staticmethod
    def sorted(scores: Scores) -> NormalScores:
        """Keep every score."""
        keys = score_keys(scores.ravel())
        keys.sort()
        return NormalScores(keys, None, 0)

    @staticmethod
    def sum(parts: Sequence[NormalScores]) -> NormalScores:
        """Pool parts of one shift."""
        first = parts[0]
        if first.counts is None:
            keys = np.concatenate([part.keys for part in parts])
            keys.sort()
            return NormalScores(keys, None, first.shift)
        ends = [(int(part.keys[0]), int(part.keys[-1])) for part in parts if part.keys.size]
        if not ends:
            return first
        low = min(end[0] for end in ends)
        bins = np.zeros(max(end[1] for end in ends) - low + 1, dtype=np.int64)
        for part in parts:
            assert part.counts is not None
            bins[part.keys.astype(np.int64) - low] += part.counts
        used = np.flatnonzero(bins)
        return NormalScores(used.astype(first.keys.dtype) + first.keys.dtype.type(low), bins[used], first.shift)


def pooled_ranks(parts: Sequence[NormalScores], keys: Keys) -> tuple[Counts, Counts]:
    """Count the pixels of all `parts` (above, at or above) each of some keys, without a copy of the parts.

    Parameters
    ----------
    parts : sequence of NormalScores
        All of one shift.
    keys : ndarray of unsigned
        Rising.
    """
    if parts[0].counts is not None:
        pooled = NormalScores.sum(parts)
        return pooled.above(keys), pooled.at_least(keys)
    total = sum(part.total for part in parts)
    sample = np.sort(np.concatenate([part.keys[:: _PIECE // 64] for part in parts]))
    cuts = np.unique(sample[1024::1024])  # pieces of about a million pixels
    inner = np.searchsorted(keys, cuts, side="left")
    places = [np.concatenate([[0], np.searchsorted(part.keys, cuts, side="left"), [part.total]]) for part in parts]
    at_least, above, below = np.empty(keys.size, np.int64), np.empty(keys.size, np.int64), 0
    for number, (start, stop) in enumerate(pairwise([0, *inner, keys.size])):
        piece = np.concatenate(
            [part.keys[place[number] : place[number + 1]] for part, place in zip(parts, places, strict=True)]
        )
        if stop > start:
            piece.sort()
            at_least[start:stop] = total - below - np.searchsorted(piece, keys[start:stop], side="left")
            above[start:stop] = total - below - np.searchsorted(piece, keys[start:stop], side="right")
        below += piece.size
    return above, at_least
