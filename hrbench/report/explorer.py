"""What the page needs to be explored: what tells rows apart, every number once, and paired differences.

The page filters by facets of the rows, ranks by any metric and compares any two rows: see ``explorer.js``. Matrices of
differences and the table of categories stand in it without any script.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from hrbench.metrics.catalogue import METRICS
from hrbench.protocol import Protocol
from hrbench.report.columns import in_words, limit_text, metric_facts, number_text, size_text, subset_title
from hrbench.report.configurations import COSTS, Configuration
from hrbench.report.pairs import MOST_PAIRED, Pairs, compact, compare_rows, key_text, matrices
from hrbench.report.summary import NO_ESTIMATE, Leaderboard, Row, Summary

__all__ = [
    "Heat",
    "board_data",
    "exploration",
    "facets",
    "heat",
    "json_text",
    "page_parts",
    "page_rows",
]

_NAMES = {
    "image_auroc": "image ROC-AUC", "image_ap": "image AP", "pixel_auroc": "pixel ROC-AUC", "pixel_ap": "pixel AP",
    "aupro": "AUPRO", "rho": "ρ, robustness to size", "rho_disjoint": "ρ′, the same of disjoint quarters",
    "group_auroc": "ROC-AUC of groups", "spro": "sPRO",
    "aupimo": "AUPIMO", "iou": "IoU", "miou": "mean IoU", "miou_all": "mean IoU with good images", "f1": "F1",
    "fpr": "FPR", "recall": "recall", "called": "defective images called", "called_right": "images called rightly",
    "alarms": "good images that alarm", "mean_recall": "mean recall", "rho_recall": "ρ of recall",
    "rho_recall_disjoint": "ρ′ of recall", "megapixels_per_second": "megapixels per second",
    "ms_median": "ms per image, median", "ms_p95": "ms per image, 95 %", "peak_device_mib": "MiB on the device",
    "peak_host_mib": "MiB on the host",
}  # fmt: skip
_FIRST = ("aupro", "recall_matched", "mean_recall", "rho", "image_auroc")


def json_text(data: Any) -> Markup:
    """Return JSON that may stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _slugs(names: Sequence[str]) -> list[str]:
    """Return a word for each name that an address can hold, no two alike."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "row"
        same = sum(other == plain or other.startswith(f"{plain}~") for other in found)
        found.append(f"{plain}~{same + 1}" if same else plain)
    return found


# ---- what tells rows apart ------------------------------------------------------------------------------------------


def _configurations(summary: Summary) -> list[Configuration]:
    every = {row.configuration.number: row.configuration for board in summary.leaderboards for row in board.rows}
    return [every[number] for number in sorted(every)]


def _facets_of(of: Configuration) -> dict[str, str]:
    return {"method": of.title, "view": of.view_text, "weights": of.weights_text}


def facets(summary: Summary) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what rows can be filtered by: method, view, weights, dataset, where there are several.

    Returns
    -------
    list of (str, list of (str, str))
        Of each facet its name, and the word and the text of each of its values.
    """
    rows = [_facets_of(of) for of in _configurations(summary)]
    values = {name: list(dict.fromkeys(row[name] for row in rows)) for name in ("method", "view", "weights")}
    values["dataset"] = [board.dataset for board in summary.leaderboards]
    return [
        (name, list(zip(_slugs(texts), texts, strict=True)))
        for name, texts in ((name, sorted(texts)) for name, texts in values.items())
        if len(texts) > 1
    ]


