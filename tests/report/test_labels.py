"""Names that a reader gives to methods, views, weights and rows."""

from __future__ import annotations

import re

import pytest

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.report.labels import parse_labels
from hrbench.report.page import html_page
from hrbench.report.paper_table import by_category, paper_tables
from hrbench.report.summary import summarise
from hrbench.report.terminal import terminal_table
from hrbench.report.text import csv_table, markdown_page

from .conftest import CONFIGS, Factory


def test_labels_are_in_every_format_and_nothing_else_changes(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(config) for config in CONFIGS[:3]]
    plain = summarise(runs, protocol)
    labels = {"FastFlow": "FF", "tiled:256:64": "tiles", "mobilenetv2_100 file": "MNv2"}
    labels |= {plain.leaderboards[0].rows[-1].configuration.short: "base"}
    summary = summarise(runs, protocol, labels)
    names = sorted(row.configuration.short for row in summary.leaderboards[0].rows)
    assert names == ["FF · tiles", "FF · whole:512", "base"]
    page = html_page(summary).partition("Method cards")[0]
    for text in (markdown_page(summary), terminal_table(runs, protocol, summary=summary),
                 paper_tables(summary, by_category(protocol))):  # fmt: skip
        assert "FF" in text
        assert not re.search("FastFlow|L2BT", text)
    assert "FF · tiles" in page
    assert "FastFlow · " not in page
    headline = [row.headline for row in plain.leaderboards[0].rows]
    assert headline == [row.headline for row in summary.leaderboards[0].rows]
    assert [line.split(",")[9:] for line in csv_table(summary).splitlines()] == [
        line.split(",")[9:] for line in csv_table(plain).splitlines()
    ]


def test_two_rows_cannot_share_a_name(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(config) for config in CONFIGS[:2]]
    labels = {"FastFlow · tiled:256:64": "x", "FastFlow · whole:512": "x"}
    with pytest.raises(HrbenchError, match=r"both 'FastFlow · .*' and 'FastFlow · .*' would be called 'x'"):
        summarise(runs, protocol, labels)


@pytest.mark.parametrize("text", ["x", "=x", "x=", ""])
def test_a_label_has_two_sides(text: str) -> None:
    with pytest.raises(HrbenchError, match="expected OLD=NEW"):
        parse_labels([text])


def test_one_thing_has_one_label() -> None:
    with pytest.raises(HrbenchError, match="'a' is called 'b' already"):
        parse_labels(["a=b", "a=c"])
