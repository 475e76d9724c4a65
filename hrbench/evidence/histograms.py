"""Scores under order-preserving integer keys, histograms of them, and what a map must be."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.protocol import ImageScoreRule

__all__ = [
    "KEY_SHIFT",
    "Counts",
    "DefectRanks",
    "Histogram",
    "Keys",
    "NormalScores",
    "Scores",
    "SortedKeys",
    "check_map",
    "check_size",
    "drops_bits",
    "image_score",
    "key_scores",
    "next_key",
    "ranked",
    "score_keys",
    "top_mean",
    "top_pixels",
]

Keys = npt.NDArray[np.unsignedinteger[Any]]
Counts = npt.NDArray[np.integer[Any]]
Scores = npt.NDArray[np.floating[Any]]

_PIECE = 1 << 16  # pixels that stay in the cache between two steps
_INTEGERS = 2.0**53  # below it float64 has every integer
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


def drops_bits(scores: Scores, shift: int) -> bool:
    """Tell whether the keys of float32 scores, (P,), lose a set bit to `shift`; one early among them is found soon."""
    low, bits = np.uint32((1 << shift) - 1), scores.view(np.uint32)
    return any(np.bitwise_or.reduce(bits[piece]) & low for piece in _pieces(scores.size))


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
    number = top_pixels(anomaly_map.size, rule)
    return top_mean(np.partition(anomaly_map.ravel(), anomaly_map.size - number)[-number:])


def top_pixels(pixels: int, rule: ImageScoreRule) -> int:
    """Return of how many of a map's highest pixels a rule takes the mean; 0 if of none, or all."""
    return 0 if rule.share in (None, 1) else max(1, int(pixels * rule.share))


def top_mean(top: Scores) -> float:
    """Return the mean of a map's highest scores, (P,), which does not depend on their order."""
    return float(np.sort(top).mean(dtype=np.float64))


def check_size(shape: tuple[int, ...], size: tuple[int, ...] | None, name: str) -> None:
    """Raise an error that names a map whose shape is not (H, W), or not the given size."""
    if len(shape) != 2 or 0 in shape or (size is not None and shape != size):
        expected = "(H, W)" if size is None else f"{size}, that of the image"
        raise HrbenchError(f"{name}: the anomaly map has shape {shape}, expected {expected}")


def check_map(anomaly_map: npt.ArrayLike, size: tuple[int, int] | None, name: str) -> Scores:
    """Return the map as a float32 or float64 array, or raise an error that names it.

    Raises
    ------
    HrbenchError
        If it is not two-dimensional, not of `size` (H, W), not of real numbers, holds NaN or infinity, or numbers that
        float64 cannot tell apart.
    """
    array = np.asarray(anomaly_map)
    check_size(array.shape, size, name)
    if array.dtype.kind not in "fiub":
        raise HrbenchError(f"{name}: the anomaly map is of type {array.dtype}, expected real numbers")
    wide = array.dtype.itemsize > (4 if array.dtype.kind == "f" else 2)  # float32 would merge scores
    with np.errstate(over="ignore"):
        scores: Scores = array.astype(np.float64 if wide else np.float32, copy=False)
    low, high = scores.min(), scores.max()  # both spread NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(scores.size - np.isfinite(scores).sum())
        raise HrbenchError(f"{name}: the anomaly map has {bad} NaN or infinite pixels, expected finite scores")
    if array.dtype.itemsize > 4 and scores is not array:
        exact = (scores == array).all() if array.dtype.kind == "f" else max(-low, high) < _INTEGERS
        if not exact:
            raise HrbenchError(
                f"{name}: the anomaly map is of type {array.dtype} and holds numbers that float64 cannot tell apart, "
                "expected float32 or float64"
            )
    return scores


@dataclasses.dataclass(frozen=True)
class NormalScores(ABC):
    """Normal pixels' scores under order-preserving keys: a :class:`Histogram`, or in exact mode :class:`SortedKeys`.

    Attributes
    ----------
    keys : ndarray of unsigned, (K,)
        Rising.
    shift : int
        Bits that the keys dropped.
    """

    keys: Keys
    shift: int

    @property
    @abstractmethod
    def total(self) -> int:
        """Number of normal pixels."""

    @abstractmethod
    def ranked(self, ranks: npt.ArrayLike) -> Keys:
        """Return the keys of the pixels of the given zero-based ranks, counted from the lowest score."""

    @abstractmethod
    def histogram(self) -> Histogram:
        """Return the same as a histogram."""

    @abstractmethod
    def pooled(self, others: Sequence[Self]) -> Self:
        """Return the pixels of these and of `others` of the same kind and shift."""

    @abstractmethod
    def none(self) -> Self:
        """Return the same without a pixel."""

    @abstractmethod
    def plus(self, scores: Scores) -> Self:
        """Return these pixels and others, of scores (P,)."""

    @abstractmethod
    def minus(self, scores: Scores) -> Self:
        """Return these pixels without some of them, of scores (P,); an error if they are not all among these."""

    @abstractmethod
    def _below(self, positions: npt.NDArray[np.int64]) -> Counts:
        """Count the pixels with a key before each position in `keys`."""

    def at_least(self, keys: Keys) -> Counts:
        """Count the normal pixels with a key at or above each of `keys`."""
        return self.total - self._below(np.searchsorted(self.keys, keys, side="left"))

    def above(self, keys: Keys) -> Counts:
        """Count the normal pixels with a key above each of `keys`."""
        return self.total - self._below(np.searchsorted(self.keys, keys, side="right"))


