"""The columns of every table, and how a number is written."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from hrbench.metrics import CUMULATIVE, DISJOINT
from hrbench.protocol import Protocol
from hrbench.report.configurations import COSTS, THROUGHPUT
from hrbench.report.summary import MIN_COMPONENTS, NO_ESTIMATE, SIZED, Estimate, Estimates

__all__ = [
    "Column",
    "MetricFacts",
    "category_columns",
    "cost_columns",
    "error_text",
    "limit_text",
    "metric_facts",
    "number_text",
    "overview_columns",
    "size_columns",
    "size_text",
    "text_column",
    "why_missing",
]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table, mostly of one metric.

    Attributes
    ----------
    key : str
        Name in the CSV file.
    group, head : str
        Upper and lower line of the heading; columns of one group stand side by side.
    metric : str
        "" for a column of other texts.
    subset : str
    limit : float or None
        FPR limit.
    title : str
        One sentence of explanation.
    line : str
        The heading in one line.
    count : str
        What the page adds to the heading, e.g. the number of defects.
    contest : bool
        Whether the best value is emphasised.
    interval : bool
        Whether tables print the interval below the value; elsewhere it would only make them wide.
    least : bool
        Whether small is good, so that sorting starts with the smallest.
    text : bool
        Whether it holds names, and not numbers.
    """

    key: str
    group: str
    head: str
    metric: str = ""
    subset: str = "all"
    limit: float | None = None
    title: str = ""
    line: str = ""
    count: str = ""
    contest: bool = True
    interval: bool = False
    least: bool = False
    text: bool = False

    @property
    def one_line(self) -> str:
        """The heading for formats that have one line for it."""
        return self.line or f"{self.group} {self.head}".strip()

    def estimate(self, estimates: Estimates, configuration: int, category: str = "") -> Estimate:
        """Return the number of a configuration in a category, or on average (``""``); an empty one if absent."""
        limit = None if self.limit is None else round(self.limit, 9)
        return estimates.get((configuration, category, self.metric, self.subset, limit), NO_ESTIMATE)


@dataclasses.dataclass(frozen=True)
class MetricFacts:
    """What the report must know of a metric.

    Attributes
    ----------
    title : str
        One sentence of explanation.
    write : callable
        How a value of it is written.
    contest, least : bool
        Whether the best is emphasised, and whether small is good.
    """

    title: str = ""
    write: Callable[[float], str] = "{:.3f}".format
    contest: bool = True
    least: bool = False


def _cost_text(value: float) -> str:
    """Write a cost with three digits."""
    return "0" if value <= 0 else f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


_AUTO, _OWN, _ORACLE = "at the automatic threshold", "at the method's own decision", "best in hindsight"
_MEAN_IOU, _DICE = "Mean IoU over the defective images", "Pooled F1 (Dice)"
_WITH_GOOD = "Mean IoU over all images, a good one counting 1 if nothing is predicted in it, as in U-Flow's paper"
_RECALL = "Share of the defects of which enough is predicted defective"
_NORMAL = "Share of normal pixels predicted defective"
_IMAGE_TIME = "per image: its share of the forward passes, merging and finishing its map; not decoding"
_PEAK = "Most memory that the process took while it predicted the test images, libraries and evidence included"

