"""What metrics need of each image, for any weights on the images to give their values by matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hrbench.evidence.histograms import Keys, NormalScores, next_key, ranked, score_keys
from hrbench.metrics.context import Context, Shared
from hrbench.metrics.curves import partial_area

__all__ = ["Bins", "Draw", "cut_keys", "partial_gains", "pixel_counts"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bins:
    """Pixels in common bins of scores; bins fall, and the last one holds scores below all normal ones.

    Attributes
    ----------
    edges : ndarray of unsigned, (bins - 1,)
        The bins' lower edges, rising.
    at_least : ndarray, (n, bins)
        Normal pixels of each image at or above each bin's lower edge.
    place : ndarray, (P,)
        The bin of each defect pixel.
    hits : ndarray, (d, bins)
        Defect pixels of each defective image at or above each bin's lower edge.
    step, tied : ndarray, (bins,)
        See :meth:`Draw.pixel_average_precision`.
    """

    edges: Keys
    at_least: Floats
    place: Ints
    hits: Floats
    step: Floats
    tied: Bools

    @staticmethod
    def of(context: Context) -> Bins:
        """Count the pixels of all images."""
        evidence = context.evidence
        edges = _edges(evidence.normals if evidence.spec.exact else [evidence.normal])
        counts = np.array([part.at_least(edges[::-1]) for part in evidence.normals], dtype=np.float64)
        bins = edges.size + 1
        pixel_bin = _places(edges, score_keys(evidence.defect_scores, evidence.shift))
        defective = np.flatnonzero(context.labels == 1)
        owner = np.repeat(np.searchsorted(defective, evidence.component_images), context.areas)
        distinct = score_keys(np.unique(evidence.defect_scores), evidence.shift)
        steps = np.bincount(_places(edges, distinct), minlength=bins)
        single = np.diff(edges)[::-1] == 1
        return Bins(
            edges=edges,
            at_least=np.concatenate([counts, counts[:, -1:]], axis=1),
            place=pixel_bin,
            hits=np.cumsum(pixel_counts(owner, pixel_bin, None, (defective.size, bins)), axis=1),
            step=0.5 + 0.5 / np.maximum(steps, 1),
            tied=np.concatenate([[False], single & evidence.lossless, [False]]),
        )

    @cached_property
    def normal(self) -> Floats:
        """Normal pixels of each image, (n,)."""
        return self.at_least[:, -1]

    def places(self, keys: Keys) -> Ints:
        """Return the bins of pixels by the keys of their scores."""
        return _places(self.edges, keys)


@dataclass(frozen=True)
class _SizeClass:
    """Components that belong to the same subsets. Subsets overlap, classes do not, and are far fewer sums.

    Attributes
    ----------
    subsets : ndarray, (S,)
        1 for each subset that holds the class, else 0.
    members : ndarray of bool, (K,)
    owners : ndarray, (n_c,)
        Images with any of the components.
    place : ndarray
        The place in `owners` of each member's image.
    shares : ndarray, (n_c, bins)
        Sums, over components, of the share of their pixels in each bin.
    below : ndarray, (n_c, n)
        Pairs of a defect pixel and a lower normal pixel of each image, since the ROC area is bilinear in the weights.
    """

    subsets: Floats
    members: Bools
    owners: Ints
    place: Ints
    shares: Floats
    below: Floats

    @staticmethod
    def all_of(context: Context) -> list[_SizeClass]:
        bins, areas = context.once(Bins.of), context.areas
        patterns, kind = np.unique(np.stack(list(context.subsets.values())), axis=1, return_inverse=True)
        above = np.concatenate([np.zeros((len(bins.at_least), 1)), bins.at_least[:, :-1]], axis=1)
        lower = (bins.normal[:, None] - (bins.at_least + above) / 2).T
        classes = []
        for number, subsets in enumerate(patterns.T.astype(np.float64)):
            members = kind.ravel() == number
            owners, place = np.unique(context.evidence.component_images[members], return_inverse=True)
            sizes, shape = areas[members], (owners.size, bins.at_least.shape[1])
            pixels = np.repeat(place, sizes), bins.place[np.repeat(members, areas)]
            shares = pixel_counts(*pixels, np.repeat(1 / sizes, sizes), shape)
            classes.append(
                _SizeClass(subsets, members, owners, place, shares, pixel_counts(*pixels, None, shape) @ lower)
            )
        return classes

    def sums(self, values: npt.NDArray[np.integer[Any] | np.floating[Any] | np.bool_]) -> Floats:
        """Sum values of components (K,) over the members in each of the `owners`, (n_c,)."""
        return np.bincount(self.place, values[self.members], self.owners.size).astype(np.float64, copy=False)


class Draw(Shared):
    """Replicates of a sample, as weights on its images, and what metrics share of them.

    Parameters
    ----------
    context : Context
    weights : ndarray, (B, n)
        How often each replicate draws each image.
    """

    def __init__(self, context: Context, weights: Floats) -> None:
        super().__init__()
        self.context, self.weights = context, weights

    @cached_property
    def undefined(self) -> Floats:
        """NaN for each replicate, (B,)."""
        return np.full(len(self.weights), np.nan)

    @cached_property
    def defective(self) -> Floats:
        """Weights on the defective images, (B, d)."""
        return self.weights[:, np.flatnonzero(self.context.labels == 1)]

    @cached_property
    def ranking(self) -> tuple[Floats, Floats, Floats]:
        """At each distinct image score, falling: its defective images, and defective and good ones down to it."""
        order, ties = self.context.once(_image_order)
        ordered = self.weights[:, order]
        positive = np.add.reduceat(ordered * self.context.labels[order].astype(np.float64), ties, axis=1)
        hits = np.cumsum(positive, axis=1)
        return positive, hits, np.cumsum(np.add.reduceat(ordered, ties, axis=1), axis=1) - hits

    @cached_property
    def at_least(self) -> Floats:
        """Normal pixels at or above each bin's lower edge, (B, bins)."""
        return self.weights @ self.context.once(Bins.of).at_least

    @cached_property
    def hits(self) -> Floats:
        """Defect pixels at or above each bin's lower edge, (B, bins)."""
        return self.defective @ self.context.once(Bins.of).hits

    @property
    def normal(self) -> Floats:
        """Normal pixels, (B,)."""
        return self.at_least[:, -1]

    @cached_property
    def classes(self) -> list[tuple[_SizeClass, Floats]]:
        """Each class of components, and the weights on its owners (B, n_c)."""
        return [(part, self.weights[:, part.owners]) for part in self.context.once(_SizeClass.all_of)]

    def class_sums(self, sums: Sequence[Floats]) -> Floats:
        """Weigh sums over the members of each class in each of its owners, (n_c,) each, (B, C)."""
        return np.stack([weights @ inner for (_, weights), inner in zip(self.classes, sums, strict=True)], axis=1)

    @cached_property
    def components(self) -> Floats:
        """Components of each class, (B, C)."""
        return self.class_sums(self.context.once(_components))

    def by_subset(self, sums: Floats, counts: Floats) -> dict[str, Floats]:
        """Return per subset the ratio (B,) of two sums over its classes, (B, C)."""
        joined = np.stack([part.subsets for part, _ in self.classes], axis=1).T
        return dict(zip(self.context.subsets, (sums @ joined / (counts @ joined)).T, strict=True))

    @cached_property
    def pixel_auroc(self) -> dict[str, Floats]:
        """ROC area of the pixels of each subset."""
        pairs = [np.einsum("bi,bi->b", weights @ part.below, self.weights) for part, weights in self.classes]
        return self.by_subset(
            np.stack([sums / self.normal for sums in pairs], axis=1), self.class_sums(self.context.once(_pixels))
        )

    @cached_property
    def aupro(self) -> dict[float, dict[str, Floats]]:
        """AUPRO by FPR limit and subset; NaN where the protocol samples the curve's thresholds."""
        limits = self.context.protocol.fpr_limits
        if self.context.protocol.curve.sampling != "all":
            return {limit: dict.fromkeys(self.context.subsets, self.undefined) for limit in limits}
        gains = partial_gains(self.at_least, limits)
        sums: list[list[Floats]] = [[] for _ in limits]
        for part, weights in self.classes:
            shares = weights @ part.shares
            for areas, gain in zip(sums, gains, strict=True):
                areas.append(np.einsum("bk,bk->b", shares[:, : gain.shape[1]], gain))
        return {
            limit: self.by_subset(np.stack(areas, axis=1), self.components)
            for limit, areas in zip(limits, sums, strict=True)
        }

    @cached_property
    def image_auroc(self) -> dict[str, Floats]:
        """Area under the ROC curve of the scores of each subset's images and all good ones; NaN without both."""
        _, _, false = self.ranking
        order, ties = self.context.once(_image_order)
        middle = false - np.diff(false, axis=1, prepend=0) / 2  # good images above each score, ties counted one half
        above = np.empty_like(self.weights)
        above[:, order] = np.repeat(middle, np.diff(ties, append=order.size), axis=1)
        members = np.stack(list(self.context.image_subsets.values()), axis=1).astype(np.float64)
        good, bad = false[:, -1:], self.weights @ members
        areas = np.where((good > 0) & (bad > 0), 1 - (self.weights * above) @ members / (good * bad), np.nan)
        return dict(zip(self.context.image_subsets, areas.T, strict=True))

    def image_average_precision(self) -> Floats:
        """Return the average precision of image scores; NaN without both labels."""
        positive, hits, false = self.ranking
        good, bad = false[:, -1], hits[:, -1]
        precision = np.nansum(positive * hits / (hits + false), axis=1) / bad
        return np.where((good > 0) & (bad > 0), precision, np.nan)

    def pixel_average_precision(self) -> Floats:
        """Return the average precision of all pixels.

        Inside a bin each of k distinct defect scores is a threshold: on average the share ``step = (k + 1) / (2 k)`` of
        the bin's hits is reached at it, and half of its normal pixels; all of both where the bin is one score.
        """
        bins = self.context.once(Bins.of)
        pixels = np.diff(self.hits, axis=1, prepend=0)
        reached = self.hits - (1 - bins.step) * pixels
        false = self.at_least - np.where(bins.tied, 0.0, 0.5) * np.diff(self.at_least, axis=1, prepend=0)
        result: Floats = np.nansum(pixels * reached / (reached + false), axis=1) / self.hits[:, -1]
        return result

    def oracle_iou(self) -> Floats:
        """Return the highest pooled IoU at the edges of the bins."""
        result: Floats = (self.hits / (self.hits[:, -1:] + self.at_least)).max(axis=1)
        return result

    def oracle_mean_iou(self) -> Floats:
        """Return the highest mean IoU of the defective images at the edges of the bins."""
        known, masked = self.context.evidence.known[self.context.labels == 1], self.defective
        if not known.all():
            masked = masked * known
        result: Floats = (masked @ self.context.once(_image_ious)).max(axis=1) / masked.sum(axis=1)
        return result


