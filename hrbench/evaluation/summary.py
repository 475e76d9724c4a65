"""The short report of an evaluation, the answer first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hrbench.evaluation.sheet import Grid, Sheet
from hrbench.metrics.alarms import FalseAlarms, drifted
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.detection import Detection
from hrbench.metrics.sizes import DISJOINT, quartile_edges, size_subsets
from hrbench.metrics.words import (
    alarms_text,
    budget_text,
    counted,
    odds_text,
    opening,
    range_text,
    rate_text,
    seen,
    sentence,
    size_text,
)

if TYPE_CHECKING:
    from hrbench.evaluation.result import Evaluation

__all__ = ["summary_of"]

_NOTHING = "–"


def summary_of(result: Evaluation) -> Sheet:
    """Return what is found at how many false alarms, by size and by budget, and whether promises were kept."""
    protocol, images = result.protocol, result.evidence.images
    good = int((images["label"] == 0).sum())
    if result.evidence.components.empty:
        return _without_masks(result)
    budgets = [*protocol.alarm.budgets] if good else []
    matched = {budget: result.detection(budget) for budget in budgets}
    automatic = None if result.threshold is None else result.detection(None)
    headline = matched.get(protocol.alarm.headline, automatic)
    if headline is None:
        answer = "How small a defect it finds cannot be said: there is neither a good image nor a threshold."
        if good:
            answer = (
                "How small a defect it finds is not said: the protocol has no budgets of false alarms, and there is no "
                "threshold; `detection(alarms=0.05)` tells it at any budget."
            )
    else:
        answer = sentence(headline)
    groups = result.evidence.groups
    title = _title(result, f"{good:,} good, {counted(len(result.evidence.components), 'defect')}")
    grids = [_by_size(result, bool(matched))]
    if matched:
        grids.append(_by_budget(result, matched))
    notes = [_threshold(result, automatic.alarms, automatic.false_per_pixel)] if automatic is not None else []
    if result.evidence.unmasked:
        notes.append(result.what_is_missing()[0])
    if automatic is None and result.evidence.calibration is not None:
        why = result.why_no_threshold()
        notes.append(f"{why[:1].upper()}{why[1:]}.")
    if headline is not None and headline.cautions:
        notes.append(f"With caution: {'; '.join(headline.cautions)}.")
    if not math.isnan(result.interval("aupro")[0]):
        notes.append(f"Four times as many {'images' if groups is None else 'groups'} would halve the intervals.")
    return Sheet(answer, title, grids, notes)


def _title(result: Evaluation, what: str) -> str:
    images, groups, protocol = result.evidence.images, result.evidence.groups, result.protocol
    drawn = "" if groups is None else f" in {counted(np.unique(groups).size, 'group')}"
    return f"{counted(len(images), 'image')}{drawn}, {what}, protocol {protocol.name} (version {protocol.version})"


def _without_masks(result: Evaluation) -> Sheet:
    """Return what there is to say where no mask shows a defect: which images alarm."""
    protocol, labels = result.protocol, result.evidence.images["label"].to_numpy()
    good, defective = int((labels == 0).sum()), int((labels == 1).sum())
    there = {(row.metric, row.fpr_limit) for row in result.values.itertuples()}
    alarms = FalseAlarms(round(good * result.value("alarms")), good) if good and result.threshold is not None else None
    budget, missing = protocol.alarm.headline, result.what_is_missing()
    if ("called_matched", budget) in there:
        called = round(defective * result.value("called_matched"))
        answer = f"{opening(budget, good)}, {called:,} of {counted(defective, 'defective image')} alarm."
    elif alarms is not None:
        answer = f"At the threshold {rate_text(alarms, protocol.bootstrap.level)}."
    elif result.threshold is not None:
        called = round(defective * result.value("called"))
        answer = f"At the threshold {called:,} of {counted(defective, 'defective image')} alarm."
    else:
        answer = "Nothing can be said of what alarms: there is no threshold" + " and no good image" * (not good) + "."
    level = f"{100 * protocol.bootstrap.level:g} % interval"
    names = {"image_auroc": "image ROC-AUC", "image_ap": "average precision of image scores"}
    rows = [
        [name, _number(result.value(metric), ".3f"), _interval(result.interval(metric), ".3f")]
        for metric, name in names.items()
        if metric in set(result.values["metric"])
    ]
    budgets = [
        [
            budget_text(budget),
            _number(result.value("called_matched", fpr_limit=budget), ".3f"),
            _interval(result.interval("called_matched", fpr_limit=budget), ".3f"),
        ]
        for budget in protocol.alarm.budgets
        if ("called_matched", budget) in there
    ]
    grids = [Grid(("", "value", level), rows)] * bool(rows)
    if budgets:
        grids.append(Grid(("false alarms per 100 good images", "defective images that alarm", level), budgets))
    notes = missing
    if alarms is not None:
        notes = [_threshold(result, alarms, float(result.value("fpr"))), *missing]
    return Sheet(answer, _title(result, f"{good:,} good, {defective:,} defective"), grids, notes)


def _by_size(result: Evaluation, matched: bool) -> Grid:
    protocol = result.protocol
    areas = result.evidence.components["area"].to_numpy()
    subsets = size_subsets(areas, protocol.size_bins)
    counts = [f"{subsets[name].sum():,}" for name in ("all", *DISJOINT)]
    *edges, largest = (
        f"{area:,.1f}".removesuffix(".0") for area in (*quartile_edges(areas, protocol.size_bins), areas.max())
    )
    rows = [
        ["defects", counts[0], "", *counts[1:], ""],
        ["area up to, px", largest, "", *edges, largest, ""],
        _metric(result, f"AUPRO up to FPR {protocol.headline_fpr:g}", "aupro", "rho"),
    ]
    found = result.values
    for subset in found.loc[found["metric"] == "spro", "subset"].unique():
        name = f"sPRO up to FPR {protocol.headline_fpr:g}" + ("" if subset == "all" else f", {subset}")
        interval = _interval(result.interval("spro", subset), METRICS["spro"].number)
        value = _number(result.value("spro", subset), METRICS["spro"].number)
        rows.append([name, value, interval, *[""] * (len(DISJOINT) + 1)])
    if matched:
        budget = budget_text(protocol.alarm.headline)
        rows.append(_metric(result, f"recall at {budget} alarms per 100", "recall_matched"))
        if protocol.alarm.summary:
            mean = ", ".join(map(budget_text, protocol.alarm.summary))
            rows.append(_metric(result, f"mean recall at {mean}", "mean_recall", "rho_recall"))
    elif result.threshold is not None:
        rows.append(_metric(result, f"recall at the {_name(result)}", "recall"))
    rows.append(_metric(result, "image ROC-AUC", "image_auroc"))
    return Grid(("", "all", f"{100 * protocol.bootstrap.level:g} % interval", *DISJOINT, "robustness"), rows)


def _metric(result: Evaluation, name: str, metric: str, robustness: str = "") -> list[str]:
    def text(metric: str, subset: str = "all") -> str:
        return _number(result.value(metric, subset), METRICS[metric].number)

    interval = _interval(result.interval(metric), METRICS[metric].number)
    sizes = [text(metric, subset) for subset in DISJOINT]
    return [name, text(metric), interval, *sizes, text(robustness) if robustness else ""]


def _number(value: float, number: str) -> str:
    return _NOTHING if math.isnan(value) else format(value, number)


def _interval(ends: tuple[float, float], number: str) -> str:
    low, high = ends
    return _NOTHING if math.isnan(low) else f"{low:{number}} to {high:{number}}"


def _by_budget(result: Evaluation, matched: dict[float, Detection]) -> Grid:
    level = f"{100 * result.protocol.bootstrap.level:g} % interval"
    rows = []
    for budget, found in matched.items():
        limit, interval = found.a90, seen(found.interval.get("bootstrap"), found.areas.tolist())
        known = limit.area is not None and interval is not None and math.isfinite(interval[0])
        rows.append(
            [
                budget_text(budget),
                f"{found.alarms.count:,} of {found.alarms.good:,}",
                _number(result.value("recall_matched", fpr_limit=budget), ".3f"),
                _interval(result.interval("recall_matched", fpr_limit=budget), ".3f"),
                limit.reason.partition(" (")[0] if limit.area is None else size_text(limit.area),
                range_text(*interval) if known and interval is not None else _NOTHING,
            ]
        )
    reliable = f"{odds_text(result.protocol.pod.probability)} found from"
    return Grid(("false alarms per 100 good images", "alarm", "recall", level, reliable, level), rows)


def _name(result: Evaluation) -> str:
    """Return what the threshold is called; one that was given has no rule behind it."""
    return "threshold" if result.threshold_given else result.protocol.threshold.name


def _threshold(result: Evaluation, alarms: FalseAlarms, false_per_pixel: float) -> str:
    """Say what was promised and what came of it."""
    rule, calibration = result.protocol.threshold, result.evidence.calibration
    level = result.protocol.bootstrap.level
    kind = "Promised threshold" if rule.rule == "conformal" and not result.threshold_given else "Threshold"
    text = f"{kind} {result.threshold:.4g}"
    achieved = rate_text(alarms, level) if alarms.good else "there is no good test image to see what came of it"
    if result.threshold_given or calibration is None:
        return f"{text}, as given: {achieved}."
    text += f", set on {counted(calibration.images, 'held-out normal image')}"
    if rule.rule == "mean+k*sigma":
        return f"{text}: {achieved}."
    promised, share = (rule.alarms, alarms.rate) if rule.rule == "conformal" else (rule.fpr, false_per_pixel)
    if rule.rule == "conformal":
        text += f": promised at most {alarms_text(promised)}; {achieved}."
        if drifted(alarms, calibration.images, promised, level):
            text += " DRIFT: more than promised, beyond chance; the good test images are unlike the held-out ones."
        return text
    return (
        f"{text}: promised at most {100 * promised:.3g} % of the normal pixels, "
        f"achieved {100 * share:.3g} %; {achieved}."
    )
