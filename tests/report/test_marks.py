"""What stands where a mark would be lost: beyond an axis, in an empty bin, under a marker, on another label."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from hrbench.protocol import Protocol
from hrbench.report import plots
from hrbench.report.drawing import Bin, Series, draw_bins
from hrbench.report.embedding import inline_svg, save
from hrbench.report.marks import WHISKER, apart, legible, log_ticks, points_across, whisker, width_of, wrapped
from hrbench.report.styles import look_number
from hrbench.report.summary import Estimate
from hrbench.runs.store import Run

from .conftest import CONFIGS, board_of


def bins_of(*estimates: Estimate) -> Figure:
    bins = [Bin(str(number), estimate.n, (), 1, 1) for number, estimate in enumerate(estimates)]
    return draw_bins([("", bins, [Series("one", 0, look_number(0), estimates)])], "", "", 0.95)


def whiskers(figure: Figure) -> list:
    return [line for axes in figure.axes for line in axes.lines if line.get_gid() == WHISKER]


def test_a_whisker_ends_in_caps_that_a_marker_does_not_hide() -> None:
    figure = bins_of(Estimate(0.5, low=0.499, high=0.501, n=9))
    (drawn,) = whiskers(figure)
    assert drawn.get_ydata().tolist() == [0.499, 0.501]
    assert drawn.get_markevery() == [0, 1]
    markers = [line.get_markersize() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert drawn.get_markersize() > max(markers)
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["one", "95 % interval"]


@pytest.mark.parametrize(("across", "arrows"), [(False, "v^"), (True, "<>")])
def test_a_whisker_beyond_the_axis_ends_in_an_arrow_on_it(across: bool, arrows: str) -> None:
    axes = Figure().add_subplot()
    whisker(axes, 0.5, -0.2, 0.8, "#000000", across=across)
    line, arrow = axes.lines
    along, at = (line.get_xdata(), line.get_ydata()) if across else (line.get_ydata(), line.get_xdata())
    assert (list(along), list(at)) == ([0.0, 0.8], [0.5, 0.5])
    assert line.get_markevery() == [1]
    assert (arrow.get_marker(), arrow.get_gid()) == (arrows[0], WHISKER)
    whisker(axes, 0.5, 0.2, 1.8, "#000000", across=across)
    assert axes.lines[-1].get_marker() == arrows[1]
    whisker(axes, 0.5, 0.3, 0.3, "#000000")
    whisker(axes, 0.5, float("nan"), float("nan"), "#000000")
    assert len(axes.lines) == 4


def test_legend_says_what_whiskers_are_and_where_there_are_none() -> None:
    figure = bins_of(Estimate(0.5, minimum=0.4, maximum=0.6, n=9), Estimate(0.5, n=9))
    texts = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert texts == ["one", "range over the seeds", "without whiskers: no interval"]


def test_markers_on_the_edges_are_whole_and_empty_bins_say_so() -> None:
    figure = bins_of(Estimate(0.0, n=9), Estimate(), Estimate(1.0, n=9))
    (axes,) = figure.axes
    assert not any(line.get_clip_on() for line in axes.lines if line.get_marker() == "o")
    assert [(text.get_position()[0], text.get_text()) for text in axes.texts] == [(1, "no defects")]


def test_labels_move_apart_and_no_further() -> None:
    assert apart([10, 50, 90], [10, 10, 10], 2) == [10, 50, 90]
    assert apart([50, 50], [10, 20], 2) == pytest.approx([41.5, 58.5])
    places, widths = [3, 4, 5, 60, 61, 200], [10, 12, 8, 10, 10, 10]
    moved = apart(places, widths, 3)
    for (a, w), (b, v) in itertools.pairwise(zip(moved, widths, strict=True)):
        assert b - a >= (w + v) / 2 + 3 - 1e-9
    assert moved[-1] == 200
    assert np.mean(moved[:3]) == pytest.approx(np.mean(places[:3]))  # least squares leaves each pool's middle


def test_limits_above_a_curve_are_told_apart(make_run: Callable[..., Run], protocol: Protocol) -> None:
    board = board_of([make_run()], protocol)
    axes = plots.figures(board, plots.gather(board), kinds=("curves",))["curves"].axes[0]
    where = points_across(axes, [text.xy[0] for text in axes.texts])
    spans = [
        (x + text.xyann[0], width_of(text.get_text(), 7, text.get_fontweight() == "bold"))
        for x, text in zip(where, axes.texts, strict=True)
    ]
    assert [text.get_text() for text in axes.texts] == ["1 %", "5 %", "10 %", "30 %"]
    assert all(b - a > (w + v) / 2 for (a, w), (b, v) in itertools.pairwise(spans))


def test_ticks_are_enough_and_do_not_collide() -> None:
    assert log_ticks(10, 5000, 12) == [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    assert log_ticks(10, 5000, 3) == [10, 100, 1000]
    assert log_ticks(1150, 3400, 7) == [1500, 2000, 3000]
    axes = Figure(figsize=(2, 2)).add_subplot()
    places = np.linspace(0, 1, 11).tolist()
    kept, texts = legible(axes, places, [f"{place:.4f}" for place in places])
    assert kept[0] == 0
    assert 2 <= len(kept) < 11
    assert texts == [f"{place:.4f}" for place in kept]
    assert legible(axes, places[::5], ["a", "b", "c"]) == (places[::5], ["a", "b", "c"])


def test_a_long_name_in_a_legend_takes_several_lines_of_the_figure() -> None:
    name = " ".join(["PatchCore · tiled:256:64 · WIDE_RESNET50_2"] * 6)
    estimates = [Estimate(0.5, n=9)]
    bins = [Bin("all", 9, (), 1, 1)]
    figure = draw_bins([("", bins, [Series(name, 0, look_number(0), estimates)])], "", "", 0.95)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert "\n" in figure.legends[0].get_texts()[0].get_text()
    assert wrapped("short", 100) == "short"


def test_pdf_has_fonts_no_date_and_the_same_bytes_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = (save(bins_of(Estimate(0.5, low=0.4, high=0.6, n=9)), tmp_path / name) for name in "ab")
    assert [path.suffix for path in first] == [".png", ".svg", ".pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    pdf = first[2].read_bytes()
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    assert b"Date" not in pdf
    assert not caplog.records
    assert logging.getLogger("fontTools").level == logging.NOTSET


def test_ids_of_a_file_are_unique(make_run: Callable[..., Run], protocol: Protocol, tmp_path: Path) -> None:
    board = board_of([make_run(config, intervals=True) for config in CONFIGS], protocol)
    figure = plots.figures(board, plots.gather(board), kinds=("sizes",))["sizes"]
    assert len(whiskers(figure)) > 4
    for text in (save(figure, tmp_path / "a")[1].read_text(encoding="utf-8"), inline_svg(figure, "p", "")):
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert ids
        assert len(ids) == len(set(ids))
    assert mpl.rcParams["pdf.fonttype"] == 3
