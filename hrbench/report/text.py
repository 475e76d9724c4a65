"""Tables written as text: Markdown and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from hrbench._util.spreadsheet import plain_cell
from hrbench.metrics import CUMULATIVE, DISJOINT, diameter_names
from hrbench.metrics.bootstrap import MIN_IMAGES
from hrbench.report.annotation import annotation_sentences, annotation_table
from hrbench.report.answer import answer_table, best_sentences, first_two_sentence, heading_text
from hrbench.report.columns import (
    Column,
    category_columns,
    cost_columns,
    limit_text,
    matched_columns,
    size_columns,
)
from hrbench.report.conditions import condition_table
from hrbench.report.configurations import printable
from hrbench.report.cost import cost_table, device_text
from hrbench.report.origins import origin_text
from hrbench.report.promise import promise_sentences
from hrbench.report.protocol_comparison import SENTENCE, compare_protocols
from hrbench.report.scores import read_scores
from hrbench.report.summary import NO_ESTIMATE, Leaderboard, Row, Summary
from hrbench.report.table import Cell, Table, interval_text, metric_table, overview_table
from hrbench.report.without_masks import has_masks

__all__ = ["csv_table", "csv_text", "markdown_page", "markdown_text"]


def markdown_page(summary: Summary) -> str:
    """Return the leaderboards of all datasets as one Markdown page."""
    protocol = summary.protocol
    headline = limit_text(protocol.headline_fpr)
    ranked = (
        "The first table is ranked by recall at equal false alarms, the others" if protocol.alarm.budgets else "Ranked"
    )
    parts = [
        f"# Leaderboard, protocol {markdown_text(protocol.name)} version {protocol.version}",
        f"{ranked} by AUPRO up to a false-positive rate of {headline}, at native resolution; "
        f"averages over seeds, then over categories. Tiny to large: AUPRO@{headline} on each quarter "
        "of the defects, by area. Best in **bold**, second in *italics*, "
        f"none of a size with fewer than {MIN_IMAGES} defects.",
    ]
    if not any(map(has_masks, summary.leaderboards)):
        parts[1] = "Averages over seeds, then over categories. Best in **bold**, second in *italics*."
    for board in summary.leaderboards:
        parts.append(f"## {markdown_text(board.dataset)}")
        scores = read_scores(board)
        if has_masks(board) and (answer := answer_table(scores, board)) is not None:
            at = heading_text(scores, protocol.alarm.headline)
            parts += [f"### How small a defect is found, at {at}", _markdown_table(answer)]
            pair = first_two_sentence(answer, board)
            notes = [*[pair] * bool(pair), *best_sentences(scores, board), *promise_sentences(board), *answer.notes]
            parts += [_markdown_list(notes)]
            parts.append("### How well, over all thresholds")
        overview = overview_table(board)
        parts += [_markdown_table(overview), _markdown_list(overview.notes)]
        if (conditions := condition_table(board)) is not None:
            parts += ["### By condition", _markdown_table(conditions)]
        if (cost := cost_table(board)) is not None:
            parts += ["### What it costs", _markdown_table(cost), *([_markdown_list(cost.notes)] if cost.notes else [])]
        if (comparison := compare_protocols(board)) is not None:
            notes = [markdown_text(note.replace("Small:", "In brackets:")) for note in comparison.notes]
            parts += ["### What the protocol is worth", SENTENCE, _markdown_table(comparison), *notes]
        if (annotation := annotation_table(board)) is not None:
            said = [
                *annotation_sentences(board),
                f"{annotation.caption.replace('small:', 'in brackets:')}.",
                *annotation.notes,
            ]
            parts += ["### How far the annotation carries", _markdown_table(annotation), _markdown_list(said)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    """Write a table; a heading of its rows becomes their first column, where others have the rank."""
    by_metric = table.kind == "protocol-comparison"
    heads = ["Metric" if by_metric else "#", "Method", *[markdown_text(column.one_line) for column in table.columns]]
    rules = [":--" if by_metric else "--:", ":--", *[":--" if column.text else "--:" for column in table.columns]]
    lines, metric = [heads, rules], ""
    for row, cells in zip(table.rows, table.cells, strict=True):
        if isinstance(row, Row):
            rank = _rank(row) if table.kind == "overview" else row.rank_text
            small = {"protocol-comparison": 1, "annotation": 1, "answer": 2, "conditions": 2}.get(table.kind, 0)
            texts = [_markdown_cell(column, cell, small) for column, cell in zip(table.columns, cells, strict=True)]
            lines.append([metric or rank, markdown_text(table.name(row) + row.marks), *texts])
            continue
        metric = markdown_text(table.name(row))
        if any(cell.text for cell in cells):
            lines.append([metric, "*defects counted*", *[markdown_text(cell.text) for cell in cells]])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rank(row: Row) -> str:
    return f"{row.rank_text} ({row.rank_interval})" if row.rank_interval else row.rank_text


def _markdown_cell(column: Column, cell: Cell, small: int) -> str:
    text = ("{}", "**{}**", "*{}*")[cell.place].format(markdown_text(cell.text))
    beside = interval_text(cell.estimate) if column.interval else ""
    if any(cell.small[:small]):
        beside = f"({markdown_text('; '.join(cell.small[:small]))})"
    return f"{text} {beside}" if beside else text


def _markdown_list(notes: Sequence[str]) -> str:
    # A note that begins like a list would open one in its item.
    return "\n".join("- " + re.sub(r"^(\d*)([-+.)])(?=[\s-])", r"\1\\\2", markdown_text(note)) for note in notes)


def markdown_text(text: str) -> str:
    """Escape what Markdown or the HTML inside it would read as markup, or as an address."""
    text = printable(text).strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # An underscore within a word is never markup.
    return re.sub(r"([\\`*{}\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.)", r"\\\1", text)


def csv_table(summary: Summary) -> str:
    """Return all averages and categories with full precision; bounds and intervals where there are any.

    The row of a dataset's average has an empty `category`.
    """
    protocol = summary.protocol
    sizes = (*DISJOINT, *CUMULATIVE, *diameter_names(protocol.size_bins))
    limits = [Column(f"{name}_px", "", "", name) for name in ("a50", "a90", "a90_95")]
    costs = cost_columns()
    metrics = [column for column in category_columns(protocol) if column.key not in {cost.key for cost in costs}]
    columns = [*metrics, *costs, *size_columns(protocol, sizes), *limits, *matched_columns(protocol)]
    records: list[dict[str, Any]] = []
    for board in summary.leaderboards:
        categories = ["", *board.categories]
        tables = {category: metric_table(board, columns, category) for category in categories}
        for row in board.rows:
            for category, table in tables.items():
                if category not in row.missing:
                    cells = table.cells[table.rows.index(row)]
                    records.append(_csv_record(board, category, row, table, cells))
    frame = pd.DataFrame(records)
    empty = [
        name
        for name in frame.columns
        if re.search(r"_(error|n|ci_low|ci_high)$", name) and (frame[name].isna() | (frame[name] == 0)).all()
    ]
    empty += [name for name in frame.columns if name.startswith("spro@") and frame[name].isna().all()]
    empty += ["held_out"] * bool(frame["held_out"].isna().all())  # all as by default
    empty += ["published"] * bool((frame["published"] == "").all())
    return csv_text(frame.drop(columns=empty))


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV in which a spreadsheet takes no text for a formula."""

    def tamed(value: Any) -> Any:
        return plain_cell(value) if isinstance(value, str) else value

    texts = {name: table[name].map(tamed) for name in table.select_dtypes(exclude="number").columns}
    return str(table.assign(**texts).to_csv(index=False, lineterminator="\n"))


def _csv_record(board: Leaderboard, category: str, row: Row, table: Table, cells: Sequence[Cell]) -> dict[str, Any]:
    of = row.configuration
    record: dict[str, Any] = {"dataset": board.dataset, "category": category}
    record |= {name: math.nan if category else getattr(row, name) for name in ("rank", "rank_low", "rank_high")}
    record |= {"method": of.method, "preset": of.preset, "view": of.view, "weights": of.weights}
    held_out = math.nan if of.held_out is None else of.held_out
    record |= {"precision": of.precision, "held_out": held_out, "options": of.options, "random": of.random}
    record |= {"seeds": row.seeds, "categories": row.categories, "missing": ";".join(row.missing)}
    record |= {"device": device_text(row), "published": origin_text(row.runs)}
    for column, cell in zip(table.columns, cells, strict=True):
        key, number = column.key, cell.estimate
        if key.endswith("_px") and (not category or number.defined < number.total):
            number = NO_ESTIMATE  # a mean over those that reach it would flatter
        record |= {key: number.shown, f"{key}_error": number.error, f"{key}_n": number.n}
        record |= {f"{key}_ci_low": number.low, f"{key}_ci_high": number.high}
    return record
