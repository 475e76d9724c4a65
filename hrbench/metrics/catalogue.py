"""Every metric in one place: what it is, its exact value, and its value for weights on the images.

A new metric is one entry of :data:`CATALOGUE`. Rows of records, bootstrap intervals, comparisons and reports follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hrbench.metrics.aupimo import aupimo, drawn_aupimo
from hrbench.metrics.context import Context
from hrbench.metrics.curves import (
    UNDEFINED,
    Certified,
    binary_auroc,
    binary_average_precision,
    pixel_average_precision,
)
from hrbench.metrics.robustness import drawn_robustness, size_robustness
from hrbench.metrics.segmentation import (
    AUTOMATIC,
    DECISION,
    ORACLE,
    OperatingPoint,
    Overlap,
    f1_of,
    oracle_iou,
    oracle_mean_iou,
)
from hrbench.metrics.sizes import SCHEMES, SizeScheme
from hrbench.metrics.weighted import Draw
from hrbench.protocol import SizeBins

__all__ = ["CATALOGUE", "METRICS", "Key", "Metric", "rows"]

Floats = npt.NDArray[np.float64]
Exact = Callable[[Context, str, float], Certified]
Weighted = Callable[[Draw, str, float], Floats]


class Key(NamedTuple):
    """What names a row of records: columns of the same names; `fpr_limit` is NaN for metrics without one."""

    metric: str
    subset: str
    fpr_limit: float


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes
    ----------
    key : str
        Its name in records and in files; never changed.
    title : str
        One sentence.
    exact : callable
        From context, subset and FPR limit to the value, with the interval that provably holds it; NaN where undefined.
    weighted : callable
        From draw, subset and FPR limit to the values (B,) for the draw's weights: one for all gives `exact`.
    better : {'higher', 'lower'}
    worst : float
        The value that no method can be worse than.
    number : str
        Format of a printed value.
    by_size, by_limit : bool
        Whether there is a row per size subset, and per FPR limit. Metrics of images group them by their largest
        component, see :attr:`hrbench.metrics.context.Context.image_subsets`.
    counts : {'components', 'images', 'defective images', 'masked images'}
        What the records' `n` counts: components, or defective images, or those with a defect pixel, are those of the
        row's subset; images are all, but in a subset by size its defective ones, which are what may be few.
    carriers : {'components', 'masked images', 'labels', 'images'}
        What must be many for an interval: the images with components in the subset, those with their largest one
        there, the fewer of good images and the subset's, or all images.
    across : SizeScheme or None
        Whose subsets must all have carriers, for a metric that compares them.
    at : OperatingPoint or None
        Where pixels are predicted defective, for a metric of predictions.
    """

    key: str
    title: str
    exact: Exact
    weighted: Weighted
    better: Literal["higher", "lower"] = "higher"
    worst: float = 0.0
    number: str = ".3f"
    by_size: bool = False
    by_limit: bool = False
    counts: Literal["components", "images", "defective images", "masked images"] = "components"
    carriers: Literal["components", "masked images", "labels", "images"] = "components"
    across: SizeScheme | None = None
    at: OperatingPoint | None = None

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.better == "higher" else -1

    def n(self, context: Context, subset: str) -> int:
        """Count what a row rests on."""
        if self.counts == "components":
            return int(context.subsets[subset].sum())
        if self.counts == "images" and subset == "all":
            return context.labels.size
        members = context.image_subsets[subset]
        return int((members & (context.largest > 0) if self.counts == "masked images" else members).sum())


def rows(context: Context) -> Iterator[tuple[Metric, Key]]:
    """Yield the rows of a category under a protocol; of the method's own decision only where it takes one."""
    for by_limit, metrics in groupby(CATALOGUE, lambda metric: metric.by_limit):
        group = [metric for metric in metrics if metric.at is not DECISION or DECISION in context.overlaps]
        for limit in context.protocol.fpr_limits if by_limit else [float("nan")]:
            for metric in group:
                for subset in context.subsets if metric.by_size else ["all"]:
                    yield metric, Key(metric.key, subset, limit)


