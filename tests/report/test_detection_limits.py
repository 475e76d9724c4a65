from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from hrbench.metrics.alarms import FalseAlarms
from hrbench.metrics.detection import Detection, fit_detection
from hrbench.metrics.words import detection_limit_text
from hrbench.protocol import Detectability, Protocol
from hrbench.report import page, plots, pod_plot
from hrbench.report.detection_limits import (
    Reliability,
    limit_names,
    limit_overview,
    limit_table,
    unreached,
)
from hrbench.report.drawing import Series
from hrbench.report.embedding import inline_svg
from hrbench.report.marks import log_ticks
from hrbench.report.styles import look_number
from hrbench.report.summary import Leaderboard, summarise
from hrbench.report.text import csv_table
from hrbench.runs.store import Run

from .conftest import CONFIGS, NASTY, board_of

Factory = Callable[..., Run]
SIZES = [4, 6, 7, 9, 12, 15, 18, 22, 27, 33, 40, 49, 60, 73, 90, 110, 134, 164, 200, 245, 300, 366, 447, 546, 667]
HITS = [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]


def table(board: Leaderboard, found: Detection | None, seed: int = 0) -> list[str]:
    """Return the cells of a table of one row, or its remarks without any."""
    known = {("ballscrew", 0): Reliability(found, seed)}
    result = limit_table(known, board, "ballscrew")
    assert result is not None
    if not result.rows:
        return list(result.notes)
    (cells,) = result.cells
    assert len(cells) == len(result.columns)
    return [cell.text for cell in cells]


@pytest.fixture
def board(make_run: Factory, protocol: Protocol) -> Leaderboard:
    return board_of([make_run()], protocol)


def test_table_says_what_is_found_at_how_many_false_calls(board: Leaderboard) -> None:
    weights = np.random.default_rng(0).multinomial(25, [1 / 25] * 25, size=50).astype(float)
    found = fit_detection([s * 10 for s in SIZES], np.array(SIZES) > 60, weights=weights, units=25)
    found = dataclasses.replace(found, alarms=FalseAlarms(1, 8), false_per_pixel=0.00123)
    cells = table(board, found)
    assert cells[:2] == ["663 px", "1,121 px"]
    assert all(cell.endswith(" px") for cell in cells[2:4])
    assert cells[4:] == ["12 / 25", "12.5 %", "0.123 %"]
    known = {("ballscrew", 0): Reliability(found, 0)}
    whole = limit_table(known, board, "ballscrew")
    assert whole is not None
    cells = whole.cells[0]
    assert cells[1].small[0] == f"⌀ {2 * math.sqrt(1121.1258 / math.pi):.1f} px"
    assert cells[2].mark == " ".join(str(i + 1) for i in range(len(found.cautions)))
    assert whole.cautions == found.cautions
    assert whole.how.startswith("Firth logistic regression of hit on ln(area); a90/95: profile likelihood")
    remarks = " ".join(whole.notes)
    assert "normal-quantile with a share of 0.001" in whole.columns[-1].title
    assert "seed" not in remarks


def test_a_limit_that_is_not_reached_keeps_its_reason(board: Leaderboard) -> None:
    known = {("ballscrew", 0): Reliability(fit_detection(SIZES, HITS), 0)}
    whole = limit_table(known, board, "ballscrew")
    assert whole is not None
    cell = whole.cells[0][2]
    assert (cell.text, cell.small, cell.sort) == ("not reached", ("largest 667 px",), "")
    assert "not reached (largest 667 px)" in cell.title
    assert "extrapolated" in cell.title
    assert whole.cells[0][3].text == "–"


@pytest.mark.parametrize(
    ("areas", "hits", "text", "arrow"),
    [
        (SIZES, [0] * 25, "not reached", True),
        (SIZES, [1] * 25, "not estimable", False),
        (SIZES, [not h for h in HITS], "not reached", True),
        ([5, 5, 5], [0, 1, 1], "not estimable", False),
        ([], [], "not estimable", False),
    ],
)
def test_cases_without_an_answer(board: Leaderboard, areas: list[int], hits: list[int], text: str, arrow: bool) -> None:
    found = fit_detection(areas, hits)
    cells = table(board, found)
    assert cells[2] == text == detection_limit_text(found.a90_95)
    assert cells[5:] == ["–", "–"]
    assert unreached(found.a90_95) is arrow
    figure = pod_plot.draw_detection([(Series("x", 0, look_number(0)), found)], Detectability(), "")
    assert (figure is None) == (not areas)
    if figure is not None:
        assert (">" in markers(figure)) is arrow


