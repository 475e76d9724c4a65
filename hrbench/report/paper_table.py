"""Tables for a paper: one number by category, or several on average, as Markdown, LaTeX or CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from hrbench.errors import HrbenchError, unknown_name
from hrbench.metrics.bootstrap import MIN_IMAGES
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.sizes import SCHEMES
from hrbench.metrics.spro import KINDS
from hrbench.protocol import Protocol
from hrbench.report.columns import (
    Column,
    category_columns,
    cost_columns,
    in_words,
    limit_text,
    matched_columns,
    metric_facts,
    number_text,
    overview_columns,
    region_columns,
    size_columns,
    size_text,
    subset_title,
)
from hrbench.report.configurations import Configuration, CountedRun
from hrbench.report.differences import ties
from hrbench.report.latex import dataset_labels, latex_text
from hrbench.report.summary import Estimates, Leaderboard, Row, Summary, averages, values_of
from hrbench.report.table import coverage, emphasis
from hrbench.report.text import csv_text, markdown_text

__all__ = ["FORMATS", "by_category", "on_average", "paper_tables"]

FORMATS = ("markdown", "latex", "csv")
_TIE = "≈"


@dataclass(frozen=True)
class _Cell:
    """A number, as it is written: its place is 1 for the best of its column, 2 for the second."""

    text: str
    place: int
    tie: bool


@dataclass(frozen=True)
class _Paper:
    """A table of one dataset.

    Attributes
    ----------
    dataset, caption : str
    names : tuple of str
        Of the rows.
    heads : tuple of str
        Of the columns.
    cells : tuple of tuple of _Cell
        Row by row.
    """

    dataset: str
    caption: str
    names: tuple[str, ...]
    heads: tuple[str, ...]
    cells: tuple[tuple[_Cell, ...], ...]


@dataclass(frozen=True)
class _Asked:
    """What stands in one column: a metric, in a category or on average (``""``)."""

    head: str
    column: Column
    category: str


def by_category(protocol: Protocol, metric: str = "", subset: str = "all") -> Column:
    """Return what a table with a column for each category shows.

    Parameters
    ----------
    protocol : Protocol
    metric : str
        ``image_auroc``, or with a limit ``aupro@0.05``; the headline by default.
    subset : str
        ``all``, ``tiny``, ``small``, ``medium``, ``large``, or a range of diameters as ``d8-16``; of sPRO ``logical``
        or ``structural``.

    Raises
    ------
    HrbenchError
        For a metric that the catalogue does not have, a subset that the metric has no row of, and a limit where there
        is none.
    """
    name, _, limit = (metric or "aupro").partition("@")
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    entry = METRICS[name]
    sizes = [size for scheme in SCHEMES for size in scheme.names(protocol.size_bins)]
    known = ["all", *(KINDS.values() if entry.counts == "regions" else sizes if entry.by_size else ())]
    if subset not in known:
        raise unknown_name(f"subset of {name}", subset, known)
    usual = {"": None, "alarms": protocol.alarm.headline}.get(entry.limits, protocol.headline_fpr)
    if limit and usual is None:
        raise HrbenchError(f"metric {metric!r}: {name} has no limit, expected {name}")
    try:
        at = float(limit) if limit else usual
    except ValueError:
        raise HrbenchError(f"metric {metric!r}: expected {name}@LIMIT with a number") from None
    behind = "" if not at else f", {100 * at:g} per 100" if entry.limits == "alarms" else f" of {at:g}"
    title = in_words(metric_facts(name).title, protocol) + behind
    key, least = f"{name}{'' if at is None else '@' + limit_text(at)}", metric_facts(name).least
    return Column(key, "", "", name, subset, at, title, least=least)


def on_average(protocol: Protocol, keys: Sequence[str] = ()) -> list[Column]:
    """Return the columns of a table of averages, by their names in the CSV file; by default those of the leaderboard.

    Raises
    ------
    HrbenchError
        For a name that is none of them.
    """
    usual = overview_columns(protocol, region_columns(protocol)[:3])
    found = [
        *usual,
        *category_columns(protocol),
        *cost_columns(),
        *size_columns(protocol, ()),
        *matched_columns(protocol),
    ]
    known = {column.key: column for column in reversed(found)}
    for key in keys:
        if key not in known:
            raise unknown_name("column", key, known)
    return [known[key] for key in keys] or [column for column in usual if column.contest]


def paper_tables(
    summary: Summary, shown: Column | Sequence[Column], form: Literal["markdown", "latex", "csv"] = "markdown"
) -> str:
    """Return a table for each dataset.

    Parameters
    ----------
    summary : Summary
    shown : Column or sequence of Column
        One that every category, and their mean, has a column of; or those that stand side by side, on average.
    form : str

    Raises
    ------
    HrbenchError
        If no run has such a number.
    """
    papers = [_paper(board, shown) for board in summary.leaderboards]
    if form == "csv":
        return csv_text(pd.concat([_frame(paper) for paper in papers], ignore_index=True))
    if form == "latex":
        of = [shown.key, shown.subset] if isinstance(shown, Column) else ["means"]
        labels = dataset_labels([" ".join([paper.dataset, *of]) for paper in papers])
        return "\n\n".join(map(_latex, papers, labels)) + "\n"
    return "\n\n".join(map(_markdown, papers)) + "\n"


def _paper(board: Leaderboard, shown: Column | Sequence[Column]) -> _Paper:
    protocol = board.protocol
    if isinstance(shown, Column):
        mean = [("mean", "")] if len(board.categories) > 1 else []
        asked = [_Asked(head, shown, name) for head, name in [*((name, name) for name in board.categories), *mean]]
        parts = [shown.title, *([] if shown.subset == "all" else [subset_title(shown.metric, shown.subset, protocol)])]
        what = f"{_head(shown)} ({'; '.join(part[:1].lower() + part[1:] for part in parts)}), by category"
    else:
        asked = [_Asked(_head(column), column, "") for column in shown]
        what = "means over categories"
    lines = [_line(board, each) for each in asked]
    rows = board.rows
    if isinstance(shown, Column):
        order = _by_mean(board, shown)
        rows, lines = tuple(rows[at] for at in order), [[line[at] for at in order] for line in lines]
    kept = [place for place, line in enumerate(lines) if any(cell.text != "–" for cell in line)]
    if not kept:
        raise HrbenchError(
            f"{board.dataset}: no run has {', '.join(dict.fromkeys(each.column.key for each in asked))} of "
            f"{', '.join(dict.fromkeys(each.column.subset for each in asked))} under protocol {protocol.name}"
            + _other_limits(board, asked[0].column)
        )
    how = _how([row.configuration for row in rows])
    said = [f"{board.dataset}: {what}, at native resolution, protocol {protocol.name}@{protocol.version}; {how}"]
    said.append("Best in bold, second underlined")
    few = [f"{asked[place].head} {n}" for place in kept if 0 < (n := _defects(board, asked[place])) < MIN_IMAGES]
    if few:
        said.append(f"None where fewer than {MIN_IMAGES} defects are of that size: {', '.join(few)}")
    if any(cell.tie for place in kept for cell in lines[place]):
        interval = f"{100 * protocol.bootstrap.level:g} % interval of the paired difference over {board.units}"
        said.append(f"{_TIE}: not told from the best by the {interval}")
    if any("±" in cell.text for place in kept for cell in lines[place]):
        said.append("±: standard deviation over seeds")
    if any(row.missing for row in rows):
        said.append("† lacks categories, and has no mean")
    if any(row.foreign for row in rows):
        said.append("‡ measured under other rules, not compared")
    return _Paper(
        dataset=board.dataset,
        caption=". ".join(said) + ".",
        names=tuple(row.configuration.short + row.marks for row in rows),
        heads=tuple(asked[place].head for place in kept),
        cells=tuple(zip(*(lines[place] for place in kept), strict=True)),
    )


def _defects(board: Leaderboard, asked: _Asked) -> int:
    """Return how many defects of a size a column rests on; 0 where it is of all sizes."""
    column, numbers = asked.column, [row.configuration.number for row in board.rows]
    if column.subset == "all":
        return 0
    return max(column.estimate(board.estimates, number, asked.category).n for number in numbers)


def _other_limits(board: Leaderboard, column: Column) -> str:
    """Say at which limits there are numbers of a metric and subset; nothing where there are none."""
    limits = {key[-1] for key in board.estimates if key[2:4] == (column.metric, column.subset)} - {None, column.limit}
    names = [f"{column.metric}@{limit_text(limit)}" for limit in sorted(limits, key=lambda x: x or 0.0) if limit]
    return f"; there are {', '.join(names)}" if names else ""


def _by_mean(board: Leaderboard, column: Column) -> list[int]:
    """Return the rows' order by their mean of what is shown; those that have none, or none to compare, are last."""

    def key(at: int) -> tuple[bool, float]:
        row = board.rows[at]
        value = column.estimate(board.estimates, row.configuration.number).shown
        last = bool(row.missing) or row.foreign or math.isnan(value)
        return last, 0.0 if math.isnan(value) else value if column.least else -value

    return sorted(range(len(board.rows)), key=key)