def _of_images(function: Callable[[Floats, npt.NDArray[np.int64]], float]) -> Exact:
    def exact(context: Context, subset: str, _limit: float) -> Certified:
        members, good = context.image_subsets[subset], context.labels == 0
        used = members | good
        both = members.any() and good.any()
        return Certified.exactly(function(context.scores[used], context.labels[used])) if both else UNDEFINED

    return exact


def _robustness(scheme: SizeScheme) -> Metric:
    def exact(context: Context, _subset: str, limit: float) -> Certified:
        names = scheme.names(context.protocol.size_bins)
        complete = all(context.subsets[name].any() for name in names)
        return size_robustness([context.aupro[limit][name] for name in names]) if complete else UNDEFINED

    def weighted(draw: Draw, _subset: str, limit: float) -> Floats:
        return drawn_robustness([draw.aupro[limit][name] for name in scheme.names(draw.context.protocol.size_bins)])

    first, *_, last = scheme.names(SizeBins())
    title = f"mean AUPRO of {first}..{last}, times the smaller over the larger of {first} and {last}"
    return Metric(scheme.robustness, f"Size robustness: {title}", exact, weighted, by_limit=True, across=scheme)


def _iou(draw: Draw, overlap: Overlap, false: Floats) -> Floats:
    return draw.weights @ overlap.hits / (draw.weights @ (overlap.defect + false))


def _mean_iou(draw: Draw, overlap: Overlap, false: Floats, subset: str) -> Floats:
    members = draw.context.image_subsets[subset] & (overlap.defect > 0)
    weights = draw.weights[:, members]
    result: Floats = weights @ overlap.image_ious(false)[members] / weights.sum(axis=1)
    return result


def _mean_iou_of_all(draw: Draw, overlap: Overlap, false: Floats) -> Floats:
    result: Floats = draw.weights @ overlap.image_ious(false) / draw.weights.sum(axis=1)
    return result


def _f1(iou: Floats) -> Floats:
    return 2 * iou / (1 + iou)


def _predictions(at: OperatingPoint) -> list[Metric]:
    """Return the metrics of what is predicted defective at an operating point."""

    def metric(
        name: str,
        title: str,
        of: Callable[[Overlap], Certified],
        of_draw: Callable[[Draw, Overlap, Floats], Floats],  # also given an end of the false positives per image
        **fields: Any,
    ) -> Metric:
        def exact(context: Context, _subset: str, _limit: float) -> Certified:
            overlap = context.overlaps[at]
            return UNDEFINED if overlap is None else of(overlap)

        def weighted(draw: Draw, _subset: str, _limit: float) -> Floats:
            overlap = draw.context.overlaps[at]
            if overlap is None:
                return draw.undefined
            low, high = (of_draw(draw, overlap, false) for false in (overlap.false_low, overlap.false_high))
            return (low + high) / 2

        return Metric(f"{name}{at.suffix}", f"{title} {at.where}", exact, weighted, at=at, **fields)

    def recall(context: Context, subset: str, _limit: float) -> Certified:
        hits, members = context.hits[at], context.subsets[subset]
        return UNDEFINED if hits is None or not members.any() else Certified.exactly(float(hits[members].mean()))

    def mean_iou(context: Context, subset: str, _limit: float) -> Certified:
        overlap = context.overlaps[at]
        if overlap is None or not (members := context.image_subsets[subset] & (overlap.defect > 0)).any():
            return UNDEFINED
        return overlap.mean_iou(members)

    def drawn_mean_iou(draw: Draw, subset: str, _limit: float) -> Floats:
        overlap = draw.context.overlaps[at]
        if overlap is None:
            return draw.undefined
        low, high = (_mean_iou(draw, overlap, false, subset) for false in (overlap.false_low, overlap.false_high))
        return (low + high) / 2

    with_good = "Mean IoU over all images, a good one counting 1 if nothing is predicted in it, as in U-Flow's paper,"
    return [
        metric("iou", "Pooled intersection over union", Overlap.iou, _iou, counts="images"),
        Metric(
            f"miou{at.suffix}",
            f"Mean IoU over the defective images, {at.where}",
            mean_iou,
            drawn_mean_iou,
            by_size=True,
            counts="masked images",
            carriers="masked images",
            at=at,
        ),
        metric("miou_all", with_good, lambda o: o.mean_iou(good=True), _mean_iou_of_all, counts="images"),
        metric("f1", "Pooled F1 (Dice)", Overlap.f1, lambda *of: _f1(_iou(*of)), counts="images"),
        metric(
            "fpr",
            "Share of normal pixels that are predicted defective",
            Overlap.fpr,
            lambda draw, _, false: draw.weights @ false / draw.normal,
            better="lower",
            worst=1.0,
            number=".2g",
            counts="images",
            carriers="images",
        ),
        Metric(
            f"recall{at.suffix}",
            f"Share of the defects of which enough is predicted defective {at.where}",
            recall,
            lambda draw, subset, _: draw.recall[at][subset],
            by_size=True,
            at=at,
        ),
    ]


