"""Cost in a report: what old and new runs say, the table, the Pareto front, and the plot against quality."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrbench.protocol import Protocol
from hrbench.report import page, plots
from hrbench.report.cards import method_cards
from hrbench.report.configurations import THROUGHPUT, TIMES, costs_of
from hrbench.report.cost import Point, Tradeoff, cost_table, tradeoff
from hrbench.report.cost_plot import draw_cost
from hrbench.report.drawing import PAPER, Series
from hrbench.report.latex import latex_tables
from hrbench.report.marks import WHISKER
from hrbench.report.styles import look_number
from hrbench.report.summary import Estimate, Leaderboard, Row, summarise
from hrbench.report.table import overview_table
from hrbench.report.terminal import terminal_table
from hrbench.report.text import csv_table, markdown_page
from hrbench.runs.store import Run

from .conftest import CONFIGS, DATASETS, board_of, staged

Factory = Callable[..., Run]
CPU, GPU = "Intel Xeon (2 threads)", "NVIDIA H100"


def cost(speed: float, device: float | None = None, host: float = 900.0) -> dict[str, float | str | None]:
    return {
        THROUGHPUT: speed,
        "ms_median": 500 / speed,
        "ms_p95": 700 / speed,
        "peak_host_mib": host,
        "peak_host_since": "phase",
        "peak_device_mib": device,
    }


def on(make_run: Factory, number: int, speed: float, device: str = CPU, **changes: object) -> Run:
    return make_run(CONFIGS[number], cost=cost(speed), device=device, batch_size=8, **changes)


def drawn(runs: list[Run], protocol: Protocol) -> Figure:
    figure = draw_cost(tradeoff(board_of(runs, protocol)), "AUPRO", "", 0.95)
    assert figure is not None
    return figure


def cost_notes(board: Leaderboard) -> tuple[str, ...]:
    table = cost_table(board)
    assert table is not None
    return table.notes


def markers(axes: Axes) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() not in ("", "None", None)]
    lines = [line for line in lines if line.get_gid() != WHISKER]
    return sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in lines)


def test_what_a_run_says_of_its_cost(make_run: Factory) -> None:
    assert costs_of(make_run(cost=cost(2.0, device=5.0))) == {
        THROUGHPUT: 2.0,
        "ms_median": 250.0,
        "ms_p95": 350.0,
        "peak_device_mib": 5.0,
        "peak_host_mib": 900.0,
    }
    for seed, (device, name, other) in enumerate(
        (
            ("cpu (2 threads)", "peak_host_mib", "peak_device_mib"),
            (GPU, "peak_device_mib", "peak_host_mib"),
        ),
        start=1,
    ):
        earlier = costs_of(make_run(seed=seed, device=device, cost={"peak_memory_mib": 12.0}))
        assert earlier[name] == 12.0
        assert math.isnan(earlier[other])
    assert all(math.isnan(value) for value in costs_of(make_run(seed=3, cost={})).values())


POINTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(pairs=POINTS)
def test_the_front_is_what_no_other_row_beats(pairs: list[tuple[int, int]]) -> None:
    points = [
        Point(Series(str(i), i, look_number(i)), Estimate(value=float(speed)), Estimate(value=float(quality)), True)
        for i, (speed, quality) in enumerate(pairs)
    ]
    front = Tradeoff({"x": points}, {}).front("x")
    best, expected = -1, set()
    for speed in sorted({speed for speed, _ in pairs}, reverse=True):  # from the fastest on, only better ones stay
        quality = max(q for s, q in pairs if s == speed)
        if quality > best:
            best = quality
            expected.add((speed, quality))
    assert [p.speed.value for p in front] == sorted((p.speed.value for p in front), reverse=True)
    assert {(p.speed.value, p.quality.value) for p in front} == expected
    assert len(front) == sum(pair in expected for pair in pairs)  # equal rows stand there together


def test_rows_that_are_not_ranked_neither_beat_nor_are_beaten(runs: list[Run], protocol: Protocol) -> None:
    dataset = next(name for name, categories in DATASETS.items() if "wood" in categories)
    found = tradeoff(board_of(runs, protocol, dataset))
    (device,) = found.points
    (lacking,) = [point for point in found.points[device] if not point.comparable]
    assert lacking.series.label.endswith("(lacks wood)")
    assert lacking not in found.front(device)
    assert len(found.points[device]) == 4
    figure = draw_cost(found, "AUPRO", "", 0.95)
    assert figure is not None
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == PAPER and len(line.get_xdata())]
    assert [line.get_ydata()[0] for line in hollow] == [lacking.quality.value]
    assert any("not ranked" in text.get_text() for text in figure.legends[0].get_texts())


def test_devices_have_panels_of_their_own(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, 0.5), on(make_run, 1, 4.0), on(make_run, 2, 100.0, GPU), on(make_run, 3, 80.0, GPU)]
    board = board_of(runs, protocol)
    found = tradeoff(board)
    assert {device: len(points) for device, points in found.points.items()} == {CPU: 2, GPU: 2}
    figure = drawn(runs, protocol)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [CPU, GPU]
    assert [x for x, _ in markers(figure.axes[0])] == pytest.approx([250.0, 2000.0])
    assert [x for x, _ in markers(figure.axes[1])] == pytest.approx([10.0, 12.5])
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    notes = " ".join(cost_notes(board))
    assert f"on {CPU}: FastFlow" in notes
    assert "Speeds of different devices are not compared." in notes


def test_what_cannot_be_drawn_is_counted_and_named(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, 0.5), make_run(CONFIGS[1], cost={}), on(make_run, 2, 1.0, seed=0)]
    runs.append(on(make_run, 2, 2.0, GPU, seed=1))
    board = board_of(runs, protocol)
    found = tradeoff(board)
    assert [len(points) for points in found.points.values()] == [1]
    assert {why: len(names) for why, names in found.left_out.items()} == {
        "without a measured speed": 1,
        "measured on several devices": 1,
    }
    notes = " ".join(cost_notes(board))
    assert "Not in the plot, measured on several devices: L2BT" in notes
    assert any("left out: 2 rows" in text.get_text() for text in drawn(runs, protocol).legends[0].get_texts())


def test_a_point_has_its_interval_and_the_range_of_its_seeds(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, speed, seed=seed, intervals=True) for seed, speed in enumerate((1.0, 4.0))]
    (axes,) = drawn(runs, protocol).axes
    ((x, y),) = markers(axes)
    assert x == pytest.approx(1000 / 2.5)
    assert axes.get_xscale() == "log"
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    (vertical,) = [bar for bar in bars if np.ptp(bar.get_xdata()) == 0]
    assert sorted(vertical.get_ydata()) == pytest.approx([y - 0.02, y + 0.01])
    (across,) = [bar for bar in bars if np.ptp(bar.get_ydata()) == 0]
    assert sorted(across.get_xdata()) == pytest.approx([250.0, 1000.0])
    low, high = axes.get_ylim()
    assert low < y - 0.02
    assert high > y + 0.01
    low, high = axes.get_xlim()
    assert low < 250
    assert high > 1000
    for text in axes.get_xticklabels():
        ms, speed = (float(part.replace(",", "")) for part in text.get_text().split("\n"))
        assert ms * speed == pytest.approx(1000, rel=0.02)


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    speeds=st.lists(st.floats(1e-4, 1e4), min_size=5, max_size=5),
)
def test_every_point_lies_inside_the_axes(values: list[float], speeds: list[float]) -> None:
    points = [
        Point(Series(str(i), i, look_number(i)), Estimate(value=speed), Estimate(value=value), True)
        for i, (value, speed) in enumerate(zip(values, speeds, strict=False))
    ]
    found = Tradeoff({CPU: points}, {})
    figure = draw_cost(found, "AUPRO", "", 0.95)
    assert figure is not None
    (axes,) = figure.axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    shown = markers(axes)
    assert len(shown) == len(points)
    for x, y in shown:
        assert left < x < right
        assert bottom <= y <= top
    assert 2 <= len(axes.get_yticks()) <= 9
    assert 1 <= len(axes.get_xticks()) <= 12


def test_no_speed_no_plot(make_run: Factory, tmp_path: Path, protocol: Protocol) -> None:
    runs = [make_run(cost={})]
    board = board_of(runs, protocol)
    assert cost_table(board) is None
    assert not [path for path in plots.write_plots(runs, tmp_path, protocol, formats=["svg"]) if "cost" in path.name]
    assert "What it costs" not in page.html_page(summarise(runs, protocol))
    assert "What it costs" not in markdown_page(summarise(runs, protocol))


def test_the_table_names_the_device(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, 0.5), on(make_run, 1, 4.0)]
    table = cost_table(board_of(runs, protocol))
    assert table is not None
    assert [column.key for column in table.columns] == [
        THROUGHPUT, "ms_median", "ms_p95", "peak_host_mib", "device",
    ]  # fmt: skip
    lines = {
        row.configuration.view: cells
        for row, cells in zip(table.rows, table.cells, strict=True)
        if isinstance(row, Row)
    }
    assert [cell.text for cell in lines["whole:512"]] == ["4.00", "125", "175", "900", CPU]
    assert table.cells[0][-1].small == ("up to 8 inputs at a time",)
    gpu = make_run(CONFIGS[2], cost=cost(9.0, device=2048.0), device=GPU)
    both = cost_table(board_of([*runs, gpu], protocol))
    assert both is not None
    assert "peak_device_mib" in [column.key for column in both.columns]
    assert [cell.text for line in both.cells for cell in line].count("2,048") == 1


def test_rows_of_another_precision_are_other_rows(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 1, 4.0, GPU, seed=0), on(make_run, 1, 4.0, GPU, seed=1, precision="float32")]
    runs.append(on(make_run, 1, 9.0, GPU, seed=2, precision="bfloat16", compiled=True))
    board = board_of(runs, protocol)
    table = cost_table(board)
    assert table is not None
    rows = board.rows
    assert {
        row.configuration.precision: (row.seeds, cells[-1].small[1:])
        for row, cells in zip(rows, table.cells, strict=True)
    } == {"float32": ("2", ()), "bfloat16": ("1", ("compiled",))}
    assert sorted(row.configuration.short for row in rows) == [
        "FastFlow · mobilenetv2_100 file",
        "FastFlow · mobilenetv2_100 file in bfloat16",
    ]
    assert "in bfloat16" in page.html_page(summarise(runs, protocol))


def test_memory_that_may_be_another_jobs_is_marked(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, 0.5), make_run(CONFIGS[1])]  # the second as an earlier version recorded it
    notes = [note for note in cost_notes(board_of(runs, protocol)) if note.startswith("Host memory")]
    assert len(notes) == 1
    assert "whole:512" in notes[0]
    assert "tiled:256:64" not in notes[0]


def test_pages_and_files_show_it(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, 0.5), on(make_run, 3, 4.0, "GPU <b>|</b>")]
    text = page.html_page(summarise(runs, protocol))
    assert text.count(">What it costs<a") == 1
    assert re.search(r'id="~\d+-cost', text)
    assert "<b>|</b>" not in text
    (svg,) = re.findall(r'<svg[^>]*aria-label="AUPRO over the time per megapixel[^"]*"', text)
    assert "bsdata" in svg
    markdown = markdown_page(summarise(runs, protocol))
    (table,) = [block for block in markdown.split("\n\n") if "measured on" in block]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {8}
    frame = pd.read_csv(io.StringIO(csv_table(summarise(runs, protocol))))
    average = frame[frame["category"].isna()].set_index("method")
    assert average.at["fastflow", THROUGHPUT] == 0.5
    assert average.at["fastflow", "ms_p95"] == 1400.0
    assert average.at["fastflow", "peak_host_mib"] == 900.0
    assert average.at["fastflow", "device"] == CPU


SHARED = "the device was shared by 2 workers"


def texts(board: Leaderboard) -> dict[str, dict[str, str]]:
    """Return the cells of the cost table by the row's view and the column's key."""
    table = cost_table(board)
    assert table is not None
    keys = [column.key for column in table.columns]
    return {
        row.configuration.view: dict(zip(keys, [cell.text for cell in cells], strict=True))
        for row, cells in zip(table.rows, table.cells, strict=True)
        if isinstance(row, Row)
    }


@pytest.mark.parametrize(("workers", "devices", "why"), [(2, 1, SHARED), (1, 3, "parts ran on 3 different devices")])
def test_a_run_that_was_not_alone_has_no_times(
    make_run: Factory, protocol: Protocol, workers: int, devices: int, why: str
) -> None:
    runs = [on(make_run, 0, 0.5), staged(on(make_run, 1, 4.0), workers, devices)]
    board = board_of(runs, protocol)
    lines, note = texts(board), f"Times left out because {why}: FastFlow · whole:512."
    assert [lines["whole:512"][name] for name in TIMES] == ["–"] * 3
    assert [lines["tiled:256:64"][name] for name in TIMES] == ["0.500", "1,000", "1,400"]
    assert {line["peak_host_mib"] for line in lines.values()} == {"900"}  # each process counts its own
    assert [n for n in cost_notes(board) if "Times left out" in n or "Not in the plot" in n] == [note]
    assert [n for n in overview_table(board).notes if "Times left out" in n] == [note]
    (cell,) = [cell for cells in overview_table(board).cells for cell in cells if cell.title.startswith("left out")]
    assert cell.title == f"left out because {why}"
    found = tradeoff(board)  # where it would have been the fastest
    assert [point.series.label for point in found.front(CPU)] == ["FastFlow · tiled:256:64"]
    assert found.left_out == {"without comparable times": ["FastFlow · whole:512"]}
    (axes,) = drawn(runs, protocol).axes
    assert len(markers(axes)) == 1
    assert any("left out: 1 row" in text.get_text() for text in drawn(runs, protocol).legends[0].get_texts())


def test_one_such_run_is_enough_for_a_row_to_have_no_times(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, 2.0, category=category, seed=seed) for category in ("a", "b") for seed in (0, 1)]
    staged(runs[3], workers=2)
    board = board_of(runs, protocol)
    for name in TIMES:
        cells = {place: board.estimates[0, place, name, "all", None] for place in ("", "a", "b")}
        assert cells["a"].shown == costs_of(runs[0])[name]
        for place in ("", "b"):
            assert all(math.isnan(x) for x in (cells[place].value, cells[place].minimum, cells[place].maximum))
        assert cells[""].untimed == f"{SHARED} in 1 of 4 runs"
        assert cells["b"].untimed == f"{SHARED} in 1 of 2 runs"
    assert board.estimates[0, "", "peak_host_mib", "all", None].value == 900.0
    assert f"Times left out because {SHARED} in 1 of 4 runs: FastFlow." in cost_notes(board)
    assert board.rows[0].rank == 1


def test_reasons_stand_in_one_sentence(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, number, 2.0) for number in range(3)]
    runs = [staged(runs[0], workers=2), staged(runs[1], workers=2), staged(runs[2], devices=2)]
    board = board_of(runs, protocol)
    short = {row.configuration.number: row.configuration.short for row in board.rows}
    first, second = sorted(number for number, name in short.items() if name.startswith("FastFlow"))
    (other,) = short.keys() - {first, second}
    assert cost_notes(board)[0] == (
        f"Times left out because {SHARED}: {short[first]}, {short[second]}; "
        f"because parts ran on 2 different devices: {short[other]}."
    )
    assert not tradeoff(board).points
    assert draw_cost(tradeoff(board), "AUPRO", "", 0.95) is None


def test_every_format_leaves_such_times_out(make_run: Factory, protocol: Protocol) -> None:
    runs = [on(make_run, 0, 0.5), staged(on(make_run, 1, 4.56), workers=2)]
    summary = summarise(runs, protocol)
    html = page.html_page(summary)
    formats = {"html": html, "md": markdown_page(summary), "tex": latex_tables(summary)}
    formats |= {"terminal": terminal_table(runs, protocol), "csv": csv_table(summary)}
    for name, text in formats.items():
        text = re.sub(r"(?s)<(svg|style|script).*?</\1>", "", text)
        assert "4.56" not in text, name
        assert ("because the device was shared by 2 workers: FastFlow" in text) == (name != "csv"), name
    cost_section = html[html.index(">What it costs<a") : html.index(">Categories<a class")]
    assert f"Times left out because {SHARED}: FastFlow · whole:512." in cost_section
    frame = pd.read_csv(io.StringIO(formats["csv"])).set_index("view")
    assert frame.loc["whole:512", list(TIMES)].isna().all(axis=None)
    assert frame.loc["tiled:256:64", list(TIMES)].notna().all(axis=None)
    assert (frame["peak_host_mib"] == 900.0).all()
    (line,) = [line for line in formats["csv"].splitlines() if line.startswith("bsdata,,2")]
    place = formats["csv"].splitlines()[0].split(",").index(THROUGHPUT)
    assert next(csv.reader([line]))[place] == ""


def test_an_old_record_was_alone_and_keeps_its_times(make_run: Factory, protocol: Protocol) -> None:
    old = make_run(seed=0)
    assert not {"workers_on_device", "devices"} & old.about.cost.unknown.keys()
    board = board_of([old, staged(make_run(seed=1))], protocol)
    assert board.estimates[0, "", THROUGHPUT, "all", None].value == pytest.approx(1.7345)
    assert not any("left out" in note for note in (*cost_notes(board), *board.notes))


def card_lines(runs: list[Run], protocol: Protocol) -> list[dict[str, str]]:
    (card,) = method_cards(board_of(runs, protocol))
    heads = [column.head for column in card.runs.columns]
    return [dict(zip(heads, [cell.text for cell in cells], strict=True)) for cells in card.runs.cells]


def test_cards_say_what_stages_took_and_who_shared(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(seed=0), staged(make_run(seed=1)), staged(make_run(seed=2), 3, 2)]
    old, alone, shared = card_lines(runs, protocol)
    heads = ("fit, s", "median, ms", "95 %, ms", "wall, s", "stages, s", "not alone", "host, MiB")
    assert [old[name] for name in heads] == ["61.5", "300", "400", "–", "–", "–", "900"]
    assert [alone[name] for name in heads] == ["61.5", "300", "400", "60.5", "111.0", "–", "900"]
    assert [shared[name] for name in heads] == [
        "–", "–", "–", "60.5", "111.0", "shared by 3 workers, on 2 devices", "900",
    ]  # fmt: skip
    (only,) = card_lines(runs[:1], protocol)  # what none of them has takes no column
    assert not {"wall, s", "stages, s", "not alone"} & only.keys()
