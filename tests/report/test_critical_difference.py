"""Ranks over categories: where they are compared, what is said, and what the diagram joins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from hrbench.protocol import Protocol
from hrbench.report import plots
from hrbench.report.critical_difference import RankComparison, compare_ranks, p_text, rank_sentences, rank_table
from hrbench.report.critical_difference_plot import draw_ranking
from hrbench.report.page import html_page
from hrbench.report.summary import Leaderboard, summarise
from hrbench.runs.store import Run

from .conftest import CONFIGS, Config, board_of

Factory = Callable[..., Run]


def many(make_run: Factory, categories: int, configs: tuple[Config, ...] = CONFIGS) -> list[Run]:
    return [make_run(config, category=f"c{number}", seed=number) for number in range(categories) for config in configs]


@pytest.fixture
def board(make_run: Factory, protocol: Protocol) -> Leaderboard:
    return board_of(many(make_run, 6), protocol)


def test_rows_are_compared_by_their_ranks_in_each_category(board: Leaderboard) -> None:
    found = compare_ranks(board)
    assert isinstance(found, RankComparison)
    # Made-up skills are far apart: the same order everywhere, so that only neighbours are not told apart.
    assert found.ranks == (1, 2, 3, 4)
    assert [row.configuration.number for row in found.rows] == [row.configuration.number for row in board.rows]
    assert found.test.critical == pytest.approx(2.569 * np.sqrt(20 / 36), abs=1e-3)
    assert found.groups == [(0, 1), (1, 2), (2, 3)]
    first, *_, last = rank_sentences(found)
    names = [row.configuration.short for row in found.rows]
    assert "p < 0.001), two of them where their mean ranks lie at least 1.91 apart (Nemenyi, 95 %)" in first
    assert f"The best one, {names[0]}, is not told from {names[1]}." in first
    assert "only their order counts" in last
    table = rank_table(found)
    assert [cell.text for cell in table.cells[1]][1:] == ["2.00", f"{found.values[1]:.3f}", f"{names[0]}; {names[2]}"]


@pytest.mark.parametrize(("categories", "rows"), [(4, 4), (6, 2)])
def test_few_categories_or_rows_are_said_in_words(
    make_run: Factory, protocol: Protocol, categories: int, rows: int
) -> None:
    board = board_of(many(make_run, categories, CONFIGS[:rows]), protocol)
    said = compare_ranks(board)
    assert isinstance(said, str)
    assert said.endswith(f"here are {categories} and {rows}.")
    assert "critical-difference" not in plots.figures(board, plots.gather(board))


def test_a_category_without_a_value_of_a_row_does_not_count(board: Leaderboard) -> None:
    limit = round(board.protocol.headline_fpr, 9)
    key = (board.rows[0].configuration.number, "c3", "aupro", "all", limit)
    gone = dataclasses.replace(board, estimates={k: v for k, v in board.estimates.items() if k != key})
    found = compare_ranks(gone)
    assert isinstance(found, RankComparison)
    assert (found.test.data_sets, found.left_out) == (5, 1)
    assert any("do not count: 1." in sentence for sentence in rank_sentences(found))


def test_the_diagram_joins_what_is_not_told_apart(board: Leaderboard) -> None:
    figure = plots.figures(board, plots.gather(board), kinds=("critical-difference",))["critical-difference"]
    (axes,) = figure.axes
    bars = [line for line in axes.lines if line.get_linewidth() == 3.5]
    assert [np.round(bar.get_xdata()).tolist() for bar in bars] == [[1, 2], [2, 3], [3, 4]]
    markers = {line.get_markerfacecolor(): line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 6.5}
    assert markers == {row.configuration.look.colour: rank for row, rank in zip(board.rows, (1, 2, 3, 4), strict=True)}
    figure.draw_without_rendering()
    named = [text for text in axes.texts if "·" in text.get_text()]
    assert len(named) == 4
    assert all(text.get_annotation_clip() is False for text in named)  # they stand outside the axes
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.width > 0
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    assert "critical-difference" not in plots.figures(board, plots.gather(board), "c0")


def test_without_friedman_nobody_is_told_apart(board: Leaderboard) -> None:
    found = compare_ranks(board)
    assert isinstance(found, RankComparison)
    alike = dataclasses.replace(found, test=dataclasses.replace(found.test, p=0.4), groups=[(0, 3)])
    assert "no rows are told apart (Friedman's test over 6 categories, p = 0.4)" in rank_sentences(alike)[0]
    texts = [text.get_text() for text in draw_ranking(alike, "").axes[0].texts]
    assert not any("critical difference" in text for text in texts)
    assert [p_text(p) for p in (0.0, 0.012345, 0.4)] == ["p < 0.001", "p = 0.012", "p = 0.4"]


def test_the_page_shows_diagram_and_table_or_says_why_not(make_run: Factory, protocol: Protocol) -> None:
    runs = many(make_run, 6)
    text = html_page(summarise(runs, protocol))
    assert "Mean ranks over the categories, with bars" in text
    assert '<th scope="col" class="text">mean rank</th>' in text
    text = html_page(summarise(runs[:8], protocol))
    assert "No critical difference: it needs at least 5 categories" in text
    text = html_page(summarise(runs[:4], protocol))
    assert "critical difference" not in text.lower()
