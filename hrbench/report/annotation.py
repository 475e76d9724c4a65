"""How far the annotation carries: the same maps under masks one pixel wider and narrower, and which rows change places.

Read from the tables that runs keep, see :func:`hrbench.metrics.annotation.annotation_rows`; no evidence is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import pandas as pd

from hrbench.metrics import DISJOINT
from hrbench.metrics.annotation import MASKS
from hrbench.metrics.sizes import size_title
from hrbench.metrics.words import budget_text
from hrbench.protocol import Protocol
from hrbench.report.columns import Column, in_words, limit_text, metric_facts, number_text
from hrbench.report.summary import MIN_COMPONENTS, Estimate, Leaderboard, Row, Summary
from hrbench.report.table import Cell, Table

__all__ = [
    "NOT_KNOWN",
    "Span",
    "Spans",
    "annotation_rows",
    "annotation_sentences",
    "annotation_table",
    "annotation_values",
]

NOT_KNOWN = "How far the annotation carries is not known: runs of earlier versions keep no rims of the defects."
"""What is said where :func:`annotation_table` has none."""

_SIZES = ("all", *DISJOINT)
_WORDS = {"eroded": "one pixel narrower", "annotated": "as annotated", "dilated": "one pixel wider"}
_MOST_PAIRS = 3
_NUMBERS = ["value", "change_low", "change_high", "components", "vanished"]


@dataclasses.dataclass(frozen=True)
class Span:
    """A number of one row under each of the masks, by their names.

    Attributes
    ----------
    values : mapping of str to float
    ends : mapping of str to sequence of float
        Those of the interval of the change against the masks as annotated; NaN where there is none.
    components, vanished : int
        Defects as annotated, and those of them of which erosion leaves nothing.
    """

    values: Mapping[str, float]
    ends: Mapping[str, Sequence[float]]
    components: int
    vanished: int

    @property
    def lowest(self) -> float:
        """The lowest value; NaN where one is not defined."""
        return math.nan if any(map(math.isnan, self.values.values())) else min(self.values.values())

    @property
    def highest(self) -> float:
        """The highest value; NaN where one is not defined."""
        return math.nan if math.isnan(self.lowest) else max(self.values.values())

    @property
    def furthest(self) -> float:
        """The largest change."""
        return max(abs(value - self.values["annotated"]) for value in self.values.values())


Spans = Mapping[tuple[int, str, str], Span]
"""By number of the configuration, metric and size subset."""


def annotation_values(board: Leaderboard, category: str = "") -> Spans:
    """Return what numbers of a category, or of the average (``""``), become under each of the masks.

    Means over seeds, then over the categories that have enough such defects and a value under all masks. A
    configuration has none if an earlier version measured it in any category, or it lacks one.
    """
    found: dict[tuple[int, str, str], Span] = {}
    for key, own in board.once(_by_key).items():
        if not category and len(own) < len(board.categories):
            continue
        of_categories = [under for name, under in own.items() if category in ("", name)]
        if not of_categories:
            continue
        single = len(of_categories) == 1
        counted = of_categories if single else [under for under in of_categories if _counts(key[2], under)]
        found[key] = Span(
            {masks: fmean(under[masks].value for under in counted) if counted else math.nan for masks in MASKS},
            {masks: _ends(of_categories[0][masks]) if single else [math.nan] * 2 for masks in MASKS},
            int(sum(under["annotated"].components for under in of_categories)),
            int(sum(under["eroded"].vanished for under in of_categories)),
        )
    return found


_Under = Mapping[str, Any]  # rows of a table, by the masks


def _counts(subset: str, under: _Under) -> bool:
    """Tell whether a category counts in an average."""
    enough = subset == "all" or under["annotated"].components >= MIN_COMPONENTS
    return enough and not any(math.isnan(under[masks].value) for masks in MASKS)


def _ends(row: Any) -> list[float]:
    return [row.change_low, row.change_high]


def _by_key(board: Leaderboard) -> Mapping[tuple[int, str, str], Mapping[str, _Under]]:
    """Return the rows of :func:`_means` by configuration, metric and subset, then category, then masks."""
    found: dict[tuple[int, str, str], dict[str, dict[str, Any]]] = {}
    for row in _means(board).itertuples():
        of = found.setdefault((row.number, row.metric, row.subset), {})
        of.setdefault(row.category, {})[row.masks] = row
    return found


def _means(board: Leaderboard) -> pd.DataFrame:
    """Return the rows of all configurations in all categories, mean over their seeds."""
    tables, old = [], set[tuple[int, str]]()
    for counted in board.runs:
        number, category = of = counted.configuration.number, counted.category
        table = counted.run.annotation
        table = table[table["protocol"] == board.protocol.name]
        if table.empty:
            old.add(of)
        else:
            tables.append(table.assign(number=number, category=category))
    keys = ["number", "category", "metric", "subset", "masks"]
    if not tables:
        return pd.DataFrame(columns=[*keys, *_NUMBERS])
    means = pd.concat(tables).groupby(keys, sort=False)[_NUMBERS].mean().reset_index()
    return means[[of not in old for of in zip(means["number"], means["category"], strict=True)]]


def annotation_rows(summary: Summary) -> pd.DataFrame:
    """Return every number of all runs under each of the masks, one row each, with the columns that say whose it is."""
    tables = []
    for board in summary.leaderboards:
        for counted in board.runs:
            table, of = counted.run.annotation, counted.configuration
            table = table[table["protocol"] == board.protocol.name]
            names = {"dataset": board.dataset, "category": counted.category, "method": of.method, "preset": of.preset}
            names |= {"view": of.view, "weights": of.weights, "seed": str(counted.seed)}
            if not table.empty:
                tables.append(pd.DataFrame(names, index=table.index).join(table.drop(columns="protocol")))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def annotation_table(board: Leaderboard, category: str = "") -> Table | None:
    """Return AUPRO, recall and mean IoU by size as annotated, with their span under the masks; None without any."""
    spans = annotation_values(board, category)
    rows = [row for row in board.rows if (row.configuration.number, "aupro", "all") in spans]
    if not rows:
        return None
    columns, cells, unset = [], [], []
    for column in _columns(board.protocol):
        of_rows = [spans.get((row.configuration.number, column.metric, column.subset)) for row in rows]
        numbers = [span.components for span in of_rows if span is not None]
        if any(numbers) and all(span is None or math.isnan(span.values["annotated"]) for span in of_rows):
            unset.append(column.group)
        elif any(numbers):
            columns.append(dataclasses.replace(column, count=f"n = {max(numbers):,}"))
            cells.append([_cell(column, span) for span in of_rows])
    return Table(
        columns=tuple(columns),
        rows=tuple(rows),
        cells=tuple(zip(*cells, strict=True)),
        kind="annotation",
        caption="As annotated; small: lowest and highest value with masks one pixel narrower, as annotated, and wider",
        notes=(*_notes(board, rows, spans, category), *_gaps(dict.fromkeys(unset), cells)),
    )


def _groups(protocol: Protocol) -> dict[str, str]:
    """Return what is shown, in words, by metric."""
    recall = {"recall": f"recall at the {protocol.threshold.name}"}
    if protocol.alarm.budgets:
        recall = {"recall_matched": f"recall at {budget_text(protocol.alarm.headline)} alarms per 100"}
    return {
        "aupro": f"AUPRO@{limit_text(protocol.headline_fpr)}",
        **recall,
        "miou": f"mean IoU at the {protocol.threshold.name}",
    }


def _columns(protocol: Protocol) -> Iterator[Column]:
    for metric, group in _groups(protocol).items():
        for subset in _SIZES:
            title = f"{in_words(metric_facts(metric).title, protocol)}. {size_title(subset, protocol.size_bins)}"
            yield Column(f"{metric}_{subset}", group, subset, metric, subset, title=title)


def _cell(column: Column, span: Span | None) -> Cell:
    if span is None:
        return Cell("–", "not measured")
    if column.subset != "all" and 0 < span.components < MIN_COMPONENTS:
        return Cell(f"n = {span.components}", f"no number below {MIN_COMPONENTS} defects")
    value = span.values["annotated"]
    if math.isnan(value):
        return Cell("–", "no defect of this size" if not span.components else "no such threshold")
    said = [f"{value:.4f} as annotated"]
    for masks in ("eroded", "dilated"):
        low, high = span.ends[masks]
        interval = "" if math.isnan(low) else f" (interval {low:+.4f} to {high:+.4f})"
        change = span.values[masks] - value
        text = "nothing is left" if math.isnan(change) else f"{span.values[masks]:.4f}, {change:+.4f}{interval}"
        said.append(f"{_WORDS[masks]}: {text}")
        if masks == "eroded" and span.vanished:
            said[-1] += f", without {span.vanished} of {span.components} defects"
    ends = [number_text(column.metric, end) for end in (span.lowest, span.highest)]
    return Cell(
        number_text(column.metric, value),
        "; ".join(said),
        sort=repr(value),
        small=() if math.isnan(span.lowest) else ("–".join(ends),),
        estimate=Estimate(value=value, n=span.components, defined=1, total=1),
    )


def _gaps(unset: Collection[str], cells: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """Say why there are no numbers, in all rows or in some."""
    if unset:
        yield f"Left out: {' and '.join(unset)}, for no row has that threshold (too few normal images were held out)."
    if any(cell.text == "–" for column in cells for cell in column):
        yield "–: the row has no such threshold (too few normal images were held out), or was not measured so."


def _notes(board: Leaderboard, rows: Sequence[Row], spans: Spans, category: str) -> Iterator[str]:
    yield (
        "The same maps and thresholds; all masks are eroded, or dilated, by one pixel in all eight directions. Defects "
        "keep the size that they have as annotated; two that meet when they are dilated stay two."
    )
    number = rows[0].configuration.number
    lost = {size: spans[number, "aupro", size] for size in _SIZES}
    if lost["all"].vanished:
        sizes = ", ".join(f"{lost[size].vanished} {size}" for size in DISJOINT if lost[size].vanished)
        yield (
            f"{lost['all'].vanished} of {lost['all'].components} defects ({sizes}) have no pixel left where masks are "
            "one pixel narrower: they are left out there."
        )
    lacking = [row.configuration.short for row in board.rows if row not in rows and category not in row.missing]
    if lacking:
        yield f"Left out, measured by an earlier version or not in all categories: {', '.join(lacking)}."


def annotation_sentences(board: Leaderboard, category: str = "") -> list[str]:
    """Say how much a pixel moves small and large defects, and which rows change places by it."""
    spans, (aupro, recall, _) = annotation_values(board, category), _groups(board.protocol).items()
    rows = [row for row in board.rows if (row.configuration.number, "aupro", "all") in spans and not row.foreign]
    moved: list[str] = []
    for size, text in (
        (DISJOINT[0], f"{aupro[1]} of {DISJOINT[0]} defects"),
        (DISJOINT[-1], f"of {DISJOINT[-1]} ones"),
    ):
        of_rows = [(row, spans[row.configuration.number, "aupro", size]) for row in rows]
        sized = [(row, of) for row, of in of_rows if of.components >= MIN_COMPONENTS and not math.isnan(of.lowest)]
        if sized:
            row, span = max(sized, key=lambda pair: pair[1].furthest)
            ends = " to ".join(number_text("aupro", end) for end in (span.lowest, span.highest))
            moved.append(f"{text} by up to {span.furthest:.3f} ({row.configuration.short}: {ends})")
    if not moved:
        return []
    said = [f"A mask one pixel wider or narrower moves {', and '.join(moved)}."]
    if len(rows) > 1:
        swaps = [text for metric in (aupro, recall) for text in _swaps(rows, spans, *metric)]
        said += swaps[:_MOST_PAIRS]
        more = len(swaps) - _MOST_PAIRS
        said += [f"The same holds of {more} more pairs of rows, at some size."] * (more > 0)
        said += [f"No two rows change places by it, by {aupro[1]} or {recall[1]}, at any size."] * (not swaps)
    return said


def _swaps(rows: Sequence[Row], spans: Spans, metric: str, name: str) -> Iterator[str]:
    """Say which two rows, in one order as annotated, are in the other one under other masks."""
    for size in _SIZES:
        for a, b in combinations(rows, 2):
            one, two = (spans[row.configuration.number, metric, size] for row in (a, b))
            if min(one.components, two.components) < MIN_COMPONENTS:
                continue
            gaps = {masks: one.values[masks] - two.values[masks] for masks in MASKS}
            (first, ahead), (second, behind) = ((a, one), (b, two))[:: 1 if gaps["annotated"] > 0 else -1]
            values = {
                masks: f"{number_text(metric, ahead.values[masks])} against {number_text(metric, behind.values[masks])}"
                for masks in MASKS
            }
            other = [f"{_WORDS[of]} ({values[of]})" for of in MASKS if gaps[of] * gaps["annotated"] < 0]
            if other:
                which = "all defects" if size == "all" else f"{size} defects"
                yield (
                    f"By {name} of {which} the order hangs on the annotation: {first.configuration.short} is before "
                    f"{second.configuration.short} as annotated ({values['annotated']}), and behind it where masks are "
                    f"{' and '.join(other)}."
                )
