"""What an archive of maps for the publisher's server holds, as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from hrbench.report.terminal import PLAIN, Terminal, TerminalColumn, terminal_lines
from hrbench.runs.server_archive_check import Part

__all__ = ["archive_text"]


def archive_text(title: str, parts: Sequence[Part], terminal: Terminal = PLAIN) -> str:
    """Return a table of the folders that hold anything."""
    held = [part for part in parts if part.maps or part.decisions]
    columns = [
        TerminalColumn("object", tuple(part.category for part in held), left=True),
        TerminalColumn("folder", tuple(part.folder for part in held), left=True),
        TerminalColumn("maps", tuple(str(len(part.maps)) for part in held)),
        TerminalColumn("decisions", tuple(str(len(part.decisions)) for part in held)),
        TerminalColumn(
            "scores", tuple(f"{part.lowest:.4g} to {part.highest:.4g}" if part.maps else "" for part in held), keep=2
        ),
        TerminalColumn("distinct", tuple(f"{median(part.distinct):,.0f}" if part.distinct else "" for part in held)),
        TerminalColumn("called", tuple(f"{part.called / part.pixels:.2%}" if part.pixels else "" for part in held)),
        TerminalColumn("images that alarm", tuple(str(part.alarms) for part in held), keep=3),
    ]
    return terminal_lines(title, columns, terminal=terminal)
