"""How methods fare under each condition of the images, such as the lights of MVTec AD 2, and what they lose."""

from __future__ import annotations

import math

import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.metrics.conditions import condition_rows
from hrbench.metrics.context import Context
from hrbench.metrics.words import alarms_text
from hrbench.protocol import Protocol
from hrbench.report.columns import Column, limit_text, number_text
from hrbench.report.configurations import CountedRun, printable
from hrbench.report.summary import Leaderboard, Row
from hrbench.report.table import Cell, Table
from hrbench.report.terminal import PLAIN, Terminal, TerminalColumn, terminal_lines
from hrbench.runs.store import Run

__all__ = ["condition_table", "conditions_text"]

_VALUES = ["value", "drop", "drop_low", "drop_high"]


def condition_table(board: Leaderboard, category: str = "") -> Table | None:
    """Return a column for each condition and metric, in a category or on average; None where no run knows any.

    The small print is what is lost against the reference, on the parts that show the same under both, with its paired
    interval where the number is that of a single run. Averages are over seeds, then over categories.
    """
    place = category or (board.categories[0] if len(board.categories) == 1 else "")
    rows = [row for row in board.rows if not place or place not in row.missing]
    found = [_of_row(row, board, place) for row in rows]
    whole = pd.concat(found) if found else pd.DataFrame()
    if whole.empty:
        return None
    keys = list(dict.fromkeys(zip(whole["metric"], whole["fpr_limit"].fillna(-1.0), strict=True)))
    references = sorted(set(whole["reference"]))
    names = sorted(set(whole["condition"]), key=lambda name: (name not in references, name))
    columns = [
        Column(f"{metric}_{name}", heading(metric, limit), printable(name), metric, title=f"On the images under {name}")
        for metric, limit in keys
        for name in names
    ]
    cells = [
        tuple(
            _cell(of[(of["metric"] == metric) & (of["condition"] == name)], metric)
            for metric, _ in keys
            for name in names
        )
        for of in found
    ]
    note = (
        f"Every condition is measured on its images alone, at thresholds of its own. Small: what is lost against "
        f"{' or '.join(map(printable, references))} on the parts that show the same under both"
    )
    level = f"{100 * board.protocol.bootstrap.level:g} %"
    intervals = any(len(cell.small) > 1 for line in cells for cell in line)
    note += f", and its {level} interval, paired by part." if intervals else f"; {_without_interval(board, place)}"
    if any(cell.text == "–" for line in cells for cell in line):
        note += " –: the condition lacks the images that the number takes, defective ones with masks or good ones."
    caption = "By condition, mean over seeds" + ", then over categories" * (not place)
    return Table(tuple(columns), tuple(rows), tuple(cells), "conditions", caption, (note,))


def conditions_text(run: Run, protocol: Protocol, reference: str | None = None, terminal: Terminal = PLAIN) -> str:
    """Return the headline metrics of a run under each condition, and what is lost against one of them, as text.

    Raises
    ------
    HrbenchError
        If the run knows fewer than two conditions, or not the reference.
    """
    found = condition_rows(Context(run.load_evidence(protocol), protocol), reference)
    if found.empty:
        raise HrbenchError(
            f"{run.folder}: knows no two conditions of its images, expected some by the dataset's descriptor; "
            "`hrbench rescore --dataset NAME` gives them to runs of earlier versions"
        )
    names, reference = list(dict.fromkeys(found["condition"])), str(found["reference"].iloc[0])
    by_name = found.drop_duplicates("condition").set_index("condition")
    columns = [
        TerminalColumn("condition", tuple(map(printable, names)), left=True),
        TerminalColumn("images", tuple(str(by_name.loc[name, "images"]) for name in names)),
        TerminalColumn("parts", tuple(str(by_name.loc[name, "parts"] or "") for name in names)),
    ]
    for metric, limit in dict.fromkeys(zip(found["metric"], found["fpr_limit"].fillna(-1.0), strict=True)):
        of = found[found["metric"] == metric].set_index("condition").reindex(names)
        columns += [
            TerminalColumn(heading(metric, limit), tuple(number_text(metric, value) for value in of["value"])),
            TerminalColumn("loss", tuple(map(_number, of["drop"]))),
            TerminalColumn("interval", tuple(map(_interval, of["drop_low"], of["drop_high"])), keep=1),
        ]
    about = run.about
    title = f"{about.method.title or about.method.name}, {about.view}, on {about.dataset.category}, by condition"
    note = (
        f"Every condition is measured on its images alone. Loss: against {printable(reference)}, on the parts that "
        f"show the same under both, with its paired {100 * protocol.bootstrap.level:g} % interval."
    )
    return terminal_lines(title, columns, [note], terminal)


def heading(metric: str, limit: float) -> str:
    """Return what heads a metric."""
    return {
        "aupro": f"AUPRO@{limit_text(limit)}",
        "recall_matched": f"recall at {alarms_text(limit).replace(' false', '').replace(' good images', '')}",
        "image_auroc": "image ROC-AUC",
        "called_matched": f"defective images that alarm, {alarms_text(limit).replace(' good images', '')}",
    }.get(metric, metric)


def _of_row(row: Row, board: Leaderboard, category: str) -> pd.DataFrame:
    """Return the rows of a configuration: a run's, with intervals, or means over seeds and categories, without."""
    runs = [run for run in row.runs if not category or run.category == category]
    tables = [table for run in runs if not (table := _of_run(run, board.protocol)).empty]
    if not tables:
        return pd.DataFrame(columns=["condition", "reference", "metric", "fpr_limit", *_VALUES])
    if len(tables) == 1:
        return tables[0]
    whole = pd.concat(tables, ignore_index=True).astype(dict.fromkeys(_VALUES, float))
    keys = ["condition", "reference", "metric", "fpr_limit"]
    seeds = whole.groupby(["category", *keys], sort=False, dropna=False)[_VALUES].mean().reset_index()
    means = seeds.groupby(keys, sort=False, dropna=False)[_VALUES].mean().reset_index()
    return means.assign(drop_low=math.nan, drop_high=math.nan)


def _of_run(run: CountedRun, protocol: Protocol) -> pd.DataFrame:
    table = run.run.conditions
    return table[table["protocol"] == protocol.name].assign(category=run.category)


def _without_interval(board: Leaderboard, category: str) -> str:
    """Say why means of what is lost have no interval, and where there are some."""
    why = "a mean has no interval, for parts are paired within one run:"
    single = len({run.seed for run in board.runs}) == 1
    return f"{why} {'categories below have theirs' if single and not category else 'hrbench conditions RUN gives it'}."


def _cell(of: pd.DataFrame, metric: str) -> Cell:
    if of.empty or math.isnan(value := float(of["value"].iloc[0])):
        return Cell("–", "not measured under this condition")
    lost, low, high = (float(of[name].iloc[0]) for name in _VALUES[1:])
    small = [] if math.isnan(lost) else [f"loss {_number(lost)}"]
    small += [] if math.isnan(low) else [_interval(low, high)]
    return Cell(number_text(metric, value), sort=repr(value), small=tuple(small))


def _number(lost: float) -> str:
    return "" if math.isnan(lost) else f"{lost:.3f}".replace("-", "−")


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{low:.3f}, {high:.3f}]".replace("-", "−")
