"""The columns of every table, and how a number is written."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from hrbench.metrics import CUMULATIVE, DISJOINT
from hrbench.protocol import Protocol
from hrbench.report.configurations import COSTS, THROUGHPUT
from hrbench.report.summary import MIN_COMPONENTS, SIZED, Cell, Cells

__all__ = [
    "Column",
    "best_two",
    "category_columns",
    "cost_columns",
    "error_text",
    "limit_text",
    "number_text",
    "overview_columns",
    "size_columns",
    "size_text",
    "why_missing",
]


@dataclasses.dataclass(frozen=True)
class Column:
    """One metric as a column.

    Attributes
    ----------
    key : str
        Name in the CSV file.
    group, head : str
        Upper and lower line of the heading; columns of one group stand side by side.
    metric, subset : str
    limit : float or None
        FPR limit.
    title : str
        One sentence of explanation.
    contest : bool
        Whether the best value is emphasised.
    interval : bool
        Whether tables print the interval below the value; elsewhere it would only make them wide.
    least : bool
        Whether small is good, so that sorting starts with the smallest.
    """

    key: str
    group: str
    head: str
    metric: str
    subset: str = "all"
    limit: float | None = None
    title: str = ""
    contest: bool = True
    interval: bool = False
    least: bool = False

    def cell(self, cells: Cells, configuration: int, category: str = "") -> Cell:
        """Return the cell of a configuration in a category, or on average (``""``); empty if absent."""
        limit = None if self.limit is None else round(self.limit, 9)
        return cells.get((configuration, category, self.metric, self.subset, limit), Cell())


def limit_text(limit: float) -> str:
    """Write an FPR limit as on the page: ``0.05``, ``0.3``."""
    return f"{limit:g}"


def size_text(subset: str) -> str:
    """Write the name of a size subset: ``d8-16`` as ``8–16``, ``tiny`` as it is."""
    if not re.match(r"d[<>\d]", subset):
        return subset
    return subset[1:].replace(">=", "≥ ").replace("<", "< ").replace("-", "–")


def _auroc() -> list[Column]:
    pixel = "Area under the ROC curve of all native pixels; says little about small defects"
    return [
        Column("image_auroc", "ROC-AUC", "image", "image_auroc", title="Area under the ROC curve of image scores"),
        Column("pixel_auroc", "ROC-AUC", "pixel", "pixel_auroc", title=pixel),
    ]


def _aupro(protocol: Protocol) -> list[Column]:
    return [
        Column(
            f"aupro@{limit_text(limit)}",
            "AUPRO up to FPR",
            limit_text(limit),
            "aupro",
            limit=limit,
            title="Mean share of a defect that is found, averaged over false-positive rates up to "
            + limit_text(limit)
            + ("; the ranking uses this one" if limit == protocol.headline_fpr else ""),
            interval=limit == protocol.headline_fpr,
        )
        for limit in protocol.fpr_limits
    ]


def _rho(protocol: Protocol) -> Column:
    limit = protocol.headline_fpr
    title = "Size robustness: mean AUPRO of q1..q4, times the smaller over the larger of q1 and q4"
    return Column(f"rho@{limit_text(limit)}", "robust", "ρ", "rho", limit=limit, title=title, interval=True)


def size_columns(protocol: Protocol, subsets: Sequence[str], group: str = "") -> list[Column]:
    """Return AUPRO at the headline limit for each of the size `subsets`."""
    limit = protocol.headline_fpr
    group = group or f"AUPRO@{limit_text(limit)} by defect size"
    return [
        Column(
            f"aupro@{limit_text(limit)}_{subset}",
            group,
            size_text(subset),
            "aupro",
            subset,
            limit,
            _size_title(subset),
        )
        for subset in subsets
    ]


def _size_title(subset: str) -> str:
    if subset in DISJOINT:
        place = ("smallest", "second", "third", "largest")[DISJOINT.index(subset)]
        return f"The {place} quarter of the defects of each category, by area"
    if subset in CUMULATIVE:
        quarters = CUMULATIVE.index(subset) + 1
        return "All defects" if quarters == 4 else f"The smallest {quarters * 25} % of the defects, by area"
    return "Defects of this equivalent diameter in pixels, 2·sqrt(area/π)"


def _iou() -> list[Column]:
    auto = "Pooled intersection over union at the threshold set on held-out normal images"
    oracle = "Pooled intersection over union at the best threshold in hindsight: an upper limit, not a result"
    return [
        Column("iou", "IoU", "auto", "iou", title=auto),
        Column("iou_oracle", "IoU", "oracle*", "iou_oracle", title=oracle),
    ]


def _speed() -> Column:
    title = "Native megapixels per second, on the device named in the method card"
    return Column(THROUGHPUT, "speed", "Mpx/s", THROUGHPUT, title=title, contest=False)


def cost_columns() -> list[Column]:
    """Return the columns of what prediction costs: one for each of :data:`hrbench.report.configurations.COSTS`."""
    image = "per image: its share of the forward passes, merging and finishing its map; not decoding"
    peaks = "Most memory that the process took while it predicted the test images"
    costs = (
        ("speed", "Mpx/s", _speed().title),
        ("ms per image", "median", f"Median {image}"),
        ("ms per image", "95 %", f"95 % of the images take at most this {image}"),
        ("peak memory, MiB", "device", "Most memory that tensors took on the device during prediction"),
        ("peak memory, MiB", "host", f"{peaks}, libraries and evidence included"),
    )
    return [
        Column(name, group, head, name, title=title, contest=False, least=name != THROUGHPUT)
        for name, (group, head, title) in zip(COSTS, costs, strict=True)
    ]


def overview_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of the table that a leaderboard opens with."""
    sizes = size_columns(protocol, DISJOINT)
    return [*_auroc(), *_aupro(protocol), _rho(protocol), *sizes, *_iou(), _speed()]


