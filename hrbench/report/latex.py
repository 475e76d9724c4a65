"""Leaderboards as LaTeX tables for a paper."""

from __future__ import annotations

import dataclasses
import re

from hrbench.report.columns import Column, limit_text
from hrbench.report.configurations import printable
from hrbench.report.summary import Row, Summary
from hrbench.report.table import Cell, Table, interval_text, overview_table

__all__ = ["latex_tables"]


def latex_tables(summary: Summary) -> str:
    r"""Return one ``table*`` per dataset for the package booktabs; input it with ``\input``."""
    protocol = summary.protocol
    parts = [f"% Protocol {printable(protocol.name)} version {protocol.version}; needs \\usepackage{{booktabs}}"]
    for board in summary.leaderboards:
        table = overview_table(board)
        caption = (
            f"{_latex(board.dataset)}: AUPRO up to several false-positive rates and by defect size "
            f"(AUPRO@{limit_text(protocol.headline_fpr)}), at native resolution; mean over seeds, then over "
            rf"categories. Best in bold, second underlined. {' '.join(map(_latex, table.notes))}"
        )
        label = re.sub(r"[^A-Za-z0-9]+", "-", board.dataset).strip("-").lower()
        parts.append(_latex_table(table, caption, label))
    return "\n\n".join(parts) + "\n"


def _latex_table(table: Table, caption: str, label: str) -> str:
    """Write the metrics of a table; rows have their short name, as a page of paper has no room for more."""
    metrics = [place for place, column in enumerate(table.columns) if column.metric]
    table = dataclasses.replace(
        table,
        columns=tuple(table.columns[place] for place in metrics),
        cells=tuple(tuple(cells[place] for place in metrics) for cells in table.cells),
        kind="category",
    )
    spans, rules, start = [""], [], 2
    for name, width in table.groups:
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    lines = [" & ".join(spans) + r" \\", " ".join(rules)]
    lines += [" & ".join(["Method", *(_latex(column.head) for column in table.columns)]) + r" \\", r"\midrule"]
    for row, cells in zip(table.rows, table.cells, strict=True):
        marks = row.marks if isinstance(row, Row) else ""
        texts = (_latex_cell(column, cell) for column, cell in zip(table.columns, cells, strict=True))
        lines.append(" & ".join([_latex(table.name(row)) + _latex(marks), *texts]) + r" \\")
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
    "·": r"$\cdot$", "ρ": r"$\rho$", "′": "$'$", "≥": r"$\ge$",
}  # fmt: skip


def _latex(text: str) -> str:
    """Escape all that LaTeX reads as markup."""
    return "".join(_LATEX.get(c, c) for c in printable(text))


def _latex_cell(column: Column, cell: Cell) -> str:
    text = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")[cell.place].format(_latex(cell.text))
    interval = interval_text(cell.estimate) if column.interval else ""
    return rf"\shortstack[r]{{{text}\\{{\tiny {interval}}}}}" if interval else text