def _head(column: Column) -> str:
    """Name a column, so that it stands for itself: ``AUPRO@0.05 tiny``, ``recall@0.05``, ``ROC-AUC image``."""
    if column.limit is None and column.subset == "all" and column.group:
        return column.one_line
    words = re.sub(r"_matched$", "", column.metric).replace("_", " ").replace("aupro", "AUPRO").replace("spro", "sPRO")
    at = "" if column.limit is None else f"@{limit_text(column.limit)}"
    return words + at + ("" if column.subset == "all" else f" {size_text(column.subset)}")


def _line(board: Leaderboard, asked: _Asked) -> list[_Cell]:
    """Return the cells of one column, row by row."""
    column, category = asked.column, asked.category
    there = [row for row in board.rows if not (category in row.missing if category else row.missing)]
    numbers = [row.configuration.number for row in there]
    values = [column.estimate(board.estimates, number, category) for number in numbers]
    names = [category] if category else board.categories
    covered = [coverage(column, board.estimates, number, names) for number in numbers]
    places = emphasis(column, values, covered, [not row.foreign for row in there])
    best = [row for row, place in zip(there, places, strict=True) if place == 1]
    fair = [row for row in there if not row.foreign]
    tied = ties(board, best[0], fair, (column.metric, column.subset, column.limit), category) if best else set()
    spread = _spread(there, column, category, board.protocol)
    cells = {
        row.configuration.number: _Cell(
            number_text(column.metric, value.shown) + spread.get(row.configuration.number, ""),
            place,
            place != 1 and row.configuration.number in tied,
        )
        for row, value, place in zip(there, values, places, strict=True)
    }
    return [cells.get(row.configuration.number, _Cell("–", 0, tie=False)) for row in board.rows]


