"""The columns of every table, and how a number is written."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

from hrbench.metrics import DISJOINT
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.segmentation import AUTOMATIC, DECISION, ORACLE, OperatingPoint
from hrbench.metrics.sizes import size_title
from hrbench.metrics.spro import KINDS, spro_limits
from hrbench.protocol import Protocol
from hrbench.report.configurations import COSTS, THROUGHPUT
from hrbench.report.summary import MIN_COMPONENTS, NO_ESTIMATE, SIZED, Estimate, Estimates

__all__ = [
    "Column",
    "MetricFacts",
    "category_columns",
    "cost_columns",
    "error_text",
    "image_columns",
    "in_words",
    "limit_text",
    "matched_columns",
    "metric_facts",
    "number_text",
    "overview_columns",
    "region_columns",
    "size_columns",
    "size_text",
    "subset_title",
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
    """A metric's title, how a value is written, if the best is emphasised, and if small is good."""

    title: str = ""
    write: Callable[[float], str] = "{:.3f}".format
    contest: bool = True
    least: bool = False


def _cost_text(value: float) -> str:
    """Write a cost with three digits."""
    return "0" if value <= 0 else f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


_IMAGE_TIME = "per image: its share of the forward passes, merging and finishing its map; not decoding"
_COST_TITLES = {
    THROUGHPUT: "Native megapixels per second, on the device named in the method card",
    "ms_median": f"Median {_IMAGE_TIME}",
    "ms_p95": f"95 % of the images take at most this {_IMAGE_TIME}",
    "peak_device_mib": "Most memory that tensors took on the device during prediction",
    "peak_host_mib": "Most memory that the process took while it predicted the test images, libraries and evidence "
    "included",
}


def metric_facts(metric: str) -> MetricFacts:
    """Return the facts of a metric by its key: the catalogue's, or those of a cost."""
    if metric in COSTS:
        return MetricFacts(_COST_TITLES[metric], _cost_text, contest=False, least=metric != THROUGHPUT)
    if metric not in METRICS:
        return MetricFacts()
    entry = METRICS[metric]
    least = entry.better == "lower"  # false positives: whoever predicts nothing would win by them
    return MetricFacts(entry.title, lambda value: format(value, entry.number), contest=not least, least=least)


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
    columns = []
    for limit in protocol.fpr_limits:
        text, headline = limit_text(limit), limit == protocol.headline_fpr
        columns.append(
            _column(
                "aupro", "AUPRO up to FPR", text, key=f"aupro@{text}", line=f"AUPRO@{text}", limit=limit,
                title=f"{metric_facts('aupro').title} of {text}" + "; the ranking uses this one" * headline,
                interval=headline,
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
            line=size_text(subset), subset=subset, limit=limit, title=size_title(subset, protocol.size_bins),
        )
        for subset in subsets
    ]  # fmt: skip


def subset_title(metric: str, subset: str, protocol: Protocol) -> str:
    """Return one sentence about a subset of a metric."""
    if metric not in METRICS or METRICS[metric].counts != "regions":
        return size_title(subset, protocol.size_bins)
    if subset == "all":
        return f"The mean of {' and '.join(KINDS.values())} anomalies where these are told apart, else all regions"
    return f"Regions of {subset} anomalies, and false positives in their images and in good ones"


def region_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of sPRO at the headline limit, of all regions and of each kind, and at the other limits."""
    headline, group = protocol.headline_fpr, "sPRO up to FPR"
    asked = [(headline, "all"), *((headline, kind) for kind in KINDS.values())]
    asked += [(limit, "all") for limit in spro_limits(protocol) if limit != headline]
    columns = []
    for limit, subset in asked:
        text, behind = limit_text(limit), "" if subset == "all" else f" {subset}"
        columns.append(
            _column(
                "spro", group, text + behind, key=f"spro@{text}{behind.replace(' ', '_')}", line=f"sPRO@{text}{behind}",
                limit=limit, subset=subset, interval=limit == headline and subset == "all",
                title=f"{metric_facts('spro').title} of {text}. {subset_title('spro', subset, protocol)}",
            )
        )  # fmt: skip
    return columns


def _speed() -> Column:
    return _column(THROUGHPUT, "speed", "Mpx/s", line="Mpx/s")


def in_words(text: str, protocol: Protocol) -> str:
    """Return what the catalogue says of a metric, with the threshold by the name that the protocol's rule gives it."""
    return text.replace(AUTOMATIC.where, f"at the {protocol.threshold.name}")


def _named(columns: Iterable[Column], protocol: Protocol) -> list[Column]:
    return [
        dataclasses.replace(column, group=in_words(column.group, protocol), title=in_words(column.title, protocol))
        for column in columns
    ]


def cost_columns() -> list[Column]:
    """Return the columns of what prediction costs: one for each of :data:`hrbench.report.configurations.COSTS`."""
    return [
        dataclasses.replace(_speed(), line=""),
        _column("ms_median", "ms per image", "median"),
        _column("ms_p95", "ms per image", "95 %"),
        _column("peak_device_mib", "peak memory, MiB", "device"),
        _column("peak_host_mib", "peak memory, MiB", "host"),
    ]


