"""The one model of a table: every format, from the page to the terminal, only writes it down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from hrbench.metrics import CUMULATIVE, DISJOINT
from hrbench.metrics.bootstrap import MIN_IMAGES
from hrbench.protocol import Protocol
from hrbench.report.columns import (
    Column,
    error_text,
    metric_facts,
    number_text,
    overview_columns,
    region_columns,
    text_column,
    why_missing,
)
from hrbench.report.configurations import COSTS
from hrbench.report.origins import origin_parts, origin_text
from hrbench.report.summary import NO_ESTIMATE, Estimate, Estimates, Leaderboard, Row
from hrbench.report.without_masks import board_columns, has_masks, left_open_notes
from hrbench.runs.verification import MEANING

__all__ = [
    "Cell",
    "Table",
    "coverage",
    "emphasis",
    "interval_note",
    "interval_text",
    "metric_table",
    "overview_table",
    "short_interval",
]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: what is written, below it in small, behind it in a tooltip, and what it sorts by.

    Attributes
    ----------
    text, title, sort : str
        An empty `sort` puts the row at the end.
    small : tuple of str
        Small print: confidence interval, range over the seeds, diameter, difference.
    mark : str
        Small and raised behind the text: numbers of cautions, or a ring for a mean that lacks values.
    place : {0, 1, 2}
        1 for the best of its column, 2 for the second; see :func:`emphasis`.
    bar : float or None
        Length of a bar behind the number, for columns that form a profile.
    estimate : Estimate
        The number itself, where the cell is one.
    link : str
        What the text leads to on a page.
    """

    text: str
    title: str = ""
    sort: str = ""
    small: tuple[str, ...] = ()
    mark: str = ""
    place: int = 0
    bar: float | None = None
    estimate: Estimate = NO_ESTIMATE
    link: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes
    ----------
    columns : tuple of Column
        Besides rank and name, which come from the rows.
    rows : tuple of Row, str or None
        What each line is of: a row of the leaderboard, a heading of the lines that follow, or None where the cells
        say it all.
    cells : tuple of tuple of Cell
        Line by line, a cell for each column.
    kind : str
        ``overview`` opens a leaderboard: its rows are named by the method, as the columns say how it was run. Others
        have a short name for what tells rows apart.
    caption : str
    notes : tuple of str
        What stands below, in sentences.
    cautions : tuple of str
        What the cells' numbered marks stand for.
    how : str
        How the numbers are computed, for who asks.
    ranked_by : str
        What the ranks mean, where they are not those of the overview.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row | str | None, ...]
    cells: tuple[tuple[Cell, ...], ...]
    kind: Literal[
        "answer",
        "overview",
        "category",
        "cost",
        "detection-limits",
        "protocol-comparison",
        "annotation",
        "conditions",
        "plain",
    ] = "category"
    caption: str = ""
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    how: str = ""
    ranked_by: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper headings, and how many columns each spans."""
        return [(name, len(list(same))) for name, same in groupby(self.columns, key=lambda column: column.group)]

    @property
    def estimates(self) -> list[Estimate]:
        """All numbers in it."""
        return [cell.estimate for line in self.cells for cell in line]

    @property
    def error(self) -> str:
        """The largest certified numerical error of any number in it; "" if unknown."""
        return error_text(max((e.error for e in self.estimates if not math.isnan(e.error)), default=math.nan))

    @property
    def has_intervals(self) -> bool:
        """Whether any number has a confidence interval."""
        return any(estimate.has_interval for estimate in self.estimates)

    def name(self, row: Row | str | None) -> str:
        """Return what stands at the head of a line, without marks."""
        if row is None or isinstance(row, str):
            return row or ""
        return row.configuration.title if self.kind == "overview" else row.configuration.short

    def beside(self, columns: Sequence[Column], cells: Sequence[Sequence[Cell]]) -> Table:
        """Return the table with further columns at its right, whose cells are given line by line."""
        lines = ((*left, *right) for left, right in zip(self.cells, cells, strict=True))
        return dataclasses.replace(self, columns=(*self.columns, *columns), cells=tuple(lines))


def emphasis(
    column: Column, estimates: Sequence[Estimate], covered: Sequence[frozenset[str]], comparable: Sequence[bool]
) -> list[int]:
    """Return the places in a column: 1 for the best, 2 for the second, 0 for all others.

    The one rule for every table and format: a number competes if it was measured under the same rules as the others and
    stands on the same images, which are those of all categories in which any number of the column is defined. So
    neither an average that lacks a category nor one over fewer thresholds wins by what it leaves out. Equal prints
    share their place, and a single competitor has none; nor has anybody where so few defects are of a size that no
    difference of two rows has an interval.

    Parameters
    ----------
    column : Column
    estimates : sequence of Estimate
        One for each row.
    covered : sequence of frozenset of str
        The categories behind each, from :func:`coverage`.
    comparable : sequence of bool
        Whether each was measured under the same rules.
    """
    present = [fair and not math.isnan(estimate.shown) for fair, estimate in zip(comparable, estimates, strict=True)]
    every = frozenset[str]().union(*(names for names, there in zip(covered, present, strict=True) if there))
    texts = [
        number_text(column.metric, estimate.shown) if there and names == every else ""
        for estimate, names, there in zip(estimates, covered, present, strict=True)
    ]
    few = column.subset != "all" and max((estimate.n for estimate in estimates), default=0) < MIN_IMAGES
    if few or not column.contest or len([text for text in texts if text]) < 2:
        return [0] * len(texts)
    ordered = sorted({text for text in texts if text}, key=float, reverse=not metric_facts(column.metric).least)
    return [ordered.index(text) + 1 if text in ordered[:2] else 0 for text in texts]


def coverage(column: Column, estimates: Estimates, configuration: int, categories: Sequence[str]) -> frozenset[str]:
    """Return the categories in which a configuration has a number that counts."""
    return frozenset(
        name for name in categories if not math.isnan(column.estimate(estimates, configuration, name).shown)
    )


def metric_table(
    board: Leaderboard,
    columns: Sequence[Column],
    category: str = "",
    *,
    drop_empty: bool = False,
    counts: bool = False,
    caption: str = "",
) -> Table:
    """Arrange the numbers of a category, or of the average (``""``), row by row of the leaderboard.

    Parameters
    ----------
    board : Leaderboard
    columns : sequence of Column
    category : str
    drop_empty : bool
        Leave out columns that no row has.
    counts : bool
        Put the number of defects into the heading.
    caption : str
    """
    estimates = board.estimates
    rows = [row for row in board.rows if category not in row.missing]
    categories = [category] if category else board.categories
    shown, cells = [], []
    for column in columns:
        numbers = [row.configuration.number for row in rows]
        values = [column.estimate(estimates, number, category) for number in numbers]
        if drop_empty and not any(value.total for value in values):
            continue
        covered = [coverage(column, estimates, number, categories) for number in numbers]
        places = emphasis(column, values, covered, [not row.foreign for row in rows])
        cells.append([_cell(column, value, place, category) for value, place in zip(values, places, strict=True)])
        count = f"n = {max((value.n for value in values), default=0):,}" if counts else ""
        shown.append(dataclasses.replace(column, count=count))
    lines = tuple(zip(*cells, strict=True)) if cells else ((),) * len(rows)
    return Table(tuple(shown), tuple(rows), lines, caption=caption)


def _cell(column: Column, estimate: Estimate, place: int, category: str) -> Cell:
    value = estimate.shown
    text = number_text(column.metric, value)
    if math.isnan(value):
        return Cell(text, why_missing(column, estimate), estimate=estimate)
    profile = column.metric == "aupro" and column.subset in (*DISJOINT, *CUMULATIVE)
    return Cell(
        text=text,
        title=_explain(column, estimate, category),
        sort=repr(value),
        small=_small_print(column, estimate, category),
        mark="°" if estimate.defined < estimate.total else "",
        place=place,
        bar=min(1.0, max(0.0, value)) if profile else None,
        estimate=estimate,
    )


def _small_print(column: Column, estimate: Estimate, category: str) -> tuple[str, ...]:
    if not column.interval:
        return ()
    lines = [text] if (text := short_interval(estimate)) else []
    if category and estimate.defined > 1:
        ends = (number_text(column.metric, end) for end in (estimate.minimum, estimate.maximum))
        lines.append("seeds " + "–".join(ends))
    return tuple(lines)


def interval_text(estimate: Estimate) -> str:
    """Return the confidence interval, ``[0.790, 0.834]``; nothing where there is none."""
    return f"[{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.has_interval else ""


def short_interval(estimate: Estimate) -> str:
    """Return the confidence interval in small print, ``0.61–0.70``; a narrow one with one more decimal."""
    if not estimate.has_interval:
        return ""
    decimals = 2 if estimate.high - estimate.low >= 0.02 else 3
    return f"{estimate.low:.{decimals}f}–{estimate.high:.{decimals}f}"


def _explain(column: Column, estimate: Estimate, category: str) -> str:
    """Say what stands behind a number."""
    unit = COSTS.get(column.metric, "")
    parts = [f"{estimate.value:,.4g} {unit}" if unit else f"{estimate.value:.6f}"]
    if error := error_text(estimate.error):
        parts[0] += " exactly" if error == "0" else f" ± {error} (certified numerical error)"
    if not math.isnan(estimate.low):
        parts.append(f"interval {estimate.low:.4f} to {estimate.high:.4f}")
    if estimate.n and not unit:
        parts.append(f"n = {estimate.n:,}")
    what = "seeds" if category else "categories"
    if estimate.total > 1:
        low, high = (number_text(column.metric, v) for v in (estimate.minimum, estimate.maximum))
        parts.append(f"{low} to {high} over {estimate.defined} {what}")
    if estimate.defined < estimate.total:
        parts.append(f"{estimate.total - estimate.defined} of {estimate.total} {what} without a value")
    return "; ".join(parts)


def overview_table(board: Leaderboard) -> Table:
    """Return the table that a leaderboard opens with: how each row was run, averages, and what they stand on."""
    bare = board_columns(board)
    measured = {key[2:4] for key in board.estimates}
    regions = [column for column in region_columns(board.protocol)[:3] if (column.metric, column.subset) in measured]
    numbers = metric_table(board, bare or overview_columns(board.protocol, regions), drop_empty=bare is not None)
    view = "How the method sees an image: whole and resized, or in tiles at native pitch"
    weights = (
        "Pretrained weights of the backbone, the precision of networks where it is not float32, and the share of the "
        "normal training images that was held out where it is not the default"
    )
    rows = board.rows
    configurations = [row.configuration for row in rows]
    names = [(of.preset_text, of.view_text, of.weights_text) for of in configurations]
    columns = [("preset", "Preset", "Named set of options"), ("view", "View", view), ("weights", "Weights", weights)]
    cells = [[Cell(text, sort=text) for text in texts] for texts in names]
    if any(origin_text(row.runs) for row in rows):
        columns.append(("published", "Published by", f"Who, when, and verified or not. {MEANING}"))
        for row, line in zip(rows, cells, strict=True):
            author, small = origin_parts(row.runs)
            line.append(Cell(author, sort=author, small=small))
    left = Table(
        columns=tuple(text_column(*column) for column in columns),
        rows=rows,
        cells=tuple(map(tuple, cells)),
        kind="overview",
        caption="Mean over seeds, then over categories",
        notes=tuple(_footnotes(board)),
    )
    right = (
        text_column("seeds", "Seeds", "Training runs per category", text=False),
        text_column("categories", "Cat.", "Categories covered", line="Categories", text=False),
    )
    counts = [[Cell(text, sort=text) for text in (row.seeds, str(row.categories))] for row in rows]
    return left.beside(numbers.columns, numbers.cells).beside(right, counts)


def interval_note(protocol: Protocol, units: str = "images") -> str:
    """Say where the intervals come from; `units` are those of :attr:`Leaderboard.units`."""
    rules = protocol.bootstrap
    if not rules.draws:
        return f"Intervals: {100 * rules.level:g} %, of shares of counted images only: the protocol draws no bootstrap."
    return f"Intervals: {100 * rules.level:g} %, bootstrap over {units}, {rules.draws} draws."


def _footnotes(board: Leaderboard) -> list[str]:
    """Return what the marks mean and the notes of the dataset, in plain text."""
    rows = board.rows
    lines = [
        f"† {row.configuration.label}: not ranked, its average lacks {', '.join(row.missing)}."
        for row in rows
        if row.missing
    ]
    if any(row.foreign for row in rows):
        lines.append("‡ Not ranked, measured under other rules.")
    if any(row.configuration.random for row in rows):
        lines.append("RANDOM: the network's weights are random; such a row tests the plumbing, not the method.")
    if has_masks(board):
        lines.append("* Oracle: best threshold in hindsight, an upper limit and not a result.")
    if any(estimate.has_interval for estimate in board.estimates.values()):
        lines.append(interval_note(board.protocol, board.units))
    if any(row.rank_interval for row in rows):
        lines.append("Ranks, with their intervals: over the same draws of images for all rows.")
    return [*lines, *left_open_notes(board), *board.notes]
