"""Detection limits as a report says them: the smallest defect that is reliably found, and at how many false calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hrbench.metrics import equivalent_diameter
from hrbench.metrics.detection import Detection, DetectionLimit
from hrbench.protocol import Detectability, Protocol
from hrbench.report.rows import leaderboard_rows
from hrbench.report.summary import Summary

__all__ = [
    "LimitCell",
    "LimitTable",
    "Reliability",
    "detection_limit_text",
    "limit_names",
    "limit_overview",
    "limit_table",
    "unreached",
]

_CONSTRUCTIONS = {"firth": "Firth logistic", "ml": "maximum-likelihood logistic"}
_NO_THRESHOLD = "no operating threshold: no held-out normal images"


@dataclasses.dataclass(frozen=True)
class Reliability:
    """The hit/miss analysis of a configuration in a category.

    Attributes
    ----------
    detection : Detection or None
        None where there is no operating threshold.
    seed : int
        Of the run it belongs to: the lowest one.
    """

    detection: Detection | None
    seed: int


Reliabilities = Mapping[tuple[str, str, int], Reliability]


@dataclasses.dataclass(frozen=True)
class LimitCell:
    """One cell: text, small print, tooltip, sort key ("" for the end) and marks of footnotes."""

    text: str
    below: str = ""
    title: str = ""
    sort: str = ""
    marks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class LimitTable:
    """Detection limits of the configurations in a category, or of one kind over the categories.

    Attributes
    ----------
    heads : list of (str, str, str)
        Of each column: group, heading and explanation.
    rows : list of (dict, list of LimitCell)
        Row of the leaderboard, and its cells.
    notes : list of str
        Footnotes, numbered from 1.
    remarks : list of str
        What stands below the table in sentences.
    """

    heads: list[tuple[str, str, str]]
    rows: list[tuple[dict[str, Any], list[LimitCell]]]
    notes: list[str]
    remarks: list[str]


def limit_names(pod: Detectability) -> tuple[str, str, str]:
    """Return the names of the limits: ``a50``, ``a90``, ``a90/95``."""
    reliable = f"a{100 * pod.probability:g}"
    return "a50", reliable, f"{reliable}/{100 * pod.level:g}"


def unreached(limit: DetectionLimit) -> bool:
    """Tell a limit that lies beyond what was seen from one that cannot be estimated."""
    return limit.area is None and limit.reason.startswith("not reached")


def detection_limit_text(limit: DetectionLimit) -> str:
    """Write a limit in one line: ``312 px``, ``not reached``, ``not estimable``."""
    return limit.reason.partition(" (")[0] if limit.area is None else _pixels(limit.area)


def _pixels(area: float) -> str:
    return f"{area:,.0f} px" if area >= 9.95 else f"{area:.1f} px"


def limit_table(known: Reliabilities, summary: Summary, dataset: str, category: str) -> LimitTable | None:
    """Return the limits in one category with all that belongs to them; None without any evidence."""
    rows, silent, lost = _sort_out(known, summary, dataset, category)
    if not rows and not silent:
        return None
    a50, a90, a90_95 = limit_names(summary.protocol.pod)
    pod, rule = summary.protocol.pod, summary.protocol.threshold
    confidence = f"With {100 * pod.level:g} % confidence at most this: "
    heads = [
        ("area found with probability", a50, "Half of the defects of this area are found"),
        ("area found with probability", a90, f"{100 * pod.probability:g} % of the defects of this area are found"),
        (f"{a90_95}, upper limit of {a90}", "profile", confidence + "profile likelihood, the headline"),
        (f"{a90_95}, upper limit of {a90}", "images", confidence + "bootstrap over images, which share their fate"),
        ("defects", "hit", f"At least {100 * pod.share:g} % of the defect is at or above the threshold"),
        ("false calls", "good images", "Share of the good test images with a pixel at or above the threshold"),
        ("false calls", "normal pixels", f"Share of all normal test pixels; the rule is {_rule(summary.protocol)}"),
    ]
    notes: list[str] = []
    lines = []
    for row, found in rows:
        marks = []
        for caution in found.cautions:
            if caution not in notes:
                notes.append(caution)
            marks.append(notes.index(caution) + 1)
        lines.append((row, _cells(found, tuple(marks))))
    remarks = []
    if lines:
        used = {_CONSTRUCTIONS[found.method] for _, found in rows if found.method != "none"}
        if used:
            remarks.append(f"{' and '.join(sorted(used))} regression of hit on ln(area); {a90_95}: profile likelihood.")
        remarks.append(f"Operating threshold: {rule.rule}, set on held-out normal images only.")
        if seeds := _seeds(known, summary, dataset, category):
            remarks.append(seeds)
    return LimitTable(heads, lines, notes, remarks + _absent(silent, lost))


def limit_overview(known: Reliabilities, summary: Summary, dataset: str) -> LimitTable | None:
    """Return the upper limits of all categories side by side; None without any, or for a single category."""
    categories = summary.category_names(dataset)
    keys = [key for key, entry in known.items() if key[0] == dataset and entry.detection is not None]
    if len(categories) < 2 or not keys:
        return None
    name = limit_names(summary.protocol.pod)[2]
    lines = []
    for row in leaderboard_rows(summary, dataset):
        cells = []
        for category in categories:
            entry = known.get((dataset, category, row["configuration"]))
            if entry is None:
                cells.append(LimitCell("–", title="no run, or its evidence is gone"))
            elif entry.detection is None:
                cells.append(LimitCell("–", title=_NO_THRESHOLD))
            else:
                cells.append(_limit_cell(entry.detection.a90_95))
        lines.append((row, cells))
    heads = [(name, category, f"{name} in {category}") for category in categories]
    remarks = ["False calls and cautions belong to every figure: see the categories. No average: thresholds differ."]
    silent = [row["short"] for row, cells in lines if all(cell.title == _NO_THRESHOLD for cell in cells)]
    return LimitTable(heads, lines, [], remarks + _absent(silent, []))


def _sort_out(
    known: Reliabilities, summary: Summary, dataset: str, category: str
) -> tuple[list[tuple[dict[str, Any], Detection]], list[str], list[str]]:
    """Return rows with an analysis, and the labels of those without threshold and without evidence."""
    rows, silent, lost = [], [], []
    for row in leaderboard_rows(summary, dataset):
        if category in row["missing"]:
            continue
        entry = known.get((dataset, category, row["configuration"]))
        if entry is None:
            lost.append(row["short"])
        elif entry.detection is None:
            silent.append(row["short"])
        else:
            rows.append((row, entry.detection))
    return rows, silent, lost


def _absent(silent: Sequence[str], lost: Sequence[str]) -> list[str]:
    texts = []
    if silent:
        texts.append(
            f"No operating threshold, hence neither hits nor misses: {', '.join(silent)}. It is set on normal images "
            "that were held out; finished maps need maps of such images beside them."
        )
    if lost:
        texts.append(f"Evidence is gone: {', '.join(lost)}.")
    return texts


def _seeds(known: Reliabilities, summary: Summary, dataset: str, category: str) -> str:
    """Say which seed stands for its configuration where there are several."""
    runs = summary.runs
    runs = runs[(runs["dataset"] == dataset) & (runs["category"] == category)]
    if runs.groupby("configuration")["seed"].nunique().max() < 2:
        return ""
    shown = {known[key].seed for row in runs["configuration"] if (key := (dataset, category, row)) in known}
    seeds = ", ".join(str(seed) for seed in sorted(shown))
    return f"Of several seeds the lowest one stands here (seed {seeds}): hits of different seeds are not independent."


def _rule(protocol: Protocol) -> str:
    rule = protocol.threshold
    value = f"a share of {rule.fpr:g}" if rule.rule == "normal-quantile" else f"k = {rule.k:g}"
    return f"{rule.rule} with {value} on held-out normal images"


def _cells(found: Detection, marks: tuple[int, ...]) -> list[LimitCell]:
    upper = _limit_cell(found.a90_95)
    bootstrap = found.upper.get("bootstrap")
    few = LimitCell("–", title="no bootstrap: too few images with defects, or no draws")
    hits, number = int(found.hits.sum()), found.hits.size
    return [
        _limit_cell(found.a50),
        _limit_cell(found.a90),
        dataclasses.replace(upper, marks=marks),
        few if bootstrap is None else _limit_cell(bootstrap),
        LimitCell(f"{hits:,} / {number:,}", title=f"{hits:,} of {number:,} defects hit", sort=str(hits)),
        _share(found.false_per_image, "of the good test images with a pixel predicted defective"),
        _share(found.false_per_pixel, "of the normal test pixels predicted defective"),
    ]


def _limit_cell(limit: DetectionLimit) -> LimitCell:
    if limit.area is None:
        text, _, why = limit.reason.partition(" (")
        title = limit.reason
        if math.isfinite(limit.estimate):
            title += f"; the curve, extrapolated, would reach it at {_pixels(limit.estimate)}: not a result"
        return LimitCell(text, why.removesuffix(")"), title)
    across = f"{float(equivalent_diameter(limit.area)):.1f} px"
    title = f"{limit.area:.6g} px, the area of a circle {across} across"
    return LimitCell(_pixels(limit.area), f"⌀ {across}", title, repr(limit.area))


def _share(value: float, what: str) -> LimitCell:
    if math.isnan(value):
        return LimitCell("–", title="no good test image")
    return LimitCell(f"{100 * value:.3g} %", title=f"{100 * value:.6g} % {what}", sort=repr(value))