def _oracle_iou(context: Context) -> Certified:
    return oracle_iou(context.evidence)


# fmt: off
CATALOGUE = (
    Metric(
        "image_auroc", "Area under the ROC curve of image scores",
        _of_images(binary_auroc), lambda draw, subset, _: draw.image_auroc[subset],
        by_size=True, counts="images", carriers="labels",
    ),
    Metric(
        "image_ap", "Average precision of image scores",
        _of_images(binary_average_precision), lambda draw, *_: draw.image_average_precision(),
        counts="images", carriers="labels",
    ),
    Metric(
        "pixel_auroc", "Area under the ROC curve of all native pixels; says little about small defects",
        lambda context, subset, _: context.pixel_auroc.mean(context.subsets[subset], context.areas.astype(np.float64)),
        lambda draw, subset, _: draw.pixel_auroc[subset], by_size=True,
    ),
    Metric(
        "pixel_ap", "Average precision of all native pixels",
        lambda context, *_: pixel_average_precision(context.evidence), lambda draw, *_: draw.pixel_average_precision(),
    ),
    Metric(
        "aupro", "Mean share of a defect that is found, averaged over false-positive rates up to a limit",
        lambda context, subset, limit: context.aupro[limit][subset],
        lambda draw, subset, limit: draw.aupro[limit][subset], by_size=True, by_limit=True,
    ),
    *(_robustness(scheme) for scheme in SCHEMES if scheme.robustness),
    Metric(
        "aupimo", "AUPIMO: mean share of an image's defect pixels that is found, averaged over the logarithm of "
        "false-positive rates of good images from 1e-5 to 1e-4",
        lambda context, subset, _: aupimo(context, subset), lambda draw, subset, _: draw.once(drawn_aupimo)[subset],
        by_size=True, counts="masked images", carriers="labels",
    ),
    *_predictions(AUTOMATIC),
    *_predictions(DECISION),
    Metric(
        "iou_oracle", f"Pooled intersection over union {ORACLE.where}",
        lambda context, *_: context.once(_oracle_iou), lambda draw, *_: draw.once(Draw.oracle_iou),
        counts="images", at=ORACLE,
    ),
    Metric(
        "f1_oracle", f"Pooled F1 (Dice) {ORACLE.where}",
        lambda context, *_: f1_of(context.once(_oracle_iou)), lambda draw, *_: _f1(draw.once(Draw.oracle_iou)),
        counts="images", at=ORACLE,
    ),
    Metric(
        "miou_oracle", f"Mean IoU over the defective images {ORACLE.where}",
        lambda context, *_: oracle_mean_iou(context.evidence), lambda draw, *_: draw.oracle_mean_iou(),
        counts="defective images", at=ORACLE,
    ),
)
# fmt: on
"""All metrics in the order of their rows; neighbours with FPR limits take turns, limit by limit."""

METRICS = {metric.key: metric for metric in CATALOGUE}
"""The same by key."""
