"""Leaderboards as text: Markdown, CSV and a table for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from hrbench.metrics import CUMULATIVE, DISJOINT, diameter_names
from hrbench.protocol import Protocol
from hrbench.report.columns import (
    Column,
    category_columns,
    cost_columns,
    limit_text,
    number_text,
    overview_columns,
    size_columns,
)
from hrbench.report.configurations import THROUGHPUT, printable
from hrbench.report.cost import cost_notes, cost_table, device_text
from hrbench.report.protocol_comparison import ProtocolComparison, compare_protocols
from hrbench.report.rows import (
    footnotes,
    interval_text,
    leaderboard_rows,
    marks,
    numbers,
    rank_interval,
    rank_text,
    weights_text,
)
from hrbench.report.summary import Cell, Summary, lookup, summarise
from hrbench.store import Run

__all__ = ["csv_table", "markdown_page", "terminal_table"]


def markdown_page(summary: Summary, runs: Sequence[Run] = ()) -> str:
    """Return the leaderboards of all datasets as one Markdown page.

    Parameters
    ----------
    summary : Summary
    runs : sequence of Run
        Those that were summarised; with them, protocols are compared where there are several.
    """
    protocol = summary.protocol
    headline = limit_text(protocol.headline_fpr)
    parts = [
        f"# Leaderboard, protocol `{protocol.name}` version {protocol.version}",
        f"Ranked by AUPRO up to a false-positive rate of {headline}, at native resolution; "
        f"averages over seeds, then over categories. Tiny to large: AUPRO@{headline} on each quarter "
        "of the defects, by area. Best in **bold**, second in *italics*.",
    ]
    for dataset in summary.notes:
        if (rows := leaderboard_rows(summary, dataset)) == []:
            continue
        columns = overview_columns(protocol)
        heads = [_markdown(_head(column)) for column in columns]
        names = ["#", "Method", "Preset", "View", "Weights", *heads, "Seeds", "Categories"]
        lines = [names, ["--:", *[":--"] * 4, *["--:"] * (len(columns) + 2)]]
        written = numbers(rows, columns, lookup(summary, dataset), _markdown_number)
        for row, line in zip(rows, written, strict=True):
            title = row["title"] + marks(row)
            who = [_markdown(text) for text in (title, row["preset"], row["view"], weights_text(row))]
            lines.append([_rank(row), *who, *line, row["seeds"], str(row["categories"])])
        parts.append(f"## {_markdown(dataset)}")
        parts.append(_markdown_table(lines))
        parts.append("\n".join(f"- {_markdown(text)}" for text in footnotes(summary, dataset)))
        parts += _markdown_cost(summary, dataset)
        if runs and (worth := compare_protocols(runs, summary, dataset)) is not None:
            parts += _markdown_worth(worth)
    return "\n\n".join(parts) + "\n"


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cost(summary: Summary, dataset: str) -> list[str]:
    """Return heading, table and notes of what prediction costs."""
    if (table := cost_table(summary, dataset)) is None:
        return []
    heads = [f"{column.group} {column.head}".strip() for column in table.columns]
    lines = [["#", "Method", *[_markdown(head) for head in heads]], ["--:", ":--", *["--:"] * len(heads)]]
    for line in table.rows:
        name = line.row["short"] + marks(line.row)
        lines.append([line.rank, _markdown(name), *[_markdown(entry.text) for entry in line.entries]])
    notes = "\n".join(f"- {_markdown(text)}" for text in cost_notes(summary, dataset))
    return ["### What it costs", _markdown_table(lines), *([notes] if notes else [])]


def _markdown_worth(worth: ProtocolComparison) -> list[str]:
    """Return heading, sentence, table and notes; every metric starts with what it counts."""
    lines = [["Metric", "Method", *[_markdown(name) for name in worth.protocols]]]
    lines.append([":--", ":--", *["--:"] * len(worth.protocols)])
    for block in worth.blocks:
        if any(block.counts):
            lines.append([_markdown(block.name), "*defects counted*", *block.counts])
        for row, cells in block.rows:
            texts = [f"**{cell.text}**" if cell.best else cell.text for cell in cells]
            texts = [f"{text} ({c.difference})" if c.difference else text for text, c in zip(texts, cells, strict=True)]
            lines.append([_markdown(block.name), _markdown(row["short"] + marks(row)), *texts])
    title = "### What the protocol is worth"
    return [title, worth.sentence, _markdown_table(lines), _markdown(worth.notes.replace("Small:", "In brackets:"))]


def _head(column: Column) -> str:
    """Return one line for a heading that other formats write in two."""
    if column.metric == "aupro" and column.subset == "all":
        return f"AUPRO@{column.head}"
    return column.head if column.metric in ("aupro", "rho", THROUGHPUT) else f"{column.group} {column.head}"


def _markdown(text: str) -> str:
    """Escape what Markdown or the HTML inside it would read as markup."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", text)