def test_no_threshold_is_said_in_a_sentence(board: Leaderboard) -> None:
    assert "No threshold set on normal images" in " ".join(table(board, None))


def test_without_evidence_there_is_no_table(board: Leaderboard) -> None:
    assert limit_table({}, board, "ballscrew") is None
    assert limit_overview({}, board) is None


def test_the_lowest_seed_stands_for_all(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(seed=seed) for seed in (2, 1)]
    board = board_of(runs, protocol)
    data = plots.gather(board)
    assert data.limits["ballscrew", 0].seed == 1
    whole = limit_table(data.limits, board, "ballscrew")
    assert whole is not None
    assert "lowest one stands here (seed 1)" in " ".join(whole.notes)


def test_names_follow_the_protocol() -> None:
    assert limit_names(Detectability()) == ("a50", "a90", "a90/95")
    assert limit_names(Detectability(probability=0.95, level=0.9)) == ("a50", "a95", "a95/90")


def test_page_has_one_block_per_category_and_an_overview(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(config, "weave", c) for config in (CONFIGS[0], CONFIGS[3]) for c in ("fabric", "wood")]
    text = page.html_page(summarise(runs, protocol))
    assert text.count("Smallest defect reliably found") == 3
    assert text.count("Probability of detection over the area") == 2
    assert "12.5 %" in text
    assert "No threshold set on normal images, hence neither hits nor misses: &lt;b&gt;x&amp;y" in text
    assert '<details class="how"><summary>How this is computed</summary><p class="key">Firth logistic' in text
    assert "Wald" not in re.sub("<details class=.how.*?</details>", "", text)
    assert "7 components, fewer than 40" in text
    alone = page.html_page(summarise(runs[:1], protocol))
    assert alone.count("Smallest defect reliably found") == 1
    assert alone.count("Probability of detection over the area") == 1


def test_csv_gives_limits_of_categories_where_every_seed_reaches_them(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(seed=seed) for seed in (0, 1)]
    records = runs[1].records
    records.loc[records["metric"] == "a90", "value"] = math.nan
    rows = pd.read_csv(io.StringIO(csv_table(summarise(runs, protocol))))
    assert rows["a50_px"].tolist()[1] == 60
    assert math.isnan(rows["a50_px"].tolist()[0])
    assert rows["a90_px"].isna().all()
    assert rows["a90_95_px"].isna().all()


def markers(figure: Figure) -> list[object]:
    return [line.get_marker() for axes in figure.axes for line in axes.lines]


def test_curves_are_overlaid_and_more_than_four_get_panels() -> None:
    found = fit_detection(SIZES, HITS)
    for number, panels in ((1, 1), (4, 1), (5, 5)):
        items = [(Series(f"{NASTY} {i}", i, look_number(i)), found) for i in range(number)]
        figure = pod_plot.draw_detection(items, Detectability(), NASTY)
        assert figure is not None
        assert len(figure.axes) == panels
        assert markers(figure).count(">") == number
        assert markers(figure).count("o") == number  # a90; a90/95 is not reached
        assert "\x1b" not in inline_svg(figure, "p", "x")
    heading = figure.axes[0].get_title(loc="left")
    assert "a90/95 not reached" in heading


def test_arrows_do_not_hide_each_other() -> None:
    items = [(Series(f"{i}", i, look_number(i)), fit_detection(SIZES, [0] * 25)) for i in range(3)]
    figure = pod_plot.draw_detection(items, Detectability(), "")
    assert figure is not None
    heights = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() == ">"]
    assert len(set(heights)) == 3


def test_a_rug_of_many_defects_stays_small() -> None:
    areas = np.exp(np.random.default_rng(0).uniform(1, 9, 19_000))
    strokes = pod_plot._strokes(areas)
    assert strokes.size <= 501
    assert strokes.min() == pytest.approx(areas.min(), rel=0.01)
    assert strokes.max() == pytest.approx(areas.max(), rel=0.01)


@pytest.mark.parametrize(("low", "high"), [(1, 2), (4.3, 4.4), (3, 700), (1, 3e6), (41, 49)])
def test_axis_has_few_round_areas(low: float, high: float) -> None:
    ticks = log_ticks(low, high, 12)
    assert 1 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)
    assert re.fullmatch(r"[\d,.]+\n⌀ [\d.]+", pod_plot._tick(ticks[0]))
