"""The rows of a leaderboard and what is written beside them, alike in every format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from hrbench.protocol import Protocol
from hrbench.report.columns import Column, best_two, number_text
from hrbench.report.summary import Cell, Cells, Summary, lookup

__all__ = [
    "footnotes",
    "has_interval",
    "interval_note",
    "interval_text",
    "leaderboard_rows",
    "marks",
    "numbers",
    "rank_interval",
    "rank_text",
    "short_interval",
    "weights_text",
]


def leaderboard_rows(summary: Summary, dataset: str) -> list[dict[str, Any]]:
    """Return the leaderboard rows of a dataset with the names of their configuration."""
    board = summary.leaderboard
    joined = board[board["dataset"] == dataset].join(summary.configurations, on="configuration")
    return [dict(row) for row in joined.to_dict("records")]


def weights_text(row: dict[str, Any]) -> str:
    """Return the weights, with the digest of the options where rows would otherwise look alike."""
    parts: tuple[str, str] = (row["weights"], row["digest"])
    return " ".join(part for part in parts if part)


def marks(row: dict[str, Any]) -> str:
    """Return the footnote marks of a row."""
    return "†" * bool(row["missing"]) + "‡" * bool(row["foreign"])


def numbers(
    rows: list[dict[str, Any]],
    columns: Sequence[Column],
    cells: Cells,
    write: Callable[[Column, Cell, int], str],
) -> list[list[str]]:
    """Return the written numbers, row by row; only ranked rows compete for the emphasis."""
    table = []
    best = {
        c.key: best_two(c, [c.cell(cells, r["configuration"]).shown for r in rows if r["rank"] == r["rank"]])
        for c in columns
    }
    for row in rows:
        line = []
        for column in columns:
            cell = column.cell(cells, row["configuration"])
            text = number_text(column, cell.shown)
            ranked = not math.isnan(row["rank"]) and text != "–"
            place = best[column.key].index(text) + 1 if ranked and text in best[column.key] else 0
            line.append(write(column, cell, place))
        table.append(line)
    return table


def interval_text(column: Column, cell: Cell) -> str:
    """Return the confidence interval, ``[0.790, 0.834]``; nothing where there is none, or no room for it."""
    if not column.interval or not has_interval(cell):
        return ""
    return f"[{cell.low:.3f}, {cell.high:.3f}]"


def short_interval(cell: Cell) -> str:
    """Return the confidence interval in small print, ``0.61–0.70``; a narrow one with one more decimal."""
    if not has_interval(cell):
        return ""
    decimals = 2 if cell.high - cell.low >= 0.02 else 3
    return f"{cell.low:.{decimals}f}–{cell.high:.{decimals}f}"


def has_interval(cell: Cell) -> bool:
    """Tell whether a printed value has a confidence interval."""
    return not (math.isnan(cell.shown) or math.isnan(cell.low) or math.isnan(cell.high))


def interval_note(protocol: Protocol) -> str:
    """Say where the intervals come from."""
    rules = protocol.bootstrap
    return f"Intervals: {100 * rules.level:g} %, bootstrap over images, {rules.draws} draws."


def rank_text(row: dict[str, Any]) -> str:
    """Return the rank; a dash for a row that cannot be compared."""
    return "–" if math.isnan(row["rank"]) else f"{row['rank']:.0f}"


def rank_interval(row: dict[str, Any]) -> str:
    """Return the interval of the rank, ``1–3``; nothing where there is none, or it is the rank itself."""
    low, high = min(row["rank_low"], row["rank"]), max(row["rank_high"], row["rank"])  # NaN stays
    return f"{low:.0f}–{high:.0f}" if high > low else ""


def footnotes(summary: Summary, dataset: str) -> list[str]:
    """Return what the marks mean and the notes of the dataset, in plain text."""
    rows = leaderboard_rows(summary, dataset)
    lines = [
        f"† {row['label']}: not ranked, its average lacks {', '.join(row['missing'])}."
        for row in rows
        if row["missing"]
    ]
    if any(row["foreign"] for row in rows):
        lines.append("‡ Not ranked, measured under other rules.")
    if any(row["random"] for row in rows):
        lines.append("RANDOM: the network's weights are random; such a row tests the plumbing, not the method.")
    lines.append("* Oracle: best threshold in hindsight, an upper limit and not a result.")
    cells = lookup(summary, dataset)
    if any(has_interval(cell) for cell in cells.values()):
        lines.append(interval_note(summary.protocol))
    if any(rank_interval(row) for row in rows):
        lines.append("Ranks, with their intervals: over the same draws of images for all rows.")
    return lines + summary.notes[dataset]
