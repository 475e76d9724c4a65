"""How far the rows of a leaderboard lie from its first one, on the same images in every bootstrap replicate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.metrics import DISJOINT
from hrbench.metrics.bootstrap import Replicates, average, paired_difference
from hrbench.metrics.words import alarms_text
from hrbench.protocol import Protocol
from hrbench.report.columns import limit_text
from hrbench.report.configurations import CountedRun
from hrbench.report.summary import Leaderboard, Row

__all__ = ["Difference", "Differences", "pair_sentence", "paired_differences", "row_replicates", "ties"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference to the first row in one metric, and its interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Differences:
    """The comparison of a leaderboard's rows with the first one.

    Attributes
    ----------
    first : Row
    metrics : tuple of str
        What each line compares, in words; the quarters by their names.
    heading : str
        What it is that quarters are compared by.
    rows : list of (Row, sequence of Difference or None)
        Of each other row that shares its images the difference in each of the metrics, its value minus that of the
        first row; None where one of them was not measured.
    """

    first: Row
    metrics: tuple[str, ...]
    heading: str
    rows: list[tuple[Row, list[Difference | None]]]


def paired_differences(board: Leaderboard, category: str = "") -> Differences | None:
    """Compare all rows with the first one in a category, or on average (``""``); None without common replicates.

    A row takes part if its runs kept replicates over the same images.
    """
    protocol = board.protocol
    rows = [row for row in board.rows if category not in row.missing and not row.foreign]
    rows = rows if category else [row for row in rows if not row.missing]
    found = [(row, row_replicates(row, protocol, category)) for row in rows]
    kept = [(row, part) for row, part in found if part is not None]
    if len(kept) < 2 or kept[0][0] is not board.rows[0]:
        return None
    (first, reference), *others = kept
    lines = _lines(protocol)
    compared: list[tuple[Row, list[Difference | None]]] = []
    for row, part in others:
        try:
            table = paired_difference(part, reference, level=protocol.bootstrap.level)
        except HrbenchError:  # other images
            continue
        compared.append((row, [_entry(table, *key) for key in lines.values()]))
    present = [any(entries[place] is not None for _, entries in compared) for place in range(len(lines))]
    if not any(present):
        return None
    metrics = tuple(name for name, there in zip(lines, present, strict=True) if there)
    compared = [
        (row, [entry for entry, there in zip(entries, present, strict=True) if there]) for row, entries in compared
    ]
    return Differences(first, metrics, f"recall at {100 * protocol.alarm.headline:g} per 100, by size", compared)


def ties(
    board: Leaderboard, best: Row, rows: Sequence[Row], key: tuple[str, str, float | None], category: str = ""
) -> set[int]:
    """Return which rows are not told from the `best` one in a category, or on average (``""``).

    Parameters
    ----------
    board : Leaderboard
    best : Row
    rows : sequence of Row
    key : (str, str, float or None)
        Metric, subset and limit.
    category : str

    Returns
    -------
    set of int
        Numbers of the configurations for which the interval of the paired difference holds zero; those without
        replicates over the same images are none of them.
    """
    protocol, found = board.protocol, set[int]()
    reference = row_replicates(best, protocol, category)
    for row in rows:
        part = row_replicates(row, protocol, category)
        if row is best or part is None or reference is None:
            continue
        try:
            table = paired_difference(part, reference, level=protocol.bootstrap.level)
        except HrbenchError:  # other images
            continue
        entry = _entry(table, *key)
        if entry is not None and entry.low <= 0 <= entry.high:
            found.add(row.configuration.number)
    return found


def pair_sentence(board: Leaderboard, first: Row, second: Row, category: str = "") -> str:
    """Say whether two rows can be told apart by recall at the headline's false alarms, and by AUPRO.

    Parameters
    ----------
    board : Leaderboard
    first, second : Row
    category : str
        Their average over all categories by default.

    Returns
    -------
    str
        "" where there is no interval in either: without replicates over the same images.
    """
    protocol = board.protocol
    parts = [row_replicates(row, protocol, category) for row in (first, second)]
    if parts[0] is None or parts[1] is None:
        return ""
    try:
        table = paired_difference(parts[0], parts[1], level=protocol.bootstrap.level)
    except HrbenchError:  # other images
        return ""
    lines: dict[str, tuple[str, str, float | None]] = {}
    if protocol.alarm.budgets:
        lines[f"recall at {alarms_text(protocol.alarm.headline)}"] = "recall_matched", "all", protocol.alarm.headline
    lines[f"AUPRO@{limit_text(protocol.headline_fpr)}"] = "aupro", "all", protocol.headline_fpr
    a, b = first.configuration.short, second.configuration.short
    said: list[str] = []
    level = f"{100 * protocol.bootstrap.level:g} % interval"
    for name, key in lines.items():
        entry = _entry(table, *key)
        if entry is None or np.isnan(entry.low):
            continue
        verdict = f"{a if entry.low > 0 else b} is better"
        if entry.low <= 0 <= entry.high:
            verdict = "they cannot be told apart"
        minus = "" if said else f"{a} minus {b} "
        said.append(f"in {name} {verdict} ({minus}{entry.value:+.3f}, {level} {entry.low:+.3f} to {entry.high:+.3f})")
    return f"{a} and {b} on the same images: {'; '.join(said)}." if said else ""


def _lines(protocol: Protocol) -> dict[str, tuple[str, str, float | None]]:
    """Return metric, subset and limit of each line, by what it is called."""
    rules = protocol.alarm
    lines: dict[str, tuple[str, str, float | None]] = {
        f"AUPRO@{limit_text(protocol.headline_fpr)}": ("aupro", "all", protocol.headline_fpr)
    }
    if rules.summary:
        lines["mean recall"] = ("mean_recall", "all", None)
    if rules.budgets:
        at = f"recall at {100 * rules.headline:g} per 100"
        lines[f"{at}, all"] = ("recall_matched", "all", rules.headline)
        lines |= {name: ("recall_matched", name, rules.headline) for name in DISJOINT}
    lines["image ROC-AUC"] = ("image_auroc", "all", None)  # kept where there are no masks
    if rules.budgets:
        lines[f"called at {100 * rules.headline:g} per 100"] = ("called_matched", "all", rules.headline)
    return lines


def _entry(table: pd.DataFrame, metric: str, subset: str, limit: float | None) -> Difference | None:
    at = table["fpr_limit"].isna() if limit is None else np.isclose(table["fpr_limit"], limit, rtol=0, atol=1e-9)
    chosen = table[(table["metric"] == metric) & (table["subset"] == subset) & at]
    if chosen.empty or np.isnan(value := float(chosen["difference"].iloc[0])):
        return None
    return Difference(value, float(chosen["ci_low"].iloc[0]), float(chosen["ci_high"].iloc[0]))


def row_replicates(row: Row, protocol: Protocol, category: str = "") -> Replicates | None:
    """Return a row's replicates, averaged over seeds and then over categories; None where a run has none."""
    by_category: dict[str, list[CountedRun]] = {}
    for run in row.runs:
        if category in ("", run.category):
            by_category.setdefault(run.category, []).append(run)
    parts = []
    for runs in (by_category[name] for name in sorted(by_category)):
        tables = [run.run.replicates for run in runs]
        tables = [table[table["protocol"] == protocol.name] for table in tables]
        if any(table.empty for table in tables):
            return None
        parts.append(_average([Replicates.of_table(table) for table in tables]))
    return _average([part for part in parts if part is not None]) if parts and None not in parts else None


def _average(parts: Sequence[Replicates]) -> Replicates | None:
    """Average what all parts have: an earlier version kept fewer metrics. None if they drew unequally often."""
    common = set.intersection(*(set(_names(part)) for part in parts))
    if not common or len({len(part.values) for part in parts}) > 1:
        return None
    return average([part.only([name in common for name in _names(part)]) for part in parts])


def _names(part: Replicates) -> list[tuple[object, ...]]:
    return [tuple(None if key != key else key for key in row) for row in part.keys.itertuples(index=False)]