def _spread(rows: Sequence[Row], column: Column, category: str, protocol: Protocol) -> dict[int, str]:
    """Return the standard deviation over the seeds of those rows that have several, the same in every category."""
    found = {}
    for row in rows:
        seeds: dict[int, list[CountedRun]] = {}
        for run in row.runs:
            if category in ("", run.category):
                seeds.setdefault(run.seed, []).append(run)
        if len(seeds) < 2 or len({len(runs) for runs in seeds.values()}) > 1:
            continue
        values = [_value(runs, column, category, protocol) for runs in seeds.values()]
        if not any(map(math.isnan, values)):
            found[row.configuration.number] = f" ± {number_text(column.metric, float(np.std(values, ddof=1)))}"
    return found


def _value(runs: Sequence[CountedRun], column: Column, category: str, protocol: Protocol) -> float:
    estimates: Estimates = averages([(run, values_of(run.run, protocol.name)) for run in runs])
    return column.estimate(estimates, runs[0].configuration.number, category).shown


def _how(configurations: Sequence[Configuration]) -> str:
    """Say how rows were run, as far as their names do not."""
    views = {one.view_text for one in configurations}
    how = list(views) if len(views) == 1 else []
    for about in ("preset_text", "weights"):
        by_value: dict[str, list[str]] = {}
        for one in configurations:
            by_value.setdefault(getattr(one, about), []).append(one.title * (getattr(one, about) not in one.short))
        texts = [
            value if len(by_value) == 1 else f"{value} ({', '.join(names)})"
            for value, same in by_value.items()
            if (names := [name for name in dict.fromkeys(same) if name])
        ]
        if texts:
            how.append(f"{about.removesuffix('_text')} {', '.join(texts)}")
    return "; ".join(how)


def _frame(paper: _Paper) -> pd.DataFrame:
    rows = [
        {"dataset": paper.dataset, "method": name, **dict(zip(paper.heads, (cell.text for cell in cells), strict=True))}
        for name, cells in zip(paper.names, paper.cells, strict=True)
    ]
    return pd.DataFrame(rows)


def _markdown(paper: _Paper) -> str:
    def written(cell: _Cell) -> str:
        return ("{}", "**{}**", "*{}*")[cell.place].format(markdown_text(cell.text)) + _TIE * cell.tie

    lines = [["Method", *map(markdown_text, paper.heads)], [":--", *["--:"] * len(paper.heads)]]
    lines += [[markdown_text(name), *map(written, cells)] for name, cells in zip(paper.names, paper.cells, strict=True)]
    caption = markdown_text(paper.caption.replace("underlined", "in italics"))
    return "\n".join([caption, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _latex(paper: _Paper, label: str) -> str:
    def written(cell: _Cell) -> str:
        text = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")[cell.place].format(latex_text(cell.text))
        return text + r"\rlap{$\approx$}" * cell.tie

    lines = [["Method", *map(latex_text, paper.heads)]]
    lines += [[latex_text(name), *map(written, cells)] for name, cells in zip(paper.names, paper.cells, strict=True)]
    rows = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_text(paper.caption)}}}",
            rf"\label{{tab:hrbench-{label}}}",
            rf"\begin{{tabular}}{{l{'r' * len(paper.heads)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )
