"""Every metric in one place: what it is, its exact value, and its value for weights on the images.

A new metric is one entry of :data:`CATALOGUE`. Rows of records, bootstrap intervals, comparisons and reports follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hrbench.metrics.alarms import FalseAlarms
from hrbench.metrics.aupimo import aupimo, drawn_aupimo
from hrbench.metrics.context import Context
from hrbench.metrics.curves import (
    UNDEFINED,
    Certified,
    binary_auroc,
    binary_average_precision,
    pixel_average_precision,
)
from hrbench.metrics.grouped import Groups, drawn_group_auroc, group_auroc
from hrbench.metrics.operating import (
    alarm_share,
    called_share,
    drawn_alarms,
    drawn_called,
    drawn_false_pixels,
    drawn_mean_recall,
    drawn_recall,
    drawn_right,
    false_alarms,
    false_pixels,
    mean_recall,
    recall,
    right_share,
)
from hrbench.metrics.robustness import drawn_robustness, size_robustness
from hrbench.metrics.segmentation import (
    AUTOMATIC,
    DECISION,
    MATCHED,
    ORACLE,
    OperatingPoint,
    Overlap,
    f1_of,
    oracle_iou,
    oracle_mean_iou,
)
from hrbench.metrics.sizes import SCHEMES, SizeScheme
from hrbench.metrics.spro import carrying_regions, drawn_spro, region_subsets, spro, spro_limits
from hrbench.metrics.weighted import Draw
from hrbench.protocol import SizeBins

__all__ = ["CATALOGUE", "METRICS", "Key", "Metric", "rows"]

Floats = npt.NDArray[np.float64]
Exact = Callable[[Context, str, float], Certified]
Weighted = Callable[[Draw, str, float], Floats]


class Key(NamedTuple):
    """What names a row of records: columns of the same names.

    `fpr_limit` is a share of normal pixels or, for metrics at equal false alarms, of good images; NaN for others.
    """

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
    by_size : bool
        Whether there is a row per size subset. Metrics of images group them by their largest component, see
        :attr:`hrbench.metrics.context.Context.image_subsets`.
    limits : {'', 'pixels', 'pixels or all', 'alarms'}
        Whether there is a row per FPR limit, and of what: shares of normal pixels up to which is integrated, these and
        1, or shares of the good images that may alarm.
    counts : {'components', 'regions', 'images', 'defective images', 'masked images', 'good images', 'groups'}
        What the records' `n` counts: components, or defective images, or those with a defect pixel, are those of the
        row's subset; images are all, but in a subset by size its defective ones, which are what may be few. A metric of
        regions has a row for each of their kinds, see :mod:`hrbench.metrics.spro`, and none without any; one of groups
        none where no images belong together.
    carriers : {'components', 'regions', 'masked images', 'labels', 'images', 'groups'}
        What must be many for an interval: the images with components or regions in the subset, those with their largest
        component there, the fewer of good images and the subset's, all images, or the fewer of good and defective
        groups.
    across : SizeScheme or None
        Whose subsets must all have carriers, for a metric that compares them.
    at : OperatingPoint or None
        Where pixels are predicted defective, for a metric of predictions.
    masks : bool
        Whether it takes masks; others are all that is measured without any.
    counted : callable or None
        From context and FPR limit to the false alarms that the metric is the share of: its interval is theirs.
    """

    key: str
    title: str
    exact: Exact
    weighted: Weighted
    better: Literal["higher", "lower"] = "higher"
    worst: float = 0.0
    number: str = ".3f"
    by_size: bool = False
    limits: Literal["", "pixels", "pixels or all", "alarms"] = ""
    counts: Literal["components", "regions", "images", "defective images", "masked images", "good images", "groups"] = (
        "components"
    )
    carriers: Literal["components", "regions", "masked images", "labels", "images", "groups"] = "components"
    across: SizeScheme | None = None
    at: OperatingPoint | None = None
    masks: bool = True
    counted: Callable[[Context, float], FalseAlarms | None] | None = None

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.better == "higher" else -1

    @property
    def of_pixels(self) -> bool:
        """Whether it leaves out the images whose masks are unknown."""
        return self.masks or self.carriers == "images"

    def n(self, context: Context, subset: str) -> int:
        """Count what a row rests on."""
        if self.counts == "components":
            return int(context.subsets[subset].sum())
        if self.counts == "regions":
            return sum(owners.size for owners in carrying_regions(context, subset))
        if self.counts == "good images":
            return int((context.labels == 0).sum())
        if self.counts == "groups":
            groups = context.once(Groups.of)
            return 0 if groups is None else groups.labels.size
        used = context.evidence.known if self.of_pixels else np.ones(context.labels.size, bool)
        if self.counts == "images" and subset == "all":
            return int(used.sum())
        members = context.image_subsets[subset] & used
        return int((members & (context.largest > 0) if self.counts == "masked images" else members).sum())


def rows(context: Context) -> Iterator[tuple[Metric, Key]]:
    """Yield the rows of a category under a protocol.

    Of the method's own decision there are some only where it takes one, and at equal alarms where the protocol has
    budgets. Without any defect component there are those that take no masks and have a value, or would have one if a
    threshold could be set.
    """
    if not context.areas.size:
        for metric, key in _rows(context):
            if key.subset == "all" and not metric.masks:
                undefined = math.isnan(metric.exact(context, key.subset, key.fpr_limit).value)
                if not undefined or (metric.at == AUTOMATIC and metric.n(context, "all")):
                    yield metric, key
    else:
        yield from _rows(context)


def _rows(context: Context) -> Iterator[tuple[Metric, Key]]:
    protocol = context.protocol
    limits = {"": (math.nan,), "pixels": protocol.fpr_limits, "alarms": protocol.alarm.budgets}
    limits["pixels or all"] = spro_limits(protocol)
    absent = set() if DECISION in context.overlaps else {DECISION}
    absent |= set() if protocol.alarm.summary else {MATCHED}
    for kind, metrics in groupby(CATALOGUE, lambda metric: metric.limits):
        group = [metric for metric in metrics if kind == "alarms" or metric.at not in absent]
        group = [metric for metric in group if metric.counts != "groups" or metric.n(context, "all")]
        for limit in limits[kind]:
            for metric in group:
                for subset in _subsets(context, metric):
                    yield metric, Key(metric.key, subset, limit)


def _subsets(context: Context, metric: Metric) -> Iterable[str]:
    if metric.counts == "regions":
        return region_subsets(context)
    return context.subsets if metric.by_size else ["all"]


def _of_images(function: Callable[[Floats, npt.NDArray[np.int64]], float]) -> Exact:
    def exact(context: Context, subset: str, _limit: float) -> Certified:
        members, good = context.image_subsets[subset], context.labels == 0
        used = members | good
        both = members.any() and good.any()
        return Certified.exactly(function(context.scores[used], context.labels[used])) if both else UNDEFINED

    return exact


def _robustness(
    scheme: SizeScheme,
    key: str,
    of: str,
    exact_of: Exact,
    weighted_of: Weighted,
    **fields: Any,
) -> Metric:
    """Return the robustness to size of another metric, which is called `of` in words."""

    def exact(context: Context, _subset: str, limit: float) -> Certified:
        names = scheme.names(context.protocol.size_bins)
        complete = all(context.subsets[name].any() for name in names)
        return size_robustness([exact_of(context, name, limit) for name in names]) if complete else UNDEFINED

    def weighted(draw: Draw, _subset: str, limit: float) -> Floats:
        names = scheme.names(draw.context.protocol.size_bins)
        return drawn_robustness([weighted_of(draw, name, limit) for name in names])

    first, *_, last = scheme.names(SizeBins())
    title = f"mean {of} of {first}..{last}, times the smaller over the larger of {first} and {last}"
    return Metric(key, f"Size robustness: {title}", exact, weighted, across=scheme, **fields)


def _iou(draw: Draw, overlap: Overlap, false: Floats) -> Floats:
    return draw.weights @ overlap.hits / (draw.weights @ (overlap.defect + false))


def _mean_iou(draw: Draw, overlap: Overlap, false: Floats, subset: str) -> Floats:
    members = draw.context.image_subsets[subset] & (overlap.defect > 0)
    weights = draw.weights[:, members]
    result: Floats = weights @ overlap.image_ious(false)[members] / weights.sum(axis=1)
    return result


def _mean_iou_of_all(draw: Draw, overlap: Overlap, false: Floats) -> Floats:
    ious, weights = overlap.image_ious(false), draw.weights
    if not overlap.known.all():
        ious, weights = ious[overlap.known], weights[:, overlap.known]
    result: Floats = weights @ ious / weights.sum(axis=1)
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
            masks=False,
        ),
        *_shares(at),
    ]