def _markdown_number(column: Column, cell: Cell, place: int) -> str:
    text = number_text(column, cell.shown)
    text = ("{}", "**{}**", "*{}*")[place].format(text)
    interval = interval_text(column, cell)
    return f"{text} {interval}" if interval else text


def csv_table(summary: Summary) -> str:
    """Return all averages and categories with full precision; bounds and intervals where there are any.

    The row of a dataset's average has an empty `category`.
    """
    protocol = summary.protocol
    sizes = (*DISJOINT, *CUMULATIVE, *diameter_names(protocol.size_bins))
    limits = [Column(f"{name}_px", "", "", name) for name in ("a50", "a90", "a90_95")]
    costs = cost_columns()
    metrics = [column for column in category_columns(protocol) if column.key not in {cost.key for cost in costs}]
    columns = [*metrics, *costs, *size_columns(protocol, sizes), *limits]
    records = []
    for dataset in summary.notes:
        cells = lookup(summary, dataset)
        for row in leaderboard_rows(summary, dataset):
            names = {k: row[k] for k in ("method", "preset", "view", "weights", "precision", "options", "random")}
            for category in ["", *summary.category_names(dataset)]:
                if category in row["missing"]:
                    continue
                record: dict[str, Any] = {"dataset": dataset, "category": category}
                record |= {name: math.nan if category else row[name] for name in ("rank", "rank_low", "rank_high")}
                record |= names
                record |= {"seeds": row["seeds"], "categories": row["categories"]}
                record |= {"missing": ";".join(row["missing"]), "device": device_text(summary, dataset, row)}
                for column in columns:
                    cell = column.cell(cells, row["configuration"], category)
                    if column in limits and (not category or cell.defined < cell.total):
                        cell = Cell()  # a mean over those that reach it would flatter
                    key = column.key
                    record |= {key: cell.shown, f"{key}_error": cell.error, f"{key}_n": cell.n}
                    record |= {f"{key}_ci_low": cell.low, f"{key}_ci_high": cell.high}
                records.append(record)
    table = pd.DataFrame(records)
    empty = [
        name
        for name in table.columns
        if re.search(r"_(error|n|ci_low|ci_high)$", name) and (table[name].isna() | (table[name] == 0)).all()
    ]
    return str(table.drop(columns=empty).to_csv(index=False, lineterminator="\n"))


def terminal_table(runs: Sequence[Run], protocol: Protocol) -> str:
    """Return the leaderboards of all datasets as plain text for a terminal."""
    summary = summarise(runs, protocol)
    boards = ((dataset, leaderboard_rows(summary, dataset)) for dataset in summary.notes)
    return "\n\n".join(_terminal_board(summary, dataset, rows) for dataset, rows in boards if rows)


def _terminal_board(summary: Summary, dataset: str, rows: list[dict[str, Any]]) -> str:
    headline = f"aupro@{limit_text(summary.protocol.headline_fpr)}"
    heads = {"image_auroc": "I-AUC", "pixel_auroc": "P-AUC", headline: headline.upper(), "iou": "IoU"}
    heads |= {f"rho@{headline[6:]}": "rho"}  # not every terminal has Greek letters
    columns = [
        c
        for c in overview_columns(summary.protocol)
        if c.key in heads or c.metric in ("rho", THROUGHPUT) or c.subset in DISJOINT
    ]
    names = {"method": [row["title"] + marks(row) for row in rows]}
    names |= {name: [row[name] for row in rows] for name in ("preset", "view")}
    names["weights"] = [weights_text(row) for row in rows]
    # What all rows share need not take a column of a narrow terminal.
    shared = [f"{name} {texts[0]}" for name, texts in names.items() if name != "method" and len({*texts}) == 1]
    names = {k: texts for k, texts in names.items() if k == "method" or len({*texts}) > 1}

    lines = [["#", *names, *[heads.get(c.key, c.head) for c in columns], "seeds", "cat."]]
    written = numbers(rows, columns, lookup(summary, dataset), _terminal_number)
    for i, (row, line) in enumerate(zip(rows, written, strict=True)):
        who = [printable(texts[i]) for texts in names.values()]
        lines.append([_rank(row), *who, *line, row["seeds"], str(row["categories"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        aligned = [
            value.ljust(width) if 1 <= i <= len(names) else value.rjust(width)
            for i, (value, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(aligned).rstrip())
    rule = "-" * max(map(len, text))
    about = ["protocol " + summary.protocol.name, "sizes at " + headline.upper(), *shared]
    notes = [printable(note) for note in footnotes(summary, dataset) if not note.startswith("*")]
    title = f"{printable(dataset)} ({', '.join(about)})"
    return "\n".join([title, rule, text[0], rule, *text[1:], rule, *notes])


def _rank(row: dict[str, Any]) -> str:
    interval = rank_interval(row)
    return f"{rank_text(row)} ({interval})" if interval else rank_text(row)


def _terminal_number(column: Column, cell: Cell, place: int) -> str:
    text = number_text(column, cell.shown)
    shown = column.metric == "aupro"  # the terminal is narrower than a page
    return f"{text} {interval_text(column, cell)}".rstrip() if shown else text