_TITLES = {
    "image_auroc": "Area under the ROC curve of image scores",
    "pixel_auroc": "Area under the ROC curve of all native pixels; says little about small defects",
    "image_ap": "Average precision of image scores",
    "pixel_ap": "Average precision of all native pixels",
    "rho": "Size robustness: mean AUPRO of q1..q4, times the smaller over the larger of q1 and q4",
    "rho_disjoint": "Size robustness with the disjoint quarters in place of the cumulative ones",
    "iou": "Pooled intersection over union at the threshold set on held-out normal images",
    "miou": f"{_MEAN_IOU}, {_AUTO}",
    "miou_all": f"{_WITH_GOOD}, {_AUTO}",
    "f1": f"{_DICE} {_AUTO}",
    "recall": f"{_RECALL} {_AUTO}",
    "fpr": f"{_NORMAL} {_AUTO}",
    "iou_decision": f"Pooled IoU {_OWN}",
    "miou_decision": f"{_MEAN_IOU}, {_OWN}",
    "miou_all_decision": f"{_WITH_GOOD}, {_OWN}",
    "recall_decision": f"{_RECALL} {_OWN}",
    "fpr_decision": f"{_NORMAL} {_OWN}",
    "iou_oracle": "Pooled intersection over union at the best threshold in hindsight: an upper limit, not a result",
    "miou_oracle": f"{_MEAN_IOU}, {_ORACLE}",
    "f1_oracle": f"{_DICE}, {_ORACLE}",
    THROUGHPUT: "Native megapixels per second, on the device named in the method card",
    "ms_median": f"Median {_IMAGE_TIME}",
    "ms_p95": f"95 % of the images take at most this {_IMAGE_TIME}",
    "peak_device_mib": "Most memory that tensors took on the device during prediction",
    "peak_host_mib": _PEAK,
}


def metric_facts(metric: str) -> MetricFacts:
    """Return the facts of a metric by its key; costs are metrics, too."""
    title = _TITLES.get(metric, "")
    if metric in COSTS:
        return MetricFacts(title, _cost_text, contest=False, least=metric != THROUGHPUT)
    if metric in ("fpr", "fpr_decision"):
        return MetricFacts(title, "{:.2g}".format, contest=False, least=True)
    return MetricFacts(title)


def _column(
    metric: str, group: str, head: str, *, key: str = "", subset: str = "all", title: str = "", line: str = "",
    limit: float | None = None, interval: bool = False,
) -> Column:  # fmt: skip
    """Return the column of a metric."""
    facts = metric_facts(metric)
    return Column(
        key or metric, group, head, metric, subset, limit, title or facts.title, line,
        contest=facts.contest, interval=interval, least=facts.least,
    )  # fmt: skip


def text_column(key: str, head: str, title: str, *, line: str = "", text: bool = True) -> Column:
    """Return a column that holds no metric: names, or with `text` false counts."""
    return Column(key, "", head, title=title, line=line, contest=False, text=text)


def limit_text(limit: float) -> str:
    """Write an FPR limit as on the page: ``0.05``, ``0.3``."""
    return f"{limit:g}"


def size_text(subset: str) -> str:
    """Write the name of a size subset: ``d8-16`` as ``8–16``, ``tiny`` as it is."""
    if not re.match(r"d[<>\d]", subset):
        return subset
    return subset[1:].replace(">=", "≥ ").replace("<", "< ").replace("-", "–")


def _auroc() -> list[Column]:
    return [_column("image_auroc", "ROC-AUC", "image"), _column("pixel_auroc", "ROC-AUC", "pixel")]


def _aupro(protocol: Protocol) -> list[Column]:
    title = "Mean share of a defect that is found, averaged over false-positive rates up to {}"
    columns = []
    for limit in protocol.fpr_limits:
        text, headline = limit_text(limit), limit == protocol.headline_fpr
        columns.append(
            _column(
                "aupro", "AUPRO up to FPR", text, key=f"aupro@{text}", line=f"AUPRO@{text}", limit=limit,
                title=title.format(text) + ("; the ranking uses this one" if headline else ""), interval=headline,
            )
        )  # fmt: skip
    return columns


def _rho(protocol: Protocol) -> Column:
    limit = protocol.headline_fpr
    return _column("rho", "robust", "ρ", key=f"rho@{limit_text(limit)}", line="ρ", limit=limit, interval=True)


def size_columns(protocol: Protocol, subsets: Sequence[str], group: str = "") -> list[Column]:
    """Return AUPRO at the headline limit for each of the size `subsets`."""
    limit = protocol.headline_fpr
    name = limit_text(limit)
    return [
        _column(
            "aupro", group or f"AUPRO@{name} by defect size", size_text(subset), key=f"aupro@{name}_{subset}",
            line=size_text(subset), subset=subset, limit=limit, title=_size_title(subset),
        )
        for subset in subsets
    ]  # fmt: skip