def partial_gains(at_least: Floats, limits: Sequence[float]) -> list[Floats]:
    """Return per FPR limit L what a share of a defect in each bin adds to the area, g(a, b; L) / L, (B, up to bins).

    `at_least`, (B, bins), are normal pixels at or above each bin's lower edge, the last of them all. Bins that lie
    beyond the limit in every replicate, and add nothing, are left out.
    """
    fpr = at_least / at_least[:, -1:]
    above = np.concatenate([np.zeros((len(fpr), 1)), fpr[:, :-1]], axis=1)
    lowest = above.min(axis=0)
    ends = [int(np.searchsorted(lowest, limit)) for limit in limits]
    return [partial_area(above[:, :end], fpr[:, :end], limit) / limit for limit, end in zip(limits, ends, strict=True)]


def _class_sums(context: Context, values: npt.NDArray[np.integer[Any] | np.floating[Any] | np.bool_]) -> list[Floats]:
    """Sum values of components, (K,), over each class and owner."""
    return [part.sums(values) for part in context.once(_SizeClass.all_of)]


def _components(context: Context) -> list[Floats]:
    return _class_sums(context, np.ones(context.areas.size))


def _pixels(context: Context) -> list[Floats]:
    return _class_sums(context, context.areas)


def _image_order(context: Context) -> tuple[Ints, Ints]:
    """Return the images by falling score, and the first one of each distinct score."""
    order = np.argsort(-context.scores, kind="stable")
    ranked = context.scores[order]
    return order, np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))


