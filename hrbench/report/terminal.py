"""Tables and links as text for a terminal, as wide as it is."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from hrbench.metrics import DISJOINT
from hrbench.protocol import Protocol
from hrbench.report.annotation import annotation_sentences, annotation_table
from hrbench.report.answer import MOST_SIZES, answer_table, first_two_sentence, heading_text, hit_sentence
from hrbench.report.closing import closing
from hrbench.report.columns import Column, limit_text
from hrbench.report.configurations import THROUGHPUT, printable
from hrbench.report.promise import promise_sentences
from hrbench.report.scores import read_scores
from hrbench.report.summary import Leaderboard, Row, Summary, summarise
from hrbench.report.table import Cell, Table, interval_text, overview_table
from hrbench.report.without_masks import has_masks, terminal_heads
from hrbench.runs.store import Run

__all__ = [
    "PLAIN",
    "Terminal",
    "TerminalColumn",
    "annotation_text",
    "bars_text",
    "print_annotation",
    "print_links",
    "print_tables",
    "terminal_lines",
    "terminal_table",
]

MOST_CATEGORIES = 3
"""Categories that get sentences of their own below the tables."""

_BARS = "▁▂▃▄▅▆▇█"
_SHORTEST = 16  # characters that a name is cut to at most
_ALWAYS = 100  # of TerminalColumn.keep: never left out
_TAKE_LINKS = ("VTE_VERSION", "KITTY_WINDOW_ID", "KONSOLE_VERSION", "WT_SESSION", "ALACRITTY_WINDOW_ID", "WEZTERM_PANE")
_PROGRAMS_TAKE_LINKS = ("iTerm.app", "WezTerm", "vscode", "ghostty", "Hyper", "rio")


@dataclass(frozen=True)
class Terminal:
    """What the output can show.

    Attributes
    ----------
    width : int, optional
        Characters of a line; None for a file or a pipe, which take any.
    bars : bool
        Whether it has the characters of bars.
    links : bool
        Whether it makes links of OSC 8 sequences clickable, and prints no rubbish for them.
    """

    width: int | None = None
    bars: bool = False
    links: bool = False

    @staticmethod
    def here(stream: TextIO | None = None) -> Terminal:
        """Return what standard output, or another stream, can show."""
        stream = stream or sys.stdout
        try:
            _BARS.encode(stream.encoding or "ascii")
            bars = True
        except (UnicodeError, LookupError):
            bars = False
        if not stream.isatty():
            return Terminal(bars=bars)
        links = any(os.environ.get(name) for name in _TAKE_LINKS)
        links |= os.environ.get("TERM_PROGRAM") in _PROGRAMS_TAKE_LINKS
        links &= os.environ.get("TERM") not in ("dumb", "linux")
        return Terminal(shutil.get_terminal_size().columns, bars, links)

    def link(self, path: Path) -> str:
        """Return a path that can be clicked on where the terminal can do that, else as it is.

        See https://gist.github.com/egmontkob/eb114294efbcd5adb1944c9f3cb5feda for the sequence.
        """
        text = printable(str(path))
        if not self.links:
            return text
        address = f"file://{quote(socket.gethostname())}{quote(str(path.absolute()))}"
        return f"\x1b]8;;{address}\x1b\\{text}\x1b]8;;\x1b\\"

    def wrap(self, text: str, indent: str = "") -> str:
        """Return a sentence in lines of the terminal's width; those after the first are indented."""
        if self.width is None:
            return text
        return textwrap.fill(
            text, max(self.width, 20), subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
        )


PLAIN = Terminal()
"""Of any width, without characters that not every encoding has."""


