from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.report import plots
from hrbench.report.drawing import Bin
from hrbench.report.embedding import inline_svg
from hrbench.runs.store import Run

from .conftest import CONFIGS, NASTY, board_of

Factory = Callable[..., Run]
SUFFIXES = ("png", "svg", "pdf")


@pytest.fixture
def few(make_run: Factory) -> list[Run]:
    """Two categories, one with few defects, and a row that lacks it."""
    runs = [make_run(config, category="fabric") for config in CONFIGS[1:]]
    return [*runs, *(make_run(config, category="wood") for config in (CONFIGS[1], CONFIGS[3]))]


def test_writes_files_of_every_plot(few: list[Run], tmp_path: Path, protocol: Protocol) -> None:
    paths = plots.write_plots(few, tmp_path / "plots", protocol)
    kinds = ("sizes", "diameters", "curves", "detection", "cost")
    stems = [f"bsdata{part}-{kind}" for part in ("", "-fabric", "-wood") for kind in kinds]
    stems.remove("bsdata-detection")  # each category has a threshold of its own
    own = {"bsdata-fabric-cost": "bsdata-fabric-pictures", "bsdata-wood-cost": "bsdata-wood-pictures"}
    stems = [own.get(stem, stem) for stem in stems]
    assert [path.name for path in paths] == [f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES]
    assert sorted(tmp_path.glob("plots/*")) == sorted(paths)
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert np.asarray(image.convert("L")).std() > 5
        elif path.suffix == ".svg":
            ElementTree.parse(path)
            assert "<dc:date>" not in path.read_text(encoding="utf-8")


def test_a_single_category_is_drawn_once_and_alike_every_time(
    make_run: Factory, tmp_path: Path, protocol: Protocol
) -> None:
    runs = [make_run(CONFIGS[3])]
    first, second = (plots.write_plots(runs, tmp_path / name, protocol) for name in "ab")
    assert len(first) == 15
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_settings_of_the_caller_are_left_alone(make_run: Factory, protocol: Protocol) -> None:
    before = dict(matplotlib.rcParams)
    board = board_of([make_run()], protocol)
    plots.figures(board, plots.gather(board))
    assert dict(matplotlib.rcParams) == before


def test_lost_evidence_costs_the_curves_and_nothing_else(
    make_run: Factory, lose_evidence: Callable[[Run], None], tmp_path: Path, protocol: Protocol
) -> None:
    run = make_run()
    lose_evidence(run)
    names = [path.name for path in plots.write_plots([run], tmp_path, protocol, formats=["svg"])]
    assert names == [f"bsdata-{kind}.svg" for kind in ("sizes", "diameters", "cost", "pictures")]


def test_average_curve_needs_every_category(
    few: list[Run], lose_evidence: Callable[[Run], None], protocol: Protocol
) -> None:
    lose_evidence(few[0])
    board = board_of(few, protocol)
    data = plots.gather(board)
    legend = plots.figures(board, data)["curves"].legends[0]
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == 2
    assert not any("FastFlow" in label for label in labels)
    assert any("lacks wood" in label for label in labels)


def test_few_components_are_hollow_and_said_so(few: list[Run], protocol: Protocol) -> None:
    board = board_of(few, protocol)
    figure = plots.figures(board, plots.gather(board), "wood")["diameters"]
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert any("too few" in label for label in labels)
    assert any("no defects" in label for label in labels)
    faces = {line.get_markerfacecolor() for line in axes.lines if line.get_marker() not in ("", "None")}
    assert "#fefdfc" in faces
    joined = [line for line in axes.lines if len(line.get_xdata()) == len(labels)]
    assert all(np.isnan(line.get_ydata()).sum() == 5 for line in joined)


def test_whiskers_show_intervals_before_seeds(make_run: Factory, protocol: Protocol) -> None:
    for intervals, height in ((True, 0.03), (False, None)):
        runs = [make_run(category=f"c{intervals}", seed=s, intervals=intervals) for s in (0, 1)]
        board = board_of(runs, protocol)
        axes = plots.figures(board, plots.gather(board))["sizes"].axes[0]
        bars = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 2]
        assert len(bars) == 4
        if height:
            assert all(np.ptp(bar) == pytest.approx(height) for bar in bars)


def test_bin_labels() -> None:
    assert Bin("tiny", 31, (13.0, 37.0, 84.0), 1, 1).label == "tiny\n13–84 px\nmedian 37\nn = 31"
    assert Bin("d8-16", 2, (50.0, 60.0, 70.0), 0, 1).label == "8–16\nn = 2\ntoo few"
    assert Bin("q1", 0, (), 0, 1).label == "q1\nno defects"
    assert "2 of 3" in Bin("tiny", 9, (1.0, 2.0, 123456.0), 2, 3).label
    assert "123k" in Bin("tiny", 9, (1.0, 2.0, 123456.0), 2, 3).label


def test_inline_svg_is_part_of_the_page(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(CONFIGS[3])]
    board = board_of(runs, protocol)
    drawn = plots.figures(board, plots.gather(board), titled=False)
    text = inline_svg(drawn["sizes"], "d0-sizes", 'a "plot"')
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == 'a "plot"'
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert ids
    assert all(name.startswith("d0-sizes-") for name in ids)
    targets = {v[1:] for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")}
    assert targets <= ids
    assert max(len(digits) for digits in re.findall(r"\.(\d+)", root.find(".//{*}path").get("d"))) <= 2
    assert "var(--ink)" in text
    assert "#111213" not in text
    assert not list(root.iter("{http://www.w3.org/2000/svg}metadata"))
    written = "".join(root.itertext())
    assert NASTY.replace("\x1b", "") in written


def test_no_run_under_the_protocol_is_an_error(make_run: Factory, tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match="'other'"):
        plots.write_plots([make_run()], tmp_path, Protocol("other", "Another", 1))
