"""Texts in CSV files that people open with a spreadsheet."""

from __future__ import annotations

__all__ = ["plain_cell"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a cell begins with that spreadsheets evaluate."""


def plain_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: what begins like one gets a ``'``.

    Its lines are joined, because not every reader takes the quotes around them for the sign that they are one.

    Examples
    --------
    >>> plain_cell("=1+1"), plain_cell("bolt/001.png")
    ("'=1+1", 'bolt/001.png')
    """
    return "'" * text.startswith(_FORMULA) + " ".join(text.splitlines())