@dataclass(frozen=True)
class TerminalColumn:
    """A column of a table.

    Attributes
    ----------
    head : str
    texts : tuple of str
        Line by line.
    keep : int
        Where the table is too wide the columns with the lowest number go first; those of 100 stay.
    left : bool
        Whether it is left-aligned.
    brief : tuple of str
        Shorter texts, tried before the column goes.
    """

    head: str
    texts: tuple[str, ...]
    keep: int = _ALWAYS
    left: bool = False
    brief: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Characters of its longest text."""
        return max(map(len, (self.head, *self.texts)))


def terminal_table(
    runs: Sequence[Run], protocol: Protocol, *, summary: Summary | None = None, terminal: Terminal = PLAIN
) -> str:
    """Return the leaderboards of all datasets as plain text for a terminal; `summary` as for the page."""
    summary = summary or summarise(runs, protocol)
    return "\n\n".join(_board(board, terminal) for board in summary.leaderboards)


def print_tables(runs: Sequence[Run], protocol: Protocol, *, summary: Summary | None = None) -> None:
    """Print the leaderboards of all datasets as standard output can show them."""
    print(terminal_table(runs, protocol, summary=summary, terminal=Terminal.here()))


def print_annotation(summary: Summary) -> None:
    """Print what becomes of the numbers of all categories under masks one pixel wider and narrower."""
    terminal = Terminal.here()
    for board in summary.leaderboards:
        for category in board.categories:
            if (text := annotation_text(board, category, terminal)) is not None:
                print(f"{text}\n")


def annotation_text(board: Leaderboard, category: str, terminal: Terminal = PLAIN) -> str | None:
    """Return a table of what becomes of the numbers of a category under other masks; None where that is not known."""
    table = annotation_table(board, category)
    if table is None:
        return None
    columns, metrics = _heads(table, ranks=False), ("miou", "recall", "recall_matched", "aupro")
    for column, cells in zip(table.columns, zip(*table.cells, strict=True), strict=True):
        texts = tuple(f"{cell.text} [{cell.small[0]}]" if cell.small else cell.text for cell in cells)
        keep = 10 * metrics.index(column.metric) + (column.subset in ("all", DISJOINT[0]))
        columns.append(TerminalColumn(f"{column.metric.partition('_')[0]} {column.subset}", texts, keep))
    of = board.dataset if len(board.categories) == 1 else f"{board.dataset}, {category}"
    groups = ", ".join(name for name, _ in table.groups)
    title = f"{printable(of)}: {groups}; in brackets the lowest and highest with masks 1 px narrower or wider"
    return terminal_lines(title, columns, [*annotation_sentences(board, category), *table.notes], terminal)


def print_links(paths: Iterable[Path]) -> None:
    """Print paths, a line for each, that can be clicked on where the terminal can do that."""
    terminal = Terminal.here()
    for path in paths:
        print(terminal.link(path))


def _board(board: Leaderboard, terminal: Terminal) -> str:
    parts = (_answer(board, terminal), _overview(board, terminal), _closing(board, terminal))
    return "\n\n".join(filter(None, parts))


def _answer(board: Leaderboard, terminal: Terminal) -> str:
    """Return what is found at the headline number of false alarms; "" without any alarm scores."""
    scores = read_scores(board)
    table = answer_table(scores, board)
    if table is None or not has_masks(board):
        return ""
    columns = _heads(table, ranks=False)
    first = len(board.categories) if len(board.categories) <= MOST_SIZES else 0
    keep = {"recall": _ALWAYS, "tiny": 8, "small": 4, "medium": 3, "large": 6, "called": 7, "rightly": 5, "alarms": 2}
    for place, (column, cells) in enumerate(zip(table.columns, zip(*table.cells, strict=True), strict=True)):
        size = place < first
        brief = tuple(cell.text for cell in cells)
        head, texts = printable(column.line), tuple(map(_size, cells)) if size else brief
        columns.append(TerminalColumn(head, texts, 90 if size else keep.get(head, 7), brief=brief if size else ()))
        if column.line == "recall":
            columns += _bars(table, "recall_", terminal)
    title = f"{printable(board.dataset)}, found at {heading_text(scores, board.protocol.alarm.headline)}"
    shown = "Called: defective images that alarm; rightly: those of them with a defect hit."
    pair = first_two_sentence(table, board)
    notes = [*[pair] * bool(pair), f"{hit_sentence(board.protocol)} {shown}", *promise_sentences(board)]
    return terminal_lines(title, columns, notes, terminal)


def _size(cell: Cell) -> str:
    return f"{cell.text} [{cell.small[1].removesuffix(' px')}]" if len(cell.small) > 1 else cell.text


def _overview(board: Leaderboard, terminal: Terminal) -> str:
    table = overview_table(board)
    headline = f"aupro@{limit_text(board.protocol.headline_fpr)}"
    heads = {"image_auroc": "I-AUC", "pixel_auroc": "P-AUC", headline: headline.upper(), "iou": "IoU"}
    heads |= {f"rho@{headline[6:]}": "rho"}  # not every terminal has Greek letters
    regions = headline.replace("aupro", "spro")
    heads[regions] = regions.replace("spro", "sPRO")
    masked = has_masks(board)
    heads |= {} if masked else terminal_heads(board.protocol)
    heads |= {"seeds": "seeds", "categories": "cat.", THROUGHPUT: "Mpx/s"}
    keep = {"I-AUC": 12, "tiny": 11, "large": 10, "IoU": 9, "Mpx/s": 8, "small": 7, "medium": 6, "P-AUC": 5, "rho": 4}
    keep |= {headline.upper(): _ALWAYS, heads[regions]: 13, "seeds": 2, "cat.": 1}
    columns, texts, shared = _heads(table, ranks=True), [], []
    for column, cells in zip(table.columns, zip(*table.cells, strict=True), strict=True):
        if column.text:
            words = tuple(printable(cell.text) for cell in cells)
            if len(set(words)) == 1:  # what all rows share need not take a column of a narrow terminal
                shared.append(f"{column.key} {words[0]}")
            else:
                texts.append(TerminalColumn(column.key, words, left=True))
        elif column.key in heads or column.subset in DISJOINT:
            head = heads.get(column.key, column.head)
            numbers = tuple(_number(column, cell) for cell in cells)
            brief = tuple(cell.text for cell in cells)
            columns.append(TerminalColumn(head, numbers, keep.get(head, 1), brief=brief * (brief != numbers)))
            if column.key == headline:
                columns += _bars(table, "aupro", terminal)
    columns[2:2] = texts
    without = []
    if terminal.width is not None and _width(columns) > terminal.width:
        rows = [row for row in table.rows if isinstance(row, Row)]
        short = tuple(printable(row.configuration.short + row.marks) for row in rows)
        if max(map(len, short)) < sum(column.width + 2 for column in columns[1 : 2 + len(texts)]):
            columns[1 : 2 + len(texts)] = [replace(columns[1], texts=short)]
            columns[0] = replace(columns[0], texts=tuple(row.rank_text for row in rows))
            without = [column.head for column in texts if column.head != "view"]  # names tell views that differ
    about = ["protocol " + printable(board.protocol.name), *["sizes at " + headline.upper()] * masked, *shared]
    notes = [note for note in table.notes if not note.startswith("*")]
    if any(column.metric == "called_matched" for column in table.columns):
        notes.insert(0, "called@N: of the defective images, at N false alarms per 100 good ones.")
    return terminal_lines(f"{printable(board.dataset)} ({', '.join(about)})", columns, notes, terminal, without)


def _closing(board: Leaderboard, terminal: Terminal) -> str:
    """Return three sentences for each category, as far as they are few."""
    scores = read_scores(board)
    found = [(name, said) for name in board.categories if (said := closing(scores, board, name)) is not None]
    lines = []
    for name, said in found[:MOST_CATEGORIES]:
        start, *rest = (printable(text) for text in said)
        lines.append(terminal.wrap(f"{printable(name)}: {start}", "  "))
        lines += [terminal.wrap(f"  {text}", "  ") for text in rest]
    if len(found) > MOST_CATEGORIES:
        lines.append(f"The same of {len(found) - MOST_CATEGORIES} more categories stands on the page.")
    return "\n".join(lines)


def _heads(table: Table, *, ranks: bool) -> list[TerminalColumn]:
    rows = [row for row in table.rows if isinstance(row, Row)]
    first = (f"{row.rank_text} ({row.rank_interval})" if ranks and row.rank_interval else row.rank_text for row in rows)
    names = (printable(table.name(row) + row.marks) for row in rows)
    return [TerminalColumn("#", tuple(first)), TerminalColumn("method", tuple(names), left=True)]


def _bars(table: Table, prefix: str, terminal: Terminal) -> list[TerminalColumn]:
    """Return the column of bars, tiny to large, if the terminal has such characters and the table such numbers."""
    places = [
        next((at for at, column in enumerate(table.columns) if _is_of(column, prefix, size)), None) for size in DISJOINT
    ]
    if not terminal.bars or None in places:
        return []
    lines = tuple(bars_text([cells[at].bar for at in places if at is not None]) for cells in table.cells)
    return [TerminalColumn("sizes", lines, 95)] if any(line.strip() for line in lines) else []


def _is_of(column: Column, prefix: str, size: str) -> bool:
    return column.key == f"{prefix}{size}" or (column.metric == prefix and column.subset == size)


def bars_text(values: Sequence[float | None]) -> str:
    """Return a bar for each share, tiny to large; a blank for none.

    Examples
    --------
    >>> bars_text([0.0, 0.3, 0.62, 1.0])
    '▁▃▅█'
    """
    return "".join(
        " " if value is None else _BARS[min(int(max(value, 0.0) * len(_BARS)), len(_BARS) - 1)] for value in values
    )


def _number(column: Column, cell: Cell) -> str:
    # The terminal is narrower than a page.
    shown = column.interval and column.metric in ("aupro", "spro", "called_matched", "alarms")
    return f"{cell.text} {interval_text(cell.estimate)}".rstrip() if shown else cell.text


def terminal_lines(
    title: str,
    columns: Sequence[TerminalColumn],
    notes: Sequence[str] = (),
    terminal: Terminal = PLAIN,
    without: Sequence[str] = (),
) -> str:
    """Write columns between rules; those that do not fit into the terminal's width are named below.

    Parameters
    ----------
    title : str
    columns : sequence of TerminalColumn
        If nothing more can be left out, the texts of the longest left-aligned one are cut.
    notes : sequence of str
        Sentences that stand below.
    terminal : Terminal
    without : sequence of str
        Headings of columns that have been left out already.
    """
    columns = list(columns)
    dropped: list[str] = []
    while terminal.width is not None and _width(columns) > terminal.width:
        least = min(columns, key=lambda column: (column.keep, not column.brief))
        if least.brief:
            columns[columns.index(least)] = replace(least, texts=least.brief, brief=())
            continue
        if least.keep >= _ALWAYS:
            columns = _cut(columns, _width(columns) - terminal.width)
            break
        dropped.insert(0, least.head)
        columns.remove(least)
    lines = []
    for line in zip(*([column.head, *column.texts] for column in columns), strict=True):
        padded = (
            text.ljust(column.width) if column.left else text.rjust(column.width)
            for text, column in zip(line, columns, strict=True)
        )
        lines.append("  ".join(padded).rstrip())
    rule = "-" * max(map(len, lines))
    said = [terminal.wrap(printable(note)) for note in notes]
    if names := ", ".join([*dropped, *without]):
        text = f"Left out, for the terminal is {terminal.width} characters wide: {names}"
        said.insert(0, terminal.wrap(text.rstrip(".") + "."))
    return "\n".join([terminal.wrap(title), rule, lines[0], rule, *lines[1:], rule, *said])


def _width(columns: Sequence[TerminalColumn]) -> int:
    return sum(column.width + 2 for column in columns) - 2


def _cut(columns: Sequence[TerminalColumn], excess: int) -> list[TerminalColumn]:
    """Shorten the longest left-aligned texts in their middle: their ends tell them apart."""
    at = max(range(len(columns)), key=lambda at: columns[at].width * columns[at].left)
    width = max(columns[at].width - excess, _SHORTEST)
    head = width // 2
    texts = tuple(
        text if len(text) <= width else f"{text[:head]}~{text[len(text) - (width - head - 1) :]}"
        for text in columns[at].texts
    )
    return [*columns[:at], replace(columns[at], texts=texts), *columns[at + 1 :]]
