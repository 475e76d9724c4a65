"""What a terminal gets: as wide as it is, and what it can show."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from hrbench.protocol import Protocol
from hrbench.report.closing import closing
from hrbench.report.page import html_page
from hrbench.report.scores import read_scores
from hrbench.report.summary import summarise
from hrbench.report.terminal import Terminal, TerminalColumn, bars_text, terminal_lines, terminal_table
from hrbench.runs.store import Run

from .conftest import CONFIGS, Factory, board_of
from .test_answer import RULES, scored_run


@pytest.mark.parametrize("width", [44, 60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal_and_all_that_is_left_out_is_named(
    runs: list[Run], protocol: Protocol, width: int
) -> None:
    whole, text = terminal_table(runs, protocol), terminal_table(runs, protocol, terminal=Terminal(width))
    assert max(map(len, text.splitlines())) <= width
    for board, narrow in zip(whole.split("\n\n"), text.split("\n\n"), strict=True):
        rule = re.compile(r"^-+\n(.*)\n-+$", re.M)
        heads, shown = (set(match[1].split()) for match in (rule.search(board), rule.search(narrow)) if match)
        said = re.search(r" characters wide: ([^:]*?)\.(?= (RANDOM|†|$))", " ".join(narrow.splitlines()))
        lacking = heads - shown - {"view"}  # the names of the rows say it
        told = said[1].split(", ") if said else ()
        assert {name.rstrip(".") for name in lacking} == {name.rstrip(".") for name in told}


def test_a_wide_terminal_leaves_nothing_out(runs: list[Run], protocol: Protocol) -> None:
    assert terminal_table(runs, protocol, terminal=Terminal(400)) == terminal_table(runs, protocol)


def test_bars_stand_where_they_can_be_shown(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(config) for config in CONFIGS[:2]]
    text = terminal_table(runs, protocol, terminal=Terminal(bars=True))
    assert len(re.findall(r"[▁-█]{4}", text)) == 2
    assert not re.search("[▁-█]", terminal_table(runs, protocol))
    assert bars_text([0.0, None, 0.5, 1.0, 1.2]) == "▁ ▅██"


def test_a_table_that_nothing_can_be_left_out_of_cuts_names_in_their_middle() -> None:
    names = ("a" * 20 + " · tiled:256:64", "a" * 20 + " · whole:256")
    columns = [TerminalColumn("method", names, left=True), TerminalColumn("recall", ("0.5", "0.6"))]
    lines = terminal_lines("t", columns, terminal=Terminal(30)).splitlines()
    assert max(map(len, lines)) == 30
    assert lines[4].startswith("aaaaaaaaaaa~tiled:256:64") or "~" in lines[4]
    assert lines[4].split()[0] != lines[5].split()[0] or lines[4] != lines[5]


def test_a_shorter_text_comes_before_no_column() -> None:
    a90 = TerminalColumn("a90", ("312 px [>= 250]",), 90, brief=("312 px",))
    lines = terminal_lines("t", [TerminalColumn("method", ("x" * 10,), left=True), a90], terminal=Terminal(20))
    assert "312 px" in lines
    assert "250" not in lines
    assert "Left out" not in lines


def test_links_only_where_the_terminal_takes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Screen(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    def here() -> Terminal:
        return Terminal.here(Screen(io.BytesIO(), encoding="utf-8"))

    for name in ("VTE_VERSION", "KITTY_WINDOW_ID", "KONSOLE_VERSION", "WT_SESSION", "TERM_PROGRAM", "TERM",
                 "ALACRITTY_WINDOW_ID", "WEZTERM_PANE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    page = tmp_path / "a page.html"
    assert here().link(page) == str(page)
    monkeypatch.setenv("VTE_VERSION", "7600")
    assert re.fullmatch(r"\x1b]8;;file://[^/]*/.*/a%20page\.html\x1b\\.*/a page\.html\x1b]8;;\x1b\\", here().link(page))
    monkeypatch.setenv("TERM", "dumb")
    assert here().link(page) == str(page)
    assert Terminal.here(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) == Terminal()


def test_a_run_ends_with_three_sentences(tmp_path: Path) -> None:
    run = scored_run(tmp_path, 0)
    board = board_of([run], RULES)
    said = closing(read_scores(board), board, "ballscrew")
    assert said is not None
    assert said.found.startswith("At 5 false alarms per 100 good images FastFlow ")
    assert "good images alarm" in said.alarms
    assert re.search(r"takes about \d+ more defects, and .* about 110 more good images\.$", said.needed)
    text = terminal_table([run], RULES)
    assert text.endswith(f"ballscrew: {said.found}\n  {said.alarms}\n  {said.needed}")
    page = html_page(summarise([run], RULES))
    places = [page.index(f"<li>{sentence}</li>") for sentence in said]
    assert places == sorted(places)
    assert places[-1] < page.index('<div class="alarms"') < page.index('class="answer"')
