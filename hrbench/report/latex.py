"""Leaderboards as LaTeX tables for a paper."""

from __future__ import annotations

import re
from itertools import groupby

from hrbench.report.columns import Column, limit_text, number_text, overview_columns
from hrbench.report.configurations import printable
from hrbench.report.rows import footnotes, interval_text, leaderboard_rows, marks, numbers
from hrbench.report.summary import Cell, Summary, lookup

__all__ = ["latex_tables"]


def latex_tables(summary: Summary) -> str:
    r"""Return one ``table*`` per dataset for the package booktabs; input it with ``\input``."""
    protocol = summary.protocol
    parts = [f"% Protocol {printable(protocol.name)} version {protocol.version}; needs \\usepackage{{booktabs}}"]
    for dataset in summary.notes:
        if (rows := leaderboard_rows(summary, dataset)) == []:
            continue
        columns = overview_columns(protocol)
        groups = [(name, len(list(group))) for name, group in groupby(columns, key=lambda c: c.group)]
        spans = ["", *[rf"\multicolumn{{{n}}}{{c}}{{{_latex(name)}}}" for name, n in groups]]
        rules, start = [], 2
        for _, width in groups:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
            start += width
        lines = [" & ".join(spans) + r" \\", " ".join(rules)]
        lines.append(" & ".join(["Method", *[_latex(c.head) for c in columns]]) + r" \\")
        lines.append(r"\midrule")
        written = numbers(rows, columns, lookup(summary, dataset), _latex_number)
        for row, line in zip(rows, written, strict=True):
            label = _latex(row["short"]) + _latex(marks(row))
            lines.append(" & ".join([label, *line]) + r" \\")
        notes = " ".join(_latex(text) for text in footnotes(summary, dataset))
        caption = (
            f"{_latex(dataset)}: AUPRO up to several false-positive rates and by defect size "
            f"(AUPRO@{limit_text(protocol.headline_fpr)}), at native resolution; mean over seeds, then over "
            rf"categories. Best in bold, second underlined. {notes}"
        )
        label = re.sub(r"[^A-Za-z0-9]+", "-", dataset).strip("-").lower()
        parts.append(
            "\n".join(
                [
                    r"\begin{table*}[t]",
                    r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
                    rf"\caption{{{caption}}}",
                    rf"\label{{tab:hrbench-{label}}}",
                    rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
                    r"\toprule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table*}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


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


def _latex_number(column: Column, cell: Cell, place: int) -> str:
    text = number_text(column, cell.shown).replace("–", "--")
    text = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")[place].format(text)
    interval = interval_text(column, cell)
    return rf"\shortstack[r]{{{text}\\{{\tiny {interval}}}}}" if interval else text