def page_parts(summary: Summary, anchors: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
    """Return the datasets, with the numbers of their rows, and categories that a search can be for.

    Parameters
    ----------
    summary : Summary
    anchors : sequence of (str, sequence of str)
        Of each dataset its anchor and those of its categories.
    """
    names = [board.dataset for board in summary.leaderboards]
    slugs = dict(zip(sorted(names), _slugs(sorted(names)), strict=True))
    parts: list[dict[str, Any]] = []
    for board, (anchor, inner) in zip(summary.leaderboards, anchors, strict=True):
        name, rows = board.dataset, [row.configuration.number for row in board.rows]
        parts.append({"kind": "dataset", "id": anchor, "name": name, "slug": slugs[name], "rows": rows})
        parts += [{"kind": "category", "id": i, "name": n} for n, i in zip(board.categories, inner, strict=True)]
    return parts


def page_rows(summary: Summary) -> list[dict[str, Any]]:
    """Return of every configuration its number, its word for the address, the words of its facets, and its text."""
    words = {name: {text: slug for slug, text in values} for name, values in facets(summary)}
    every = _configurations(summary)
    rows = []
    for of, slug in zip(every, _slugs([of.short for of in every]), strict=True):
        mine = _facets_of(of)
        chips = {name: words[name][text] for name, text in mine.items() if name in words}
        text = " ".join([of.label, of.method, of.preset_text, of.view_text, of.weights_text]).lower()
        look = {"colour": of.look.colour}
        rows.append({"number": of.number, "name": of.short, "slug": slug, "chips": chips, "text": text, **look})
    return rows


# ---- every number once ----------------------------------------------------------------------------------------------


def metric_name(metric: str, protocol: Protocol) -> str:
    """Return a short name of a metric, or of a cost."""
    if metric not in METRICS:
        return _NAMES.get(metric, metric)
    at = METRICS[metric].at
    base = metric.removesuffix(at.suffix) if at else metric
    name = _NAMES.get(base, base)
    return f"{name} {in_words(at.where, protocol).partition(':')[0]}" if at else name


def _limit_name(metric: str, limit: float | None) -> str:
    if limit is None:
        return ""
    alarms = metric in METRICS and METRICS[metric].limits == "alarms"
    return f"{100 * limit:g} false alarms per 100" if alarms else f"FPR {limit_text(limit)}"


def _size_name(subset: str) -> str:
    text = size_text(subset)
    if text != subset:
        return f"{text} px across"
    return f"{text}, cumulative" if re.fullmatch(r"q\d", subset) else text


def exploration(board: Leaderboard) -> dict[str, Any] | None:
    """Return what the page's partial ``explorer.html`` shows of a dataset; None where there is nothing to compare."""
    if len(board.rows) < 2:
        return None
    paired = compare_rows(board)
    count = len(board.categories)
    scope = f"Means over {count} categories. " if count > 1 else ""
    scope += f"The best {MOST_PAIRED} of {len(board.rows)} rows." if len(board.rows) > MOST_PAIRED else ""
    return {
        "data": json_text(board_data(board, paired)),
        "paired": () if paired is None else paired.rows,
        "matrices": [] if paired is None else matrices(paired),
        "heat": heat(board),
        "scope": scope.strip(),
        "numbers": {row.configuration.short: row.configuration.number for row in board.rows},
    }


def board_data(board: Leaderboard, paired: Pairs | None) -> dict[str, Any]:
    """Return every number of a dataset for the page's script."""
    categories, rules = board.categories, board.protocol
    keys: dict[str, dict[tuple[str, float | None], None]] = {}
    for number, _, metric, subset, limit in board.estimates:
        if (metric in METRICS or metric in COSTS) and number >= 0:
            keys.setdefault(metric, {})[subset, limit] = None
    order = {metric: place for place, metric in enumerate([*METRICS, *COSTS])}
    metrics, values = [], {}
    for metric in sorted(keys, key=lambda m: (_FIRST.index(m) if m in _FIRST else len(_FIRST), order[m])):
        kept = {}
        for subset, limit in keys[metric]:
            numbers = _numbers(board, categories, metric, subset, limit)
            if any(value is not None for value in numbers["mean"]):
                kept[subset, limit] = key_text(metric, subset, limit)
                values[kept[subset, limit]] = numbers
        if not kept:
            continue
        facts = metric_facts(metric)
        limits: list[float | None] = [*sorted({limit for _, limit in kept if limit is not None})] or [None]
        subsets = dict.fromkeys(subset for subset, _ in kept)
        metrics.append({
            "key": metric, "name": metric_name(metric, rules), "title": in_words(facts.title, rules),
            "least": facts.least, "form": "cost" if metric in COSTS else METRICS[metric].number,
            "limits": [["" if limit is None else f"@{limit:g}", _limit_name(metric, limit)] for limit in limits],
            "sizes": [["" if name == "all" else f"_{name}", _size_name(name), subset_title(metric, name, rules)]
                      for name in subsets],
        })  # fmt: skip
    start = key_text("aupro", "all", rules.headline_fpr)
    if start not in values:
        start = next(iter(values), "")
    return {
        "start": start,
        "level": rules.bootstrap.level,
        "categories": [{"name": name} for name in categories],
        "rows": [
            {"number": row.configuration.number, "ranked": not (row.missing or row.foreign)} for row in board.rows
        ],
        "metrics": metrics,
        "values": values,
        "pairs": None if paired is None else paired.data(),
    }  # fmt: skip


def _numbers(
    board: Leaderboard, categories: Sequence[str], metric: str, subset: str, limit: float | None
) -> dict[str, Any]:
    """Return mean, ends of its interval and, row by row, the value in each category."""
    found: dict[str, Any] = {"mean": [], "low": [], "high": [], "each": []}
    for row in board.rows:
        number = row.configuration.number
        mean = board.estimates.get((number, "", metric, subset, limit), NO_ESTIMATE)
        found["mean"].append(compact(mean.shown))
        for name in ("low", "high"):
            found[name].append(compact(getattr(mean, name)) if mean.has_interval else None)
        each = (board.estimates.get((number, name, metric, subset, limit), NO_ESTIMATE) for name in categories)
        found["each"].append([compact(estimate.shown) for estimate in each])
    if all(end is None for end in found["low"]):
        del found["low"], found["high"]
    return found


# ---- categories -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Heat:
    """The headline of each row in each category.

    Attributes
    ----------
    name : str
        The metric.
    rows : list of (Row, list of (str, float or None))
        Text and place between the lowest and the highest number, 0 to 1.
    """

    name: str
    rows: list[tuple[Row, list[tuple[str, float | None]]]]


def heat(board: Leaderboard) -> Heat | None:
    """Return AUPRO at the headline limit, row by row in each category; None with a single category."""
    if len(board.categories) < 2:
        return None
    protocol = board.protocol
    limit = round(protocol.headline_fpr, 9)
    values = np.array([
        [board.estimates.get((row.configuration.number, name, "aupro", "all", limit), NO_ESTIMATE).shown
         for name in board.categories]
        for row in board.rows
    ])  # fmt: skip
    if np.isnan(values).all():
        return None
    low, high = float(np.nanmin(values)), float(np.nanmax(values))

    def cell(value: float) -> tuple[str, float | None]:
        place = None if math.isnan(value) else (value - low) / (high - low) if high > low else 0.5
        return number_text("aupro", value), place

    rows = [(row, [cell(float(value)) for value in line]) for row, line in zip(board.rows, values, strict=True)]
    return Heat(f"AUPRO@{limit_text(protocol.headline_fpr)}", rows)
