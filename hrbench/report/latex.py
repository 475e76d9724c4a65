"""Leaderboards as LaTeX tables for a paper."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from hrbench._util.files import name_digest
from hrbench.report.answer import MOST_SIZES, answer_table, heading_text
from hrbench.report.columns import Column, limit_text
from hrbench.report.configurations import printable
from hrbench.report.scores import read_scores
from hrbench.report.summary import Leaderboard, Row, Summary
from hrbench.report.table import Cell, Table, interval_text, overview_table
from hrbench.report.without_masks import has_masks

__all__ = ["dataset_labels", "latex_tables", "latex_text"]


def latex_tables(summary: Summary) -> str:
    r"""Return the answer, where there is one, and AUPRO of each dataset as a ``table*``; input them with ``\input``."""
    protocol = summary.protocol
    parts = [f"% Protocol {latex_text(protocol.name)} version {protocol.version}; needs \\usepackage{{booktabs}}"]
    labels = dataset_labels([board.dataset for board in summary.leaderboards])
    for board, label in zip(summary.leaderboards, labels, strict=True):
        parts += [answer] if (answer := _answer(board, label)) else []
        table = overview_table(board)
        what = (
            f"AUPRO up to several false-positive rates and by defect size (AUPRO@{limit_text(protocol.headline_fpr)})"
        )
        if not has_masks(board):
            what = "which images alarm"
        caption = (
            f"{latex_text(board.dataset)}: {what}, at native resolution; mean over seeds, then over "
            rf"categories. Best in bold, second underlined. {' '.join(map(latex_text, table.notes))}"
        )
        # Rows have their short name, as a page of paper has no room for more.
        table = _chosen(table, [place for place, column in enumerate(table.columns) if column.metric])
        parts.append(_latex_table(dataclasses.replace(table, kind="category"), caption, label))
    return "\n\n".join(parts) + "\n"


def _answer(board: Leaderboard, label: str) -> str:
    """Return what is found at the headline number of false alarms; "" without any alarm scores."""
    scores = read_scores(board)
    table = answer_table(scores, board)
    if table is None or not has_masks(board):
        return ""
    about = "Area in px, ⌀ diameter of an equal circle."
    if len(board.categories) > MOST_SIZES:
        about = "Categories: in how many a size is found reliably; which, says the page."
    at = heading_text(scores, board.protocol.alarm.headline)
    caption = (
        f"{latex_text(board.dataset)}: how small a defect is found, and what else, at {latex_text(at)}. "
        f"Best in bold, second underlined. {' '.join(map(latex_text, (about, *table.notes)))}"
    )
    return _latex_table(table, caption, f"{label}-answer")


def dataset_labels(datasets: Sequence[str]) -> list[str]:
    """Return a label for each dataset; those that would share one, or have none, get a digest of their name."""
    plain = [re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() for name in datasets]
    return [
        label if label and plain.count(label) == 1 else f"{label}-{name_digest(name)}".strip("-")
        for name, label in zip(datasets, plain, strict=True)
    ]


def _chosen(table: Table, places: Sequence[int]) -> Table:
    """Return a table with some of its columns."""
    return dataclasses.replace(
        table,
        columns=tuple(table.columns[place] for place in places),
        cells=tuple(tuple(cells[place] for place in places) for cells in table.cells),
    )


def _latex_table(table: Table, caption: str, label: str) -> str:
    spans, rules, start = [""], [], 2
    for name, width in table.groups:
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_text(name)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    lines = [" & ".join(spans) + r" \\", " ".join(rules)]
    lines += [" & ".join(["Method", *(latex_text(column.head) for column in table.columns)]) + r" \\", r"\midrule"]
    for row, cells in zip(table.rows, table.cells, strict=True):
        marks = row.marks if isinstance(row, Row) else ""
        texts = (_latex_cell(column, cell) for column, cell in zip(table.columns, cells, strict=True))
        lines.append(" & ".join([latex_text(table.name(row)) + latex_text(marks), *texts]) + r" \\")
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:hrbench-{label}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after a line break they would be its options
    "|": r"\textbar{}", "†": r"\textsuperscript{\dag}", "‡": r"\textsuperscript{\ddag}", "–": "--",
    "·": r"$\cdot$", "ρ": r"$\rho$", "′": "$'$", "≥": r"$\ge$", "≤": r"$\le$", "⌀": r"\O{}",
    "±": r"$\pm$", "≈": r"$\approx$", "`": r"\textasciigrave{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Escape all that LaTeX reads as markup."""
    return "".join(_LATEX.get(c, c) for c in printable(text))


def _latex_cell(column: Column, cell: Cell) -> str:
    text = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")[cell.place].format(latex_text(cell.text))
    interval = interval_text(cell.estimate) if column.interval else ""
    small = [interval] if interval else [] if column.metric else [latex_text(line) for line in cell.small]
    below = "".join(rf"\\{{\tiny {line}}}" for line in small)
    return rf"\shortstack[r]{{{text}{below}}}" if below else text