def _image_ious(context: Context) -> Floats:
    """Return the IoU of each defective image at each bin's lower edge, (d, bins)."""
    bins = context.once(Bins.of)
    union = bins.hits[:, -1:] + bins.at_least[context.labels == 1]
    known = context.evidence.known[context.labels == 1, None]
    result: Floats = np.divide(bins.hits, union, out=np.zeros_like(union), where=known)
    return result


def _places(edges: Keys, keys: Keys) -> Ints:
    return edges.size - np.searchsorted(edges, keys, side="right")


def _edges(parts: Sequence[NormalScores]) -> Keys:
    """Return rising lower edges of bins of the pooled parts, fine where low false-positive rates are decided.

    A bin that would hold a single normal key is cut above it, so that defect pixels are tied with it or not: with few
    distinct normal scores, nothing is approximated.
    """
    few = _few_keys(parts)
    if few is not None:
        return cut_keys(few, np.arange(few.size))
    total = sum(part.total for part in parts)
    shares = [np.geomspace(1 / total, 0.01, 300), np.linspace(0, 0.01, 1001), np.linspace(0.01, 0.1, 401)]
    above = np.floor(np.concatenate([*shares, np.linspace(0.1, 1, 401)]) * total).astype(np.int64)
    first = np.unique(ranked(parts, np.append((total - 1 - above).clip(0), 0)))
    last = ranked(parts, [total - 1])
    single = (next_key(parts, first) == np.append(first[1:], first[-1:])) | (first == last)
    return np.unique(np.concatenate([first, first[single] + 1, last + 1]))


def _few_keys(parts: Sequence[NormalScores], most: int = 1000) -> Keys | None:
    """Return the distinct keys of the parts, rising; None if there are more."""
    keys = [ranked(parts, [0])]
    last = ranked(parts, [sum(part.total for part in parts) - 1])
    while keys[-1] < last:
        if len(keys) == most:
            return None
        keys.append(next_key(parts, keys[-1]))
    return np.concatenate(keys)


def cut_keys(keys: Keys, places: Ints) -> Keys:
    """Return rising lower edges of bins that begin at some places in `keys`, cut as :func:`_edges` says, and a top."""
    single = places[np.diff(places, append=keys.size) == 1]
    tops = np.append(keys[single], keys[-1:]) + keys.dtype.type(1)
    return np.unique(np.concatenate([keys[places], tops]))


def pixel_counts(rows: Ints, columns: Ints, weights: Floats | None, size: tuple[int, int]) -> Floats:
    """Count pixels, or sum their weights, in a table of this size, by the row and the column of each."""
    flat = np.bincount(rows * size[1] + columns, weights=weights, minlength=size[0] * size[1])
    return flat.astype(np.float64).reshape(size)
