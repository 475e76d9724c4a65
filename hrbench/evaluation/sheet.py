"""A few sentences and small tables, as text and as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Grid", "Sheet", "Text"]

_WIDTH = 110


class Text(str):
    """A text of several lines that a console shows as it is printed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Grid:
    """A table of texts: its headings and its rows, the first column of which names them."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return lines with the columns below each other."""
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (
            [cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(pairs)]
            for pairs in (zip(line, widths, strict=True) for line in lines)
        )
        return "\n".join("  ".join(cells).rstrip() for cells in padded)

    def html(self) -> str:
        """Return a table element."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.heads)
        rows = (
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
            for name, *cells in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


@dataclass(frozen=True)
class Sheet:
    """What there is to say: the answer in one sentence first, then tables, then what else to know.

    Attributes
    ----------
    answer, title : str
    grids : sequence of Grid
    notes : sequence of str
    """

    answer: str
    title: str
    grids: Sequence[Grid]
    notes: Sequence[str]

    def text(self) -> str:
        """Return it for a console."""
        parts = [textwrap.fill(self.answer, _WIDTH), self.title, *(grid.text() for grid in self.grids)]
        if self.notes:
            parts.append("\n".join(textwrap.fill(note, _WIDTH) for note in self.notes))
        return "\n\n".join(parts)

    def html(self) -> str:
        """Return it for a notebook."""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        tables = "".join(grid.html() for grid in self.grids)
        return f"<div><p><b>{escape(self.answer)}</b></p><p>{escape(self.title)}</p>{tables}{notes}</div>"