@dataclasses.dataclass(frozen=True)
class SortedKeys(NormalScores):
    """Every pixel's key, in order."""

    @staticmethod
    def of(scores: Scores) -> SortedKeys:
        """Keep every score, of any shape, with all its bits."""
        keys = score_keys(scores.ravel())
        keys.sort()
        return SortedKeys(keys, 0)

    @property
    def total(self) -> int:
        """Number of normal pixels."""
        return self.keys.size

    def ranked(self, ranks: npt.ArrayLike) -> Keys:
        """Return the keys of the given ranks."""
        return self.keys[np.asarray(ranks, dtype=np.int64)]

    def histogram(self) -> Histogram:
        """Return the same as a histogram."""
        return Histogram.counted(*np.unique(self.keys, return_counts=True), self.shift)

    def pooled(self, others: Sequence[Self]) -> Self:
        """Pool pixels."""
        keys = np.concatenate([self.keys, *(part.keys for part in others)])
        keys.sort()
        return dataclasses.replace(self, keys=keys)

    def none(self) -> Self:
        """Return the same without a pixel."""
        return dataclasses.replace(self, keys=self.keys[:0])

    def plus(self, scores: Scores) -> Self:
        """Add pixels."""
        return self.pooled([dataclasses.replace(self, keys=np.sort(score_keys(scores, self.shift)))])

    def minus(self, scores: Scores) -> Self:
        """Take pixels away."""
        keys = np.sort(score_keys(scores, self.shift))
        repeated = np.arange(keys.size) - np.searchsorted(keys, keys)
        places = np.searchsorted(self.keys, keys) + repeated
        _require_among(places, self.keys, keys)
        return dataclasses.replace(self, keys=np.delete(self.keys, places))

    def _below(self, positions: npt.NDArray[np.int64]) -> Counts:
        return positions


@dataclasses.dataclass(frozen=True)
class Histogram(NormalScores):
    """Pixels counted under distinct keys.

    Attributes
    ----------
    cumulative : ndarray of int, (K + 1,)
        The pixels below each key, and at last all pixels.
    """

    cumulative: Counts

    @classmethod
    def counted(cls, keys: Keys, counts: Counts, shift: int) -> Self:
        """Make a histogram from distinct rising keys and their pixels."""
        total = int(counts.sum(dtype=np.int64))
        cumulative: Counts = np.zeros(keys.size + 1, np.uint32 if total < 1 << 32 else np.int64)
        np.cumsum(counts, out=cumulative[1:], dtype=cumulative.dtype)
        return cls(keys, shift, cumulative)

    @staticmethod
    def of(scores: Scores, shift: int, without: Scores | None = None) -> Histogram:
        """Count scores of any shape in bins of `shift` bits, less those of `without`, which are among them.

        The work is done in pieces that stay in the cache; memory is that of the bins between the extremes.
        """
        base, bins = _bins(scores.ravel(), shift)
        if without is not None:
            np.subtract.at(bins, _offsets(without, shift, base), 1)
        used = np.flatnonzero(bins)
        return Histogram.counted(used.astype(base.dtype) + base, bins[used], shift)

    def without(self, scores: Scores) -> Histogram:
        """Return the same less the pixels of some scores, (P,), which are among them."""
        if not scores.size:
            return self
        rows = np.searchsorted(self.keys, score_keys(scores, self.shift))
        counts = self.counts - np.bincount(rows, minlength=self.keys.size)
        left = np.flatnonzero(counts)
        return self.counted(self.keys[left], counts[left], self.shift)

    @property
    def counts(self) -> Counts:
        """Pixels per key, (K,)."""
        return np.diff(self.cumulative)

    @property
    def total(self) -> int:
        """Number of normal pixels."""
        return int(self.cumulative[-1])

    def ranked(self, ranks: npt.ArrayLike) -> Keys:
        """Return the keys of the given ranks."""
        return self.keys[np.searchsorted(self.cumulative[1:], ranks, side="right")]

    def histogram(self) -> Histogram:
        """Return the same as a histogram."""
        return self

    def pooled(self, others: Sequence[Self]) -> Self:
        """Pool pixels."""
        used = [part for part in (self, *others) if part.keys.size]
        if not used:
            return self
        base, last = min(part.keys[0] for part in used), max(part.keys[-1] for part in used)
        bins = np.zeros(int(last - base) + 1, dtype=np.int64)
        for part in used:
            bins[np.subtract(part.keys, base, dtype=np.intp, casting="same_kind")] += part.counts
        filled = np.flatnonzero(bins)
        return self.counted(filled.astype(base.dtype) + base, bins[filled], self.shift)

    def none(self) -> Self:
        """Return the same without a pixel."""
        return self.counted(self.keys[:0], self.counts[:0], self.shift)

    def plus(self, scores: Scores) -> Self:
        """Add pixels."""
        keys, counts = np.unique(score_keys(scores, self.shift), return_counts=True)
        return self.pooled([self.counted(keys, counts, self.shift)])

    def minus(self, scores: Scores) -> Self:
        """Take pixels away."""
        keys, taken = np.unique(score_keys(scores, self.shift), return_counts=True)
        places = np.searchsorted(self.keys, keys)
        _require_among(places, self.keys, keys)
        counts = self.counts.astype(np.int64)
        counts[places] -= taken
        if (counts < 0).any():
            raise _not_among()
        return self.counted(self.keys[counts > 0], counts[counts > 0], self.shift)

    def _below(self, positions: npt.NDArray[np.int64]) -> Counts:
        return self.cumulative[positions].astype(np.int64)