def _size_title(subset: str) -> str:
    if subset in DISJOINT:
        place = ("smallest", "second", "third", "largest")[DISJOINT.index(subset)]
        return f"The {place} quarter of the defects of each category, by area"
    if subset in CUMULATIVE:
        quarters = CUMULATIVE.index(subset) + 1
        return "All defects" if quarters == 4 else f"The smallest {quarters * 25} % of the defects, by area"
    return "Defects of this equivalent diameter in pixels, 2·sqrt(area/π)"


def _speed() -> Column:
    return _column(THROUGHPUT, "speed", "Mpx/s", line="Mpx/s")


def cost_columns() -> list[Column]:
    """Return the columns of what prediction costs: one for each of :data:`hrbench.report.configurations.COSTS`."""
    return [
        dataclasses.replace(_speed(), line=""),
        _column("ms_median", "ms per image", "median"),
        _column("ms_p95", "ms per image", "95 %"),
        _column("peak_device_mib", "peak memory, MiB", "device"),
        _column("peak_host_mib", "peak memory, MiB", "host"),
    ]


def overview_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of the table that a leaderboard opens with."""
    iou = [_column("iou", "IoU", "auto"), _column("iou_oracle", "IoU", "oracle*")]
    return [*_auroc(), *_aupro(protocol), _rho(protocol), *size_columns(protocol, DISJOINT), *iou, _speed()]


def category_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of one category's table (the sizes have a table of their own)."""
    auto, own, oracle = _AUTO, _OWN, "oracle*"
    return [
        *_auroc(),
        _column("image_ap", "AP", "image"),
        _column("pixel_ap", "AP", "pixel"),
        *_aupro(protocol),
        _rho(protocol),
        _column("rho_disjoint", "robust", "ρ′", limit=protocol.headline_fpr),
        _column("iou", auto, "IoU"),
        _column("miou", auto, "mean IoU"),
        _column("miou_all", auto, "with good"),
        _column("f1", auto, "F1"),
        *_recall("recall", auto),
        _column("fpr", auto, "FPR"),
        _column("iou_decision", own, "IoU"),
        _column("miou_decision", own, "mean IoU"),
        _column("miou_all_decision", own, "with good"),
        *_recall("recall_decision", own),
        _column("fpr_decision", own, "FPR"),
        _column("iou_oracle", oracle, "IoU"),
        _column("miou_oracle", oracle, "mean IoU"),
        _column("f1_oracle", oracle, "F1"),
        _speed(),
    ]


def _recall(metric: str, where: str) -> list[Column]:
    smallest = f"{metric_facts(metric).title}: the smallest quarter of each category, by area"
    return [
        _column(metric, where, "recall"),
        _column(metric, where, "of tiny", key=f"{metric}_tiny", subset="tiny", title=smallest),
    ]


def number_text(metric: str, value: float) -> str:
    """Write a value as its metric is written; an en dash for what is not there."""
    return "–" if math.isnan(value) else metric_facts(metric).write(value)


def error_text(error: float) -> str:
    """Write an error bound with one digit, rounded up: a bound that rounds down is none."""
    if math.isnan(error):
        return ""
    if error <= 0:
        return "0"
    power = math.floor(math.log10(error))
    digit = math.ceil(round(error / 10**power, 9))
    return f"1e{power + 1}" if digit == 10 else f"{digit}e{power}"


def why_missing(column: Column, estimate: Estimate) -> str:
    """Say why there is no number."""
    if estimate.few:
        return f"only {estimate.n} defect{'s' * (estimate.n > 1)}, no number below {MIN_COMPONENTS}"
    if column.metric in COSTS:
        return "not measured"
    if estimate.total == 0:
        own = column.metric.endswith("_decision")
        return "the method takes no decision of its own" if own else "not measured"
    if column.metric in SIZED and estimate.n == 0:
        return "no defect of this size"
    if column.metric in ("iou", "miou", "miou_all", "f1", "fpr", "recall"):
        return "no automatic threshold: no held-out normal images"
    return "undefined here"
