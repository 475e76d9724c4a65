"""Every metric as a function of weights on the images, for many weightings at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Keys, NormalScores, score_keys
from hrbench.metrics.curves import partial_area
from hrbench.metrics.segmentation import Overlap, automatic_threshold, component_hits, overlap_at, overlap_of_decisions
from hrbench.metrics.sizes import CUMULATIVE, DISJOINT, size_subsets
from hrbench.protocol import Protocol

__all__ = ["Bools", "Floats", "Ints", "MetricKey", "WeightedMetrics"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
MetricKey = tuple[str, str, float]

_CHUNK = 64  # replicates at a time: their arrays over all bins stay in the cache
_NO_LIMIT = float("nan")


class WeightedMetrics:
    """Every metric as a function of image weights (B, n): call it for the keys and the values (B, R)."""

    def __init__(self, evidence: Evidence, protocol: Protocol, threshold: float | None) -> None:
        images = evidence.images
        areas = evidence.components["area"].to_numpy()
        self.owner = evidence.component_images
        self.subsets = size_subsets(areas, protocol.size_bins)
        self.limits = protocol.fpr_limits
        self.sampled = protocol.curve.sampling != "all"
        self.labels = images["label"].to_numpy(dtype=np.float64)
        self.order = np.argsort(-images["score"].to_numpy(), kind="stable")
        ranked = images["score"].to_numpy()[self.order]
        self.ties = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))

        # Bins fall: bin j holds the scores from edge j up to edge j - 1; the last one, scores below all normal ones.
        edges = _edges(evidence.normal.histogram())
        at_least = [part.at_least(edges[::-1]) for part in evidence.normals]
        counts = np.array(at_least, dtype=np.float64)
        self.at_least = np.concatenate([counts, counts[:, -1:]], axis=1)
        self.total = self.at_least[:, -1]
        bins = edges.size + 1
        keys = score_keys(evidence.defect_scores, evidence.shift)
        pixel_bin = edges.size - np.searchsorted(edges, keys, side="right")
        widths = np.diff(edges)[::-1]
        self.tied = np.concatenate([[False], (widths == 1) & evidence.lossless, [False]])
        distinct = score_keys(np.unique(evidence.defect_scores), evidence.shift)
        steps = np.bincount(edges.size - np.searchsorted(edges, distinct, side="right"), minlength=bins)
        self.step = 0.5 + 0.5 / np.maximum(steps, 1)

        self.defective = np.flatnonzero(self.labels == 1)
        local = np.searchsorted(self.defective, self.owner)
        pixel_owner = np.repeat(local, areas)
        self.hits = np.cumsum(_count(pixel_owner, pixel_bin, None, (self.defective.size, bins)), axis=1)
        self.ious = self.hits / (self.hits[:, -1:] + self.at_least[self.defective])

        threshold = automatic_threshold(evidence, protocol.threshold) if threshold is None else threshold
        self.overlaps = {"": None if threshold is None else overlap_at(evidence, threshold)}
        found = {} if threshold is None else {"": component_hits(evidence, threshold, protocol.pod.share)}
        decided = overlap_of_decisions(evidence)
        if decided is not None:
            self.overlaps["_decision"] = decided
            found["_decision"] = component_hits(evidence, None, protocol.pod.share)

        # Subsets overlap; the classes of components that belong to the same subsets do not, and are far fewer sums.
        members = np.stack(list(self.subsets.values()))
        patterns, kind = np.unique(members, axis=1, return_inverse=True)
        self.patterns: Floats = patterns.astype(np.float64)
        middle = (self.at_least + np.concatenate([np.zeros((len(images), 1)), self.at_least[:, :-1]], axis=1)) / 2
        self.classes = []
        for number in range(patterns.shape[1]):
            kept = kind.ravel() == number
            owners, own = np.unique(self.owner[kept], return_inverse=True)
            inside = np.repeat(kept, areas)
            place = np.repeat(own, areas[kept]), pixel_bin[inside]
            size = (owners.size, bins)
            shares = _count(*place, np.repeat(1 / areas[kept], areas[kept]), size)
            below = _count(*place, None, size) @ (self.total[:, None] - middle).T
            own_pixels = np.bincount(own, weights=areas[kept], minlength=owners.size).astype(np.float64)
            own_components = np.bincount(own, minlength=owners.size).astype(np.float64)
            own_hits: dict[str, Floats] = {
                name: np.bincount(own[hits[kept]], minlength=owners.size).astype(np.float64)
                for name, hits in found.items()
            }
            self.classes.append(_Class(owners, shares, below, own_components, own_pixels, own_hits))

    def __call__(self, weights: Floats) -> tuple[list[MetricKey], Floats]:
        """Return the metrics' keys and their values, (draws, metrics), for weights (draws, images)."""
        parts = [self._values(weights[start : start + _CHUNK]) for start in range(0, len(weights), _CHUNK)]
        keys = list(parts[0])
        return keys, np.concatenate([np.stack([part[key] for key in keys], axis=1) for part in parts])

    def _values(self, weights: Floats) -> dict[MetricKey, Floats]:
        """Return metric by metric, in the order of `compute`, the values (B,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self._image_metrics(weights)
            at_least = weights @ self.at_least
            total = at_least[:, -1]
            drawn = weights[:, self.defective]
            hits = drawn @ self.hits
            self._subset_metrics(
                values, weights, at_least / total[:, None], _average_precision(hits, at_least, self.step, self.tied)
            )
            for suffix, overlap in self.overlaps.items():
                values |= self._overlap_metrics(weights, total, overlap, suffix)
                values |= self._recall(weights, suffix)
            iou = (hits / (hits[:, -1:] + at_least)).max(axis=1)
            values["iou_oracle", "all", _NO_LIMIT] = iou
            values["f1_oracle", "all", _NO_LIMIT] = 2 * iou / (1 + iou)
            values["miou_oracle", "all", _NO_LIMIT] = (drawn @ self.ious).max(axis=1) / drawn.sum(axis=1)
        return values

    def _image_metrics(self, weights: Floats) -> dict[MetricKey, Floats]:
        sorted_weights = weights[:, self.order]
        positive = np.add.reduceat(sorted_weights * self.labels[self.order], self.ties, axis=1)
        called = np.cumsum(np.add.reduceat(sorted_weights, self.ties, axis=1), axis=1)
        hits = np.cumsum(positive, axis=1)
        false = called - hits
        good, bad = false[:, -1], hits[:, -1]
        middle = false - np.diff(false, axis=1, prepend=0) / 2
        auroc = 1 - (positive * middle).sum(axis=1) / (good * bad)
        precision = np.nansum(positive * hits / called, axis=1) / bad
        both = (good > 0) & (bad > 0)
        return {
            ("image_auroc", "all", _NO_LIMIT): np.where(both, auroc, np.nan),
            ("image_ap", "all", _NO_LIMIT): np.where(both, precision, np.nan),
        }

    def _subset_metrics(self, values: dict[MetricKey, Floats], weights: Floats, fpr: Floats, pixel_ap: Floats) -> None:
        above = np.concatenate([np.zeros((len(fpr), 1)), fpr[:, :-1]], axis=1)
        lowest = above.min(axis=0)
        used = [int(np.searchsorted(lowest, limit)) for limit in self.limits]  # later bins lie beyond the limit
        gains = [
            partial_area(above[:, :end], fpr[:, :end], limit) / limit
            for limit, end in zip(self.limits, used, strict=True)
        ]
        total = weights @ self.total
        areas = np.empty((len(self.limits), len(weights), len(self.classes)))
        auroc, pixels, components = np.empty((3, len(weights), len(self.classes)))
        for index, part in enumerate(self.classes):
            drawn = weights[:, part.owners]
            auroc[:, index] = np.einsum("bi,bi->b", drawn @ part.below, weights) / total
            pixels[:, index] = drawn @ part.pixels
            components[:, index] = drawn @ part.components
            shares = drawn @ part.shares
            for number, (gain, end) in enumerate(zip(gains, used, strict=True)):
                areas[number, :, index] = np.nan if self.sampled else np.einsum("bk,bk->b", shares[:, :end], gain)
        joined = self.patterns.T
        for name, value in zip(self.subsets, (auroc @ joined / (pixels @ joined)).T, strict=True):
            values["pixel_auroc", name, _NO_LIMIT] = value
        values["pixel_ap", "all", _NO_LIMIT] = pixel_ap
        for limit, area in zip(self.limits, areas, strict=True):
            means = dict(zip(self.subsets, (area @ joined / (components @ joined)).T, strict=True))
            values |= {("aupro", name, limit): mean for name, mean in means.items()}
            values["rho", "all", limit] = _robustness([means[name] for name in CUMULATIVE])
            values["rho_disjoint", "all", limit] = _robustness([means[name] for name in DISJOINT])

    def _overlap_metrics(
        self, weights: Floats, normal: Floats, overlap: Overlap | None, suffix: str
    ) -> dict[MetricKey, Floats]:
        names = [(f"{metric}{suffix}", "all", _NO_LIMIT) for metric in ("iou", "miou", "miou_all", "f1", "fpr")]
        if overlap is None:
            return {name: np.full(len(weights), np.nan) for name in names}
        drawn = weights[:, self.defective]
        hits = weights @ overlap.hits
        ious, mean_ious, all_ious, shares = [], [], [], []
        for false in (overlap.false_low, overlap.false_high):
            ious.append(hits / (weights @ (overlap.defect + false)))
            own = overlap.image_ious(false)
            mean_ious.append(drawn @ own[self.defective] / drawn.sum(axis=1))
            all_ious.append(weights @ own / weights.sum(axis=1))
            shares.append(weights @ false / normal)
        f1 = [2 * iou / (1 + iou) for iou in ious]
        ends = (ious, mean_ious, all_ious, f1, shares)
        return {name: (low + high) / 2 for name, (low, high) in zip(names, ends, strict=True)}

    def _recall(self, weights: Floats, suffix: str) -> dict[MetricKey, Floats]:
        if self.overlaps[suffix] is None:
            return {(f"recall{suffix}", name, _NO_LIMIT): np.full(len(weights), np.nan) for name in self.subsets}
        hits = np.stack([weights[:, part.owners] @ part.hits[suffix] for part in self.classes], axis=1)
        components = np.stack([weights[:, part.owners] @ part.components for part in self.classes], axis=1)
        shares = (hits @ self.patterns.T) / (components @ self.patterns.T)
        return {(f"recall{suffix}", name, _NO_LIMIT): share for name, share in zip(self.subsets, shares.T, strict=True)}


@dataclass(frozen=True)
class _Class:
    """Components of the same subsets, per image that has any (n_c of n images).

    `shares` (n_c, bins) sums, over components, the share of their pixels in each bin; `below` (n_c, n) counts pairs of
    a defect pixel and a lower normal pixel of each image, since the ROC area is bilinear in the weights. `hits` counts
    components that are hit, at the threshold and in the method's own decision.
    """

    owners: Ints
    shares: Floats
    below: Floats
    components: Floats
    pixels: Floats
    hits: dict[str, Floats]


def _edges(normal: NormalScores) -> Keys:
    """Return rising lower edges of bins, fine where low false-positive rates are decided.

    A bin that would hold a single normal key is cut above it, so that defect pixels are tied with it or not: with few
    distinct normal scores, nothing is approximated.
    """
    last = normal.keys.size - 1
    if last < 1000:
        chosen = np.arange(last + 1)
    else:
        shares = [np.geomspace(1 / normal.total, 0.01, 300), np.linspace(0, 0.01, 1001), np.linspace(0.01, 0.1, 401)]
        wanted = np.concatenate([*shares, np.linspace(0.1, 1, 401)]) * normal.total
        above = normal.above(normal.keys)
        chosen = np.unique(np.append(np.searchsorted(-above, -wanted).clip(max=last), 0))
    single = chosen[np.diff(chosen, append=last + 1) == 1]
    tops = np.append(normal.keys[single], normal.keys[-1:]) + normal.keys.dtype.type(1)
    return np.unique(np.concatenate([normal.keys[chosen], tops]))


def _count(rows: Ints, columns: Ints, weights: Floats | None, size: tuple[int, int]) -> Floats:
    flat = np.bincount(rows * size[1] + columns, weights=weights, minlength=size[0] * size[1])
    return flat.astype(np.float64).reshape(size)


def _average_precision(hits: Floats, false: Floats, step: Floats, tied: Bools) -> Floats:
    """Return the average precision (B,) from counts at or above each bin's lower edge (B, bins).

    Inside a bin each of k distinct defect scores is a threshold: on average the share ``step = (k + 1) / (2 k)`` of the
    bin's hits is reached at it, and half of its normal pixels; all of both where the bin is one score.
    """
    pixels = np.diff(hits, axis=1, prepend=0)
    reached = hits - (1 - step) * pixels
    called = false - np.where(tied, 0.0, 0.5) * np.diff(false, axis=1, prepend=0)
    result: Floats = np.nansum(pixels * reached / (reached + called), axis=1) / hits[:, -1]
    return result


def _robustness(areas: Sequence[Floats]) -> Floats:
    first, last = areas[0], areas[-1]
    high = np.maximum(first, last)
    ratio = np.divide(np.minimum(first, last), high, out=np.zeros_like(high), where=high != 0)
    return sum(areas, np.zeros_like(first)) / len(areas) * ratio
