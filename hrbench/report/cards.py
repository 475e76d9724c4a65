"""Method cards: what a row of the leaderboard is, and where its numbers come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hrbench.report.columns import text_column
from hrbench.report.configurations import card_facts, run_details
from hrbench.report.links import file_link
from hrbench.report.summary import Leaderboard, Row
from hrbench.report.table import Cell, Table

__all__ = ["Card", "method_cards"]


@dataclasses.dataclass(frozen=True)
class Card:
    """One configuration on one dataset.

    Attributes
    ----------
    row : Row
    facts : list of (str, str)
        What all its runs share.
    runs : Table
        One line per run: what differs.
    """

    row: Row
    facts: list[tuple[str, str]]
    runs: Table


def method_cards(board: Leaderboard, folder: Path | None = None) -> list[Card]:
    """Return a card per row; what none of its runs has is no column. In `folder` the page will lie."""
    cards = []
    for row in board.rows:
        runs = [counted.run for counted in row.runs]
        details = [run_details(run.run) | {"published": run.origin.text or "–"} for run in row.runs]
        names = [name for name in details[0] if any(texts[name] != "–" for texts in details)]
        table = Table(
            columns=tuple(text_column(name, name, "") for name in names),
            rows=(None,) * len(runs),
            cells=tuple(
                tuple(
                    Cell(texts[name], link=file_link(run.folder / "run.json", folder) if name == "run" else "")
                    for name in names
                )
                for run, texts in zip(runs, details, strict=True)
            ),
            kind="plain",
            caption=f"Runs of {row.configuration.short}",
        )
        cards.append(Card(row, card_facts(runs, board.protocol), table))
    return cards
