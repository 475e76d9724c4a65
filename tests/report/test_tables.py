from __future__ import annotations

import io
import math
import re
from collections.abc import Callable

import pandas as pd
import pytest

from hrbench.protocol import Protocol
from hrbench.report.columns import (
    Column,
    category_columns,
    cost_columns,
    error_text,
    number_text,
    overview_columns,
    size_text,
)
from hrbench.report.configurations import THROUGHPUT
from hrbench.report.latex import latex_tables
from hrbench.report.page import html_page
from hrbench.report.summary import Estimate, Summary, summarise
from hrbench.report.table import emphasis, metric_table, short_interval
from hrbench.report.terminal import terminal_table
from hrbench.report.text import csv_table, markdown_page
from hrbench.runs.store import Run

from .conftest import CONFIGS, PROTOCOL, board_of

Factory = Callable[..., Run]
AUPRO = Column("aupro", "", "", "aupro")
SPEED = Column(THROUGHPUT, "", "", THROUGHPUT, contest=False)
EVERY = frozenset("abc")


@pytest.fixture(scope="module")
def summary(runs: list[Run]) -> Summary:
    return summarise(runs, PROTOCOL)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("aupro", 0.12345, "0.123"),
        ("aupro", 1.0, "1.000"),
        ("aupro", math.nan, "–"),
        (THROUGHPUT, 0.012345, "0.0123"),
        (THROUGHPUT, 1.2345, "1.23"),
        (THROUGHPUT, 1234.5, "1,234"),
        ("fpr", 0.00012345, "0.00012"),
    ],
)
def test_numbers(metric: str, value: float, text: str) -> None:
    assert number_text(metric, value) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [(3.2e-7, "4e-7"), (3e-7, "3e-7"), (9.5e-7, "1e-6"), (0.0, "0"), (math.nan, ""), (0.02, "2e-2")],
)
def test_error_bounds_round_up(error: float, text: str) -> None:
    assert error_text(error) == text


def places(values: list[float], covered: list[frozenset[str]] | None = None, foreign: int = -1) -> list[int]:
    rows = range(len(values))
    comparable = [row != foreign for row in rows]
    return emphasis(AUPRO, [Estimate(value) for value in values], covered or [EVERY for _ in rows], comparable)


def test_best_and_second_go_by_what_is_printed() -> None:
    assert places([0.70001, 0.70004, 0.5, math.nan, 0.4]) == [1, 1, 2, 0, 0]
    assert places([0.7]) == [0]
    assert emphasis(SPEED, [Estimate(1.0), Estimate(2.0)], [EVERY, EVERY], [True, True]) == [0, 0]


def test_only_numbers_of_the_same_images_and_rules_compete() -> None:
    fewer = frozenset("ab")
    assert places([0.9, 0.8, 0.7], [fewer, EVERY, EVERY]) == [0, 1, 2]
    assert places([0.9, 0.8, 0.7], [fewer, fewer, fewer]) == [1, 2, 0]  # where no row has more, nothing is left out
    assert places([0.9, 0.8, 0.7], foreign=0) == [0, 1, 2]
    assert places([0.9, 0.8, 0.7], [EVERY, fewer, fewer], foreign=0) == [0, 1, 2]


def test_an_average_does_not_win_by_what_it_leaves_out(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(config, category=category) for category in ("a", "b") for config in CONFIGS[:3]]
    table = runs[0].records
    table.loc[table["metric"] == "iou", "value"] = math.nan
    board = board_of(runs, protocol)
    columns = [column for column in overview_columns(protocol) if column.metric in ("iou", "iou_oracle")]
    cells = metric_table(board, columns).cells
    places_of = {row.runs[0].run: [cell.place for cell in line] for row, line in zip(board.rows, cells, strict=True)}
    assert [places_of[run][0] for run in runs[:3]] == [0, 1, 2]
    assert places_of[runs[0]][1] == 1


def test_every_metric_of_a_table_is_explained(protocol: Protocol) -> None:
    columns = [*overview_columns(protocol), *category_columns(protocol), *cost_columns()]
    assert all(column.title for column in columns)
    assert {column.metric for column in columns if column.least} == {
        "fpr", "fpr_decision", "ms_median", "ms_p95", "peak_device_mib", "peak_host_mib",
    }  # fmt: skip


def test_size_names() -> None:
    assert [size_text(s) for s in ("tiny", "d<8", "d8-16", "d>=128")] == ["tiny", "< 8", "8–16", "≥ 128"]


def test_column_keys_are_unique(protocol: Protocol) -> None:
    keys = [column.key for column in overview_columns(protocol)]
    assert len(set(keys)) == len(keys)


def test_markdown_tables_are_rectangular_and_escaped(summary: Summary) -> None:
    text = markdown_page(summary)
    tables = [block for block in text.split("\n\n") if block.startswith("| #")]
    assert len(tables) == 4  # leaderboard and cost of two datasets
    for table in tables:
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(bars)) == 1
    assert "<b>" not in text
    assert "\x1b" not in text
    assert "**" in tables[0]
    assert "RANDOM" in tables[0]
    assert "† L2BT" in text.replace("\\", "")
    assert "lacks wood" in text


