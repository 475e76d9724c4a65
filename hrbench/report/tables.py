"""Leaderboards as text: Markdown, CSV and a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from hrbench.metrics import CUMULATIVE, DISJOINT, diameter_names
from hrbench.protocol import Protocol
from hrbench.report.columns import (
    Column,
    category_columns,
    limit_text,
    number_text,
    overview_columns,
    printable,
    size_columns,
)
from hrbench.report.configurations import THROUGHPUT
from hrbench.report.rows import (
    footnotes,
    interval_text,
    leaderboard_rows,
    marks,
    numbers,
    rank_text,
    weights_text,
)
from hrbench.report.summary import Cell, Summary, lookup, summarise
from hrbench.store import Run

__all__ = ["csv_table", "markdown_page", "terminal_table"]


def markdown_page(summary: Summary) -> str:
    """Return the leaderboards of all datasets as one Markdown page."""
    protocol = summary.protocol
    parts = [
        f"# Leaderboard, protocol `{protocol.name}` version {protocol.version}",
        f"Ranked by AUPRO up to a false-positive rate of {limit_text(protocol.headline_fpr)}, at native "
        "resolution; averages over seeds, then over categories. Best in **bold**, second in *italics*.",
    ]
    for dataset in summary.notes:
        if (rows := leaderboard_rows(summary, dataset)) == []:
            continue
        columns = overview_columns(protocol)
        heads = [
            f"{c.group} {c.head}".replace("robust- ness", "robustness").replace("speed ", "") for c in columns
        ]
        names = ["#", "Method", "Preset", "View", "Weights", *heads, "Seeds", "Categories"]
        lines = [names, ["--:", *[":--"] * 4, *["--:"] * (len(columns) + 2)]]
        written = numbers(rows, columns, lookup(summary, dataset), _markdown_number)
        for row, line in zip(rows, written, strict=True):
            title = row["title"] + marks(row)
            who = [_markdown(text) for text in (title, row["preset"], row["view"], weights_text(row))]
            lines.append([rank_text(row), *who, *line, row["seeds"], str(row["categories"])])
        parts.append(f"## {_markdown(dataset)}")
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        parts.append("\n".join(f"- {_markdown(text)}" for text in footnotes(summary, dataset)))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    """Escape what Markdown or the HTML inside it would read as markup."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", text)


def _markdown_number(column: Column, cell: Cell, place: int) -> str:
    text = number_text(column, cell.shown)
    text = ("{}", "**{}**", "*{}*")[place].format(text)
    interval = interval_text(cell)
    return f"{text} {interval}" if interval else text


def csv_table(summary: Summary) -> str:
    """Return all averages and categories with full precision; bounds and intervals where there are any.

    The row of a dataset's average has an empty `category`.
    """
    protocol = summary.protocol
    sizes = (*DISJOINT, *CUMULATIVE, *diameter_names(protocol.size_bins))
    columns = [*category_columns(protocol), *size_columns(protocol, sizes)]
    records = []
    for dataset in summary.notes:
        cells = lookup(summary, dataset)
        for row in leaderboard_rows(summary, dataset):
            names = {k: row[k] for k in ("method", "preset", "view", "weights", "options", "random")}
            for category in ["", *summary.category_names(dataset)]:
                if category in row["missing"]:
                    continue
                record = {"dataset": dataset, "category": category}
                record |= {"rank": "" if category else rank_text(row).strip("–")} | names
                record |= {"seeds": row["seeds"], "categories": row["categories"]}
                record |= {"missing": ";".join(row["missing"])}
                for column in columns:
                    cell = column.cell(cells, row["configuration"], category)
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
    wanted = ["image_auroc", "pixel_auroc", f"aupro@{limit_text(protocol.headline_fpr)}"]
    parts = []
    for dataset in summary.notes:
        if (rows := leaderboard_rows(summary, dataset)) == []:
            continue
        columns = [
            c
            for c in overview_columns(protocol)
            if c.key in wanted or c.metric in ("rho", "iou", THROUGHPUT) or c.subset in DISJOINT
        ]
        heads = {"image_auroc": "I-AUC", "pixel_auroc": "P-AUC", wanted[2]: "AUPRO@" + wanted[2][6:]}
        heads |= {"iou": "IoU"} | {c.key: "rho" for c in columns if c.metric == "rho"}
        names = [
            "#",
            "method",
            "preset",
            "view",
            "weights",
            *[heads.get(c.key, c.head) for c in columns],
            "seeds",
        ]
        lines = [[*names, "cat."]]
        written = numbers(rows, columns, lookup(summary, dataset), _terminal_number)
        for row, line in zip(rows, written, strict=True):
            who = [row["title"] + marks(row), row["preset"], row["view"], weights_text(row)]
            lines.append(
                [rank_text(row), *[printable(t) for t in who], *line, row["seeds"], str(row["categories"])]
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                value.ljust(width) if 1 <= i <= 4 else value.rjust(width)
                for i, (value, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, text))
        notes = [printable(note) for note in footnotes(summary, dataset) if not note.startswith("*")]
        title = f"{printable(dataset)} (protocol {protocol.name}, sizes at AUPRO@{limit_text(protocol.headline_fpr)})"
        parts.append("\n".join([title, rule, text[0], rule, *text[1:], rule, *notes]))
    return "\n\n".join(parts)


def _terminal_number(column: Column, cell: Cell, place: int) -> str:
    text = number_text(column, cell.shown)
    shown = column.metric == "aupro" and column.subset == "all"
    return f"{text} {interval_text(cell)}".rstrip() if shown else text