@dataclasses.dataclass(frozen=True)
class DefectRanks:
    """Where defect pixels stand among the normal ones: all that rank metrics need to know of the latter.

    Attributes
    ----------
    keys : ndarray of unsigned, (K,)
        The distinct keys of defect pixels, rising.
    pixels : ndarray of int64, (K,)
        Defect pixels of each key.
    place : ndarray of int, (P,)
        Which key each defect pixel has.
    above, at_least : ndarray of int64, (K,)
        Normal pixels of all images with a key above, and at or above, each key.
    """

    keys: Keys
    pixels: Counts
    place: npt.NDArray[np.integer[Any]]
    above: Counts
    at_least: Counts

    @staticmethod
    def of(scores: Scores, normals: Sequence[NormalScores]) -> DefectRanks:
        """Rank defect scores, (P,), among the normal pixels of all images."""
        shift = normals[0].shift
        if not shift or not scores.size:
            keys, place, pixels = np.unique(score_keys(scores), return_inverse=True, return_counts=True)
            return DefectRanks(keys, pixels, place, *_pooled_ranks(normals, keys))
        # Few distinct keys: a table is faster than sorting, and pieces spare wide arrays of all pixels.
        base, table = _bins(scores, shift)
        used = np.flatnonzero(table)
        keys, pixels = used.astype(base.dtype) + base, table[used]
        table[used] = np.arange(used.size)
        place = np.empty(scores.size, np.min_scalar_type(used.size))
        for piece in _pieces(scores.size):
            place[piece] = table[_offsets(scores[piece], shift, base)]
        return DefectRanks(keys, pixels, place, *_pooled_ranks(normals, keys))


def ranked(parts: Sequence[NormalScores], ranks: npt.ArrayLike) -> Keys:
    """Return the keys of the given ranks among the pixels of all parts, which are not copied."""
    wanted = np.asarray(ranks, dtype=np.int64)
    filled = [part.keys for part in parts if part.keys.size]
    low = np.full(wanted.shape, min(keys[0] for keys in filled))
    high = np.full(wanted.shape, max(keys[-1] for keys in filled))
    total = sum(part.total for part in parts)
    while (low < high).any():  # bisection
        middle = low + (high - low) // 2
        reached = total - sum(part.above(middle) for part in parts) > wanted
        low, high = np.where(reached, low, middle + 1), np.where(reached, middle, high)
    return low


def next_key(parts: Sequence[NormalScores], keys: Keys) -> Keys:
    """Return the lowest key of any part above each of `keys`, or the greatest number where there is none."""
    following = np.full_like(keys, np.iinfo(keys.dtype).max)
    for part in parts:
        places = np.searchsorted(part.keys, keys, side="right")
        there = places < part.keys.size
        following[there] = np.minimum(following[there], part.keys[places[there]])
    return following


def _require_among(places: npt.NDArray[np.int64], keys: Keys, wanted: Keys) -> None:
    if places.size and (places.max() >= keys.size or (keys[places] != wanted).any()):
        raise _not_among()


def _not_among() -> HrbenchError:
    return HrbenchError("scores that are not among those of the normal pixels cannot be taken away from them")


def _bins(scores: Scores, shift: int) -> tuple[np.unsignedinteger[Any], npt.NDArray[np.int64]]:
    """Count scores, (P,) with P > 0, under every key from the lowest to the highest; return the lowest, and counts."""
    base, last = score_keys(np.array([scores.min(), scores.max()]), shift)
    bins = np.zeros(int(last - base) + 1, dtype=np.int64)
    for piece in _pieces(scores.size):
        np.add.at(bins, _offsets(scores[piece], shift, base), 1)
    return base, bins


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, size, _PIECE))


def _offsets(scores: Scores, shift: int, base: np.unsignedinteger[Any]) -> npt.NDArray[np.intp]:
    return np.subtract(score_keys(scores, shift), base, dtype=np.intp, casting="same_kind")


def _pooled_ranks(parts: Sequence[NormalScores], keys: Keys) -> tuple[Counts, Counts]:
    """Count the pixels of all `parts` (above, at or above) each of rising keys, without a copy of the parts."""
    if not isinstance(parts[0], SortedKeys):
        pooled = parts[0].pooled(parts[1:])
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