def test_markdown_shows_intervals_where_there_are_any(make_run: Factory, protocol: Protocol) -> None:
    with_intervals = markdown_page(summarise([make_run(intervals=True)], protocol))
    assert re.search(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", with_intervals)
    assert "–" in markdown_page(summarise([make_run(CONFIGS[3])], protocol))


def test_intervals_are_printed_for_the_headline_and_its_robustness_only(make_run: Factory, protocol: Protocol) -> None:
    summary = summarise([make_run(intervals=True)], protocol)
    note = "Intervals: 95 %, bootstrap over images, 1000 draws."
    for text in (markdown_page(summary), latex_tables(summary).replace("\\%", "%")):
        assert note in text
        assert len(re.findall(r"0\.\d{3}, 0\.\d{3}", text)) == 2
    assert note not in markdown_page(summarise([make_run(seed=1)], protocol))


def test_short_intervals() -> None:
    assert short_interval(Estimate(0.65, low=0.614, high=0.697)) == "0.61–0.70"
    assert short_interval(Estimate(0.915, low=0.912, high=0.918)) == "0.912–0.918"
    assert short_interval(Estimate(0.5)) == ""
    assert short_interval(Estimate(0.5, low=0.4, high=0.6, few=True)) == ""


def test_csv_has_full_precision_and_one_row_per_average_and_category(summary: Summary) -> None:
    table = pd.read_csv(io.StringIO(csv_table(summary)))
    assert len(table) == 4 + 4 + 4 + 12 - 1
    average = table[table["category"].isna()]
    assert average["rank"].notna().sum() == 7
    assert table.loc[table["category"].notna(), "rank"].isna().all()
    assert set(average["aupro@0.05"].round(12)) == {
        round(row.headline, 12) for board in summary.leaderboards for row in board.rows
    }
    assert {"aupro@0.05_error", "aupro@0.05_tiny_n", "iou_oracle"} <= set(table.columns)
    assert not [name for name in table.columns if "ci_low" in name]
    assert average["missing"].dropna().tolist() == ["wood"]


def test_csv_has_intervals_where_there_are_any(make_run: Factory, protocol: Protocol) -> None:
    table = pd.read_csv(io.StringIO(csv_table(summarise([make_run(intervals=True)], protocol))))
    assert (table["aupro@0.05_ci_low"] < table["aupro@0.05"]).all()


def test_latex_is_escaped_and_balanced(summary: Summary) -> None:
    text = latex_tables(summary)
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 2
    assert r"\textless{}b\textgreater{}x\&y\_z\%" in text
    assert r"\textbf{" in text
    assert r"\underline{" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    columns = [len(re.findall(r"(?<!\\)&", line)) for line in body]
    assert len(set(columns)) == 1
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.isascii()
    assert not re.search(r"(?<!\\)[#^~]", text)
    assert not re.search(r"(?<!\{)[\[*](?!t\])", re.sub(r"\\(begin|end)\{table\*\}", "", text))


def test_latex_shows_intervals_where_there_are_any(make_run: Factory, protocol: Protocol) -> None:
    text = latex_tables(summarise([make_run(intervals=True)], protocol))
    assert r"\shortstack" in text


def test_a_single_row_has_nothing_emphasised(make_run: Factory, protocol: Protocol) -> None:
    summary = summarise([make_run()], protocol)
    assert r"\textbf" not in latex_tables(summary)
    assert not re.search(r"\| \*\*", markdown_page(summary))


def test_all_formats_emphasise_the_same_numbers(summary: Summary) -> None:
    tables = re.findall(r'<table class="overview">(.*?)</table>', html_page(summary), re.S)
    boards = re.findall(r"^## .*?(?=^- )", markdown_page(summary), re.S | re.M)
    papers = latex_tables(summary).split(r"\begin{table*}")[1:]
    assert len(tables) == len(boards) == len(papers) == len(summary.leaderboards)
    patterns = (
        (r'<td class="number best".*?<span>(.*?)</span>', r"\| \*\*([\d.]+)\*\* ", r"\\textbf{([\d.]+)}"),
        (r'<td class="number second".*?<span>(.*?)</span>', r"\| \*([\d.]+)\* ", r"\\underline{([\d.]+)}"),
    )
    for formats in zip(tables, boards, papers, strict=True):
        for emphasised in patterns:
            page, *others = (re.findall(p, text, re.S) for p, text in zip(emphasised, formats, strict=True))
            assert len(page) > 10
            assert others == [page, page]


def test_terminal_table_is_aligned_and_safe(runs: list[Run], protocol: Protocol) -> None:
    text = terminal_table(runs, protocol)
    assert "\x1b" not in text
    blocks = text.split("\n\n")
    assert len(blocks) == 2
    lines = blocks[0].splitlines()
    assert len({len(line) for line in lines[1:] if not line.startswith("RANDOM")}) == 1
    assert "preset native" in lines[0]
    assert "AUPRO@0.05" in lines[2]
    text.encode("cp1252")
    assert "RANDOM" in blocks[0]
    assert "lacks wood" in blocks[1]


def test_terminal_shows_the_headline_interval(make_run: Factory, protocol: Protocol) -> None:
    assert re.search(r"0\.\d{3} \[0\.\d{3}, ", terminal_table([make_run(intervals=True)], protocol))