def category_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of one category's table (the sizes have a table of their own)."""
    limit = protocol.headline_fpr
    auroc = _auroc()
    precision = "Average precision"
    disjoint = "Size robustness with the disjoint quarters in place of the cumulative ones"
    mean_iou, dice = "Mean IoU over the defective images", "Pooled F1 (Dice)"
    with_good = "Mean IoU over all images, a good one counting 1 if nothing is predicted in it, as in U-Flow's paper"
    auto, own = "at the automatic threshold", "at the method's own decision"
    normal = "Share of normal pixels predicted defective at the"
    return [
        *auroc,
        Column("image_ap", "AP", "image", "image_ap", title=f"{precision} of image scores"),
        Column("pixel_ap", "AP", "pixel", "pixel_ap", title=f"{precision} of all native pixels"),
        *_aupro(protocol),
        _rho(protocol),
        Column("rho_disjoint", "robust", "ρ′", "rho_disjoint", limit=limit, title=disjoint),
        Column("iou", auto, "IoU", "iou", title=_iou()[0].title),
        Column("miou", auto, "mean IoU", "miou", title=f"{mean_iou}, at the automatic threshold"),
        Column("miou_all", auto, "with good", "miou_all", title=f"{with_good}, at the automatic threshold"),
        Column("f1", auto, "F1", "f1", title=f"{dice} at the automatic threshold"),
        *_recall("recall", auto),
        Column("fpr", auto, "FPR", "fpr", title=f"{normal} the automatic threshold", contest=False, least=True),
        Column("iou_decision", own, "IoU", "iou_decision", title=f"Pooled IoU {own}"),
        Column("miou_decision", own, "mean IoU", "miou_decision", title=f"{mean_iou}, {own}"),
        Column("miou_all_decision", own, "with good", "miou_all_decision", title=f"{with_good}, {own}"),
        *_recall("recall_decision", own),
        Column("fpr_decision", own, "FPR", "fpr_decision", title=f"{normal} own decision", contest=False, least=True),
        Column("iou_oracle", "oracle*", "IoU", "iou_oracle", title=_iou()[1].title),
        Column("miou_oracle", "oracle*", "mean IoU", "miou_oracle", title=f"{mean_iou}, best in hindsight"),
        Column("f1_oracle", "oracle*", "F1", "f1_oracle", title=f"{dice}, best in hindsight"),
        _speed(),
    ]


def _recall(metric: str, where: str) -> list[Column]:
    title = f"Share of the defects of which enough is predicted defective {where}"
    smallest = f"{title}: the smallest quarter of each category, by area"
    return [
        Column(metric, where, "recall", metric, title=title),
        Column(f"{metric}_tiny", where, "of tiny", metric, "tiny", title=smallest),
    ]


def number_text(column: Column, value: float) -> str:
    """Write a value: three decimals, costs with three digits, an en dash for what is not there."""
    if math.isnan(value):
        return "–"
    if column.metric.startswith("fpr"):
        return f"{value:.2g}"
    if column.metric not in COSTS:
        return f"{value:.3f}"
    if value <= 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def error_text(error: float) -> str:
    """Write an error bound with one digit, rounded up: a bound that rounds down is none."""
    if math.isnan(error):
        return ""
    if error <= 0:
        return "0"
    power = math.floor(math.log10(error))
    digit = math.ceil(round(error / 10**power, 9))
    return f"1e{power + 1}" if digit == 10 else f"{digit}e{power}"


def why_missing(column: Column, cell: Cell) -> str:
    """Say why a cell holds no number."""
    if cell.few:
        return f"only {cell.n} defect{'s' * (cell.n > 1)}, no number below {MIN_COMPONENTS}"
    if column.metric in COSTS:
        return "not measured"
    if cell.total == 0:
        own = column.metric.endswith("_decision")
        return "the method takes no decision of its own" if own else "not measured"
    if column.metric in SIZED and cell.n == 0:
        return "no defect of this size"
    if column.metric in ("iou", "miou", "miou_all", "f1", "fpr", "recall"):
        return "no automatic threshold: no held-out normal images"
    return "undefined here"


def best_two(column: Column, values: list[float]) -> tuple[str, str]:
    """Return best and second best as printed, so that equal prints are equally emphasised; "" for none."""
    if not column.contest or len([v for v in values if not math.isnan(v)]) < 2:
        return "", ""
    printed = sorted({number_text(column, v) for v in values if not math.isnan(v)}, key=float, reverse=True)
    return printed[0], printed[1] if len(printed) > 1 else ""