def overview_columns(protocol: Protocol, regions: Sequence[Column] = ()) -> list[Column]:
    """Return the columns of the table that a leaderboard opens with; `regions` are those of sPRO where there is any."""
    own = "promised" if protocol.threshold.rule == "conformal" else "threshold"
    iou = [_column("iou", "IoU", own), _column("iou_oracle", "IoU", "oracle*")]
    sizes = size_columns(protocol, DISJOINT)
    return _named([*_auroc(), *_aupro(protocol), *regions, _rho(protocol), *sizes, *iou, _speed()], protocol)


def image_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of what takes no masks: which images alarm, at equal false alarms and at the threshold."""
    at = protocol.alarm
    called = [
        _column(
            "called_matched", "defective images called at false alarms per 100", f"{100 * budget:g}",
            key=f"called_matched@{limit_text(budget)}", line=f"called@{limit_text(budget)}", limit=budget,
            interval=budget == at.headline,
        )
        for budget in at.summary or at.budgets
    ]  # fmt: skip
    own = [_column(name, AUTOMATIC.where, name, line=name, interval=name == "alarms") for name in ("called", "alarms")]
    image = [_column("image_auroc", "image", "ROC-AUC", interval=True), _column("image_ap", "image", "AP")]
    image.append(_column("group_auroc", "groups", "ROC-AUC", interval=True))
    return _named([*image, *called, *own, _speed()], protocol)


def category_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of one category's table (the sizes have a table of their own)."""
    columns = [
        *_auroc(),
        _column("group_auroc", "ROC-AUC", "groups"),
        _column("image_ap", "AP", "image"),
        _column("pixel_ap", "AP", "pixel"),
        *_aupro(protocol),
        _rho(protocol),
        _column("rho_disjoint", "robust", "ρ′", limit=protocol.headline_fpr),
        *region_columns(protocol),
        _column("aupimo", "per image", "AUPIMO", line="AUPIMO", interval=True),
        *_predictions(AUTOMATIC, AUTOMATIC.where, ("iou", "miou", "miou_all", "f1", "recall", "fpr")),
        *_predictions(DECISION, DECISION.where, ("iou", "miou", "miou_all", "recall", "fpr")),
        *_predictions(ORACLE, "oracle*", ("iou", "miou", "f1")),
        _speed(),
    ]
    return _named(columns, protocol)


def matched_columns(protocol: Protocol) -> list[Column]:
    """Return the columns of what is found at equal false alarms, budget by budget, and at the promised threshold."""
    columns = [_column(metric, AUTOMATIC.where, metric) for metric in ("alarms", "called", "called_right")]
    for budget in protocol.alarm.budgets:
        at = f"@{limit_text(budget)}"
        columns.append(_column("a90_matched", at, "a90", key=f"a90_matched{at}_px", limit=budget))
        columns += _by_size("recall_matched", at, budget)
        for metric in ("called_matched", "called_right_matched", "alarms_matched"):
            columns.append(_column(metric, at, metric, key=f"{metric}{at}", limit=budget))
    if protocol.alarm.summary:
        columns += [*_by_size("mean_recall"), _column("rho_recall", "", "rho_recall")]
    return _named(columns, protocol)


def _by_size(metric: str, at: str = "", limit: float | None = None) -> list[Column]:
    """Return the columns of all defects and of each quarter by area."""
    names = {"all": f"{metric}{at}"} | {subset: f"{metric}{at}_{subset}" for subset in DISJOINT}
    return [_column(metric, at, subset, key=key, subset=subset, limit=limit) for subset, key in names.items()]


def _predictions(at: OperatingPoint, group: str, metrics: Sequence[str]) -> list[Column]:
    heads = {"iou": "IoU", "miou": "mean IoU", "miou_all": "with good", "f1": "F1", "recall": "recall", "fpr": "FPR"}
    columns = []
    for metric in metrics:
        key = metric + at.suffix
        columns.append(_column(key, group, heads[metric]))
        if metric == "recall":
            smallest = f"{metric_facts(key).title}: the smallest quarter of each category, by area"
            columns.append(_column(key, group, "of tiny", key=f"{key}_tiny", subset="tiny", title=smallest))
    return columns


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
    entry = METRICS.get(column.metric)
    at = entry.at if entry else None
    if estimate.few:
        what = "defect" if entry is None or entry.counts == "components" else "defective image"
        return f"only {estimate.n} {what}{'s' * (estimate.n > 1)}, no number below {MIN_COMPONENTS}"
    if estimate.untimed:
        return f"left out because {estimate.untimed}"
    if column.metric in COSTS:
        return "not measured"
    if estimate.total == 0:
        return "the method takes no decision of its own" if at == DECISION else "not measured"
    if column.metric in SIZED and estimate.n == 0:
        return "no defect of this size"
    if column.metric == "aupimo":
        return "no good images, or too few pixels in them for a false-positive rate of 1e-5"
    if at == AUTOMATIC:
        return "no such threshold: no held-out normal images, or too few"
    return "undefined here"
