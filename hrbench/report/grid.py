"""Tables of the page: every cell with its text, its sort key and its explanation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from hrbench.metrics import CUMULATIVE, DISJOINT
from hrbench.report.columns import Column, best_two, error_text, number_text, why_missing
from hrbench.report.configurations import COSTS
from hrbench.report.rows import has_interval, rank_interval, rank_text, short_interval
from hrbench.report.summary import Cell, Cells

__all__ = ["Entry", "Grid", "Line", "grid"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One cell: what is written, below it in small, behind it in a tooltip, and what it sorts by.

    Attributes
    ----------
    text, title, sort : str
    below : list of str
        Small print, for the headline only: confidence interval, range over the seeds.
    place : {0, 1, 2}
        1 for the best of its column, 2 for the second.
    bar : float or None
        Length of a bar behind the number, for columns that form a profile.
    partial : bool
        Whether the mean lacks values.
    """

    text: str
    title: str
    sort: str
    below: list[str]
    place: int
    bar: float | None
    partial: bool


@dataclasses.dataclass(frozen=True)
class Line:
    """One row: its configuration (see ``Summary.leaderboard`` and ``.configurations``), rank and cells."""

    row: dict[str, Any]
    rank: str
    rank_interval: str
    entries: list[Entry]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table: headings in two lines, and rows.

    Attributes
    ----------
    groups : list of (str, int)
        Upper headings, and how many columns each spans.
    columns : list of Column
    counts : list of str
        What to add to the lower heading, e.g. the number of defects.
    rows : list of Line
    error : str
        Largest certified numerical error of any number in the table; "" if unknown.
    intervals : bool
        Whether any number has a confidence interval.
    """

    groups: list[tuple[str, int]]
    columns: list[Column]
    counts: list[str]
    rows: list[Line]
    error: str
    intervals: bool


def grid(
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    cells: Cells,
    category: str = "",
    *,
    drop_empty: bool = False,
    counts: bool = False,
) -> Grid:
    """Arrange the cells of a category, or of the average (``""``).

    Parameters
    ----------
    columns : sequence of Column
    rows : sequence of dict
        From :func:`hrbench.report.rows.leaderboard_rows`.
    cells : mapping
        From :func:`hrbench.report.summary.lookup`.
    category : str
    drop_empty : bool
        Leave out columns that no row has.
    counts : bool
        Put the number of defects into the heading.
    """
    table = [[column.cell(cells, row["configuration"], category) for column in columns] for row in rows]
    kept = [i for i in range(len(columns)) if not drop_empty or any(line[i].total for line in table)]
    chosen = [columns[i] for i in kept]
    best = []
    for i in kept:
        # Within one category all rows that are there saw the same images; an average needs all categories.
        contest = [
            line[i].shown
            for row, line in zip(rows, table, strict=True)
            if not row["foreign"] and (category or not row["missing"])
        ]
        best.append(best_two(columns[i], contest))
    lines = []
    for row, line in zip(rows, table, strict=True):
        fair = not row["foreign"] and (bool(category) or not row["missing"])
        entries = [
            _entry(columns[i], line[i], two if fair else ("", ""), category) for i, two in zip(kept, best, strict=True)
        ]
        lines.append(Line(row, rank_text(row), "" if category else rank_interval(row), entries))
    heads = [f"n = {max((line[i].n for line in table), default=0):,}" if counts else "" for i in kept]
    groups = [(name, len(list(group))) for name, group in groupby(chosen, key=lambda c: c.group)]
    shown = [line[i] for line in table for i in kept]
    errors = [cell.error for cell in shown if cell.error == cell.error]
    error = error_text(max(errors)) if errors else ""
    return Grid(groups, chosen, heads, lines, error, any(has_interval(cell) for cell in shown))


def _entry(column: Column, cell: Cell, best: tuple[str, str], category: str) -> Entry:
    value = cell.shown
    text = number_text(column, value)
    if math.isnan(value):
        text = f"n = {cell.n}" if cell.few else text
        return Entry(text, why_missing(column, cell), "", [], 0, None, False)
    partial = cell.defined < cell.total
    profile = column.metric == "aupro" and column.subset in (*DISJOINT, *CUMULATIVE)
    place = best.index(text) + 1 if text in best else 0
    title = _explain(column, cell, category, partial)
    bar = min(1.0, max(0.0, value)) if profile else None
    return Entry(text, title, repr(value), _small_print(column, cell, category), place, bar, partial)


def _small_print(column: Column, cell: Cell, category: str) -> list[str]:
    if not column.interval:
        return []
    lines = [text] if (text := short_interval(cell)) else []
    if category and cell.defined > 1:
        lines.append("seeds " + "–".join(number_text(column, end) for end in (cell.minimum, cell.maximum)))
    return lines


def _explain(column: Column, cell: Cell, category: str, partial: bool) -> str:
    """Say what stands behind a number."""
    unit = COSTS.get(column.metric, "")
    parts = [f"{cell.value:,.4g} {unit}" if unit else f"{cell.value:.6f}"]
    if error := error_text(cell.error):
        parts[0] += " exactly" if error == "0" else f" ± {error} (certified numerical error)"
    if cell.low == cell.low:
        parts.append(f"interval {cell.low:.4f} to {cell.high:.4f}")
    if cell.n and not unit:
        parts.append(f"n = {cell.n:,}")
    what = "seeds" if category else "categories"
    if cell.total > 1:
        low, high = (number_text(column, v) for v in (cell.minimum, cell.maximum))
        parts.append(f"{low} to {high} over {cell.defined} {what}")
    if partial:
        parts.append(f"{cell.total - cell.defined} of {cell.total} {what} without a value")
    return "; ".join(parts)