def _shares(at: OperatingPoint, limits: Literal["", "alarms"] = "") -> list[Metric]:
    """Return the shares of defects and of images that are found, or alarm, at an operating point."""
    fields: dict[str, Any] = {"at": at, "limits": limits}
    return [
        Metric(
            f"recall{at.suffix}", f"Share of the defects of which enough is predicted defective {at.where}",
            lambda context, subset, limit: recall(context, at, subset, limit),
            lambda draw, subset, limit: drawn_recall(draw, at, subset, limit), by_size=True, **fields,
        ),
        Metric(
            f"called{at.suffix}", f"Share of the defective images that alarm, wherever in the image, {at.where}",
            lambda context, subset, limit: called_share(context, at, subset, limit),
            lambda draw, subset, limit: drawn_called(draw, at, subset, limit), by_size=True,
            counts="defective images", carriers="labels", masks=False, **fields,
        ),
        Metric(
            f"called_right{at.suffix}", f"Share of the defective images that alarm for a defect of theirs {at.where}",
            lambda context, _, limit: right_share(context, at, limit),
            lambda draw, _, limit: drawn_right(draw, at, limit),
            counts="defective images", carriers="labels", **fields,
        ),
        Metric(
            f"alarms{at.suffix}", f"Share of the good images that alarm {at.where}",
            lambda context, _, limit: alarm_share(context, at, limit),
            lambda draw, _, limit: drawn_alarms(draw, at, limit),
            better="lower", worst=1.0, counts="good images", carriers="labels", masks=False,
            counted=lambda context, limit: false_alarms(context, at, limit), **fields,
        ),
    ]  # fmt: skip


def _matched() -> list[Metric]:
    """Return the metrics at equal false alarms: at each budget, and averaged over those of the summary."""
    over = "Mean share of the defects that are found, over budgets of false alarms:"

    def exact(context: Context, subset: str, _limit: float) -> Certified:
        return mean_recall(context, subset)

    def weighted(draw: Draw, subset: str, _limit: float) -> Floats:
        return drawn_mean_recall(draw, subset)

    return [
        *_shares(MATCHED, "alarms"),
        Metric(
            "fpr_matched", f"Share of normal pixels that are predicted defective {MATCHED.where}",
            lambda context, _, limit: false_pixels(context, limit),
            lambda draw, _, limit: drawn_false_pixels(draw, limit), better="lower", worst=1.0, number=".2g",
            counts="images", carriers="images", masks=False, at=MATCHED, limits="alarms",
        ),
        Metric("mean_recall", f"{over} as free-response curves are", exact, weighted, by_size=True, at=MATCHED),
        *(
            _robustness(scheme, scheme.robustness.replace("rho", "rho_recall"), "recall", exact, weighted, at=MATCHED)
            for scheme in SCHEMES
            if scheme.robustness
        ),
    ]  # fmt: skip


def _oracle_iou(context: Context) -> Certified:
    return oracle_iou(context.evidence)


def _aupro(context: Context, subset: str, limit: float) -> Certified:
    return context.aupro[limit][subset]


def _drawn_aupro(draw: Draw, subset: str, limit: float) -> Floats:
    return draw.aupro[limit][subset]


# fmt: off
CATALOGUE = (
    Metric(
        "image_auroc", "Area under the ROC curve of image scores",
        _of_images(binary_auroc), lambda draw, subset, _: draw.image_auroc[subset],
        by_size=True, counts="images", carriers="labels", masks=False,
    ),
    Metric(
        "image_ap", "Average precision of image scores",
        _of_images(binary_average_precision), lambda draw, *_: draw.image_average_precision(),
        counts="images", carriers="labels", masks=False,
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
        _aupro, _drawn_aupro, by_size=True, limits="pixels",
    ),
    *(
        _robustness(scheme, scheme.robustness, "AUPRO", _aupro, _drawn_aupro, limits="pixels")
        for scheme in SCHEMES
        if scheme.robustness
    ),
    Metric(
        "aupimo", "AUPIMO: mean share of an image's defect pixels that is found, averaged over the logarithm of "
        "false-positive rates of good images from 1e-5 to 1e-4",
        lambda context, subset, _: aupimo(context, subset), lambda draw, subset, _: draw.once(drawn_aupimo)[subset],
        by_size=True, counts="masked images", carriers="labels",
    ),
    *_predictions(AUTOMATIC),
    *_predictions(DECISION),
    *_matched(),
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
    Metric(
        "spro", "Saturated PRO: mean share that is found of what is enough of an annotated region, averaged over "
        "false-positive rates up to a limit", spro, drawn_spro,
        limits="pixels or all", counts="regions", carriers="regions",
    ),
    Metric(
        "group_auroc", "Area under the ROC curve of groups of images (one part's), by the highest score in each",
        lambda context, *_: group_auroc(context), lambda draw, *_: drawn_group_auroc(draw),
        counts="groups", carriers="groups", masks=False,
    ),
)
# fmt: on
"""All metrics in the order of their rows; neighbours with FPR limits take turns, limit by limit."""

METRICS = {metric.key: metric for metric in CATALOGUE}
"""The same by key."""
