"""The page's pictures: the same defects side by side, drawn without a script, within a size."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrbench.protocol import Protocol
from hrbench.report import page, pictures, write_leaderboard
from hrbench.report.panels import draw_panels
from hrbench.report.picture_grid import close_up, edges, panel_words, picture_grid
from hrbench.runs.picture_files import UNIT, Pictures, write_pictures
from hrbench.runs.store import Run

from .conftest import CONFIGS, board_of

Factory = Callable[..., Run]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no plots: they have tests of their own."""
    monkeypatch.setattr(page, "figures", lambda *_, **__: {})


@pytest.fixture
def runs(make_run: Factory) -> list[Run]:
    return [make_run(config) for config in CONFIGS[:3]]


def page_of(runs: list[Run], folder: Path, protocol: Protocol, **options: bool) -> str:
    return write_leaderboard(runs, folder, protocol, **options)["html"].read_text(encoding="utf-8")


def test_lines_are_the_same_defects_and_columns_the_methods(runs: list[Run], protocol: Protocol) -> None:
    board = board_of(runs, protocol)
    grid = picture_grid(board, "ballscrew")
    assert [column.row for column in grid.columns] == list(board.rows)
    for line in grid.lines:
        assert {panel.key for panel in line.panels if panel} == {line.first.key}
    of = {line.first.image: line for line in grid.lines}
    assert list(of) == ["test/bad/001.png", "test/bad/000.png", "test/good/000.png", "test/bad/002.png"]
    names = [column.row.configuration.short for column in grid.columns]
    kept = [panel is not None for panel in of["test/bad/002.png"].panels]
    whose = " and ".join(name for name, there in zip(names, kept, strict=True) if there)
    assert of["test/bad/002.png"].heading == f"Smallest found by {whose}"
    assert sum(kept) == 2
    assert of["test/bad/001.png"].heading.endswith("a large defect")
    assert all(of["test/bad/000.png"].panels)
    assert "one `hrbench run` with all methods adds those pictures" in grid.notes[-1]


def test_a_photograph_stands_in_the_page_once(runs: list[Run], protocol: Protocol, tmp_path: Path) -> None:
    text = page_of(runs, tmp_path, protocol)
    assert text.count("data:image/jpeg") == 4
    assert text.count("data:image/png") == 3 * 3 + 2
    assert text.count("not kept by this run") == 1
    assert text.count('<button type="button" class="panel"') == 4 + 3 * 3 + 2
    defined = set(re.findall(r'<(?:image|path) id="([^"]+)"', text))
    assert set(re.findall(r'<use[^>]* href="#([^"]+)"', text)) <= defined
    assert 'filter id="_heat"' in text
    assert "highest score 1.35 × threshold" in text
    assert "10 % of it reaches 0.75 × threshold" in text  # of an earlier version
    grey = Image.open(io.BytesIO(base64.b64decode(re.findall(r"data:image/png;base64,([^\"]+)", text)[0])))
    assert (grey.mode, grey.size) == ("L", (80, 60))


def test_what_is_missed_is_said_by_its_pixels_as_what_is_hit(runs: list[Run], protocol: Protocol) -> None:
    (column, *_) = picture_grid(board_of(runs, protocol), "ballscrew").columns
    picture = next(picture for picture in column.pictures.items if picture.defect is not None)

    def words(score: float, reached: float, share: float | None = None) -> str:
        of = dataclasses.replace(column, pictures=dataclasses.replace(column.pictures, share=share))
        return ", ".join(panel_words(of, dataclasses.replace(picture, score=score, reached=reached)))

    assert words(1.0, 0.05226) == "missed, 5.2 % of it reaches the threshold, a hit takes 10 %"
    assert words(1.0, 0.09999) == "missed, 9.9 % of it reaches the threshold, a hit takes 10 %"
    assert words(3.0, 0.1) == "found, 10 % of it reaches the threshold, a hit takes 10 %"
    beside = dataclasses.replace(column, beside={(picture.image, picture.defect): 4509})
    assert panel_words(beside, dataclasses.replace(picture, score=3.0, reached=0.21)) == (
        "found",
        "21 % of it reaches the threshold, a hit takes 10 %, beside a defect of 4,509 px that is found too and may "
        "light it up",
    )
    assert "4,509" not in str(panel_words(beside, dataclasses.replace(picture, score=1.0, reached=0.05)))
    assert words(3.0, 0.29, 0.25) == "found, 29 % of it reaches the threshold, a hit takes 25 %"


def _with_another_defect(run: Run, whole: bool = True) -> Run:
    """Return a run that keeps only its first picture and, of the same small image, a second defect that is missed."""
    first = run.pictures.items[0]
    top, left, bottom, right = first.defect or first.window
    other = dataclasses.replace(first, kinds=("large",), defect=(top + 1, left, bottom + 1, right), score=0.5, area=3)
    if not whole:  # its map is lost
        first = dataclasses.replace(first, map=first.map.with_name("none.png"))
    write_pictures(run.files.pictures, dataclasses.replace(run.pictures, items=(first, other)))
    return Run(run.folder)


def test_two_defects_of_a_small_image_have_a_line_each(runs: list[Run], protocol: Protocol, tmp_path: Path) -> None:
    both = [_with_another_defect(run) for run in runs]
    grid = picture_grid(board_of(both, protocol), "ballscrew")
    assert [line.first.score for line in grid.lines if line.heading == "A large defect"] == [0.5]
    assert len({line.first.defect for line in grid.lines}) == len(grid.lines) == 2
    text = page_of(both, tmp_path, protocol)
    assert text.count("data:image/jpeg") == 1
    ids = re.findall(r'<(?:image|path) id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'<use[^>]* href="#([^"]+)"', text)) <= set(ids)


def test_a_photograph_of_a_line_left_out_is_there_for_the_next(
    runs: list[Run], protocol: Protocol, tmp_path: Path
) -> None:
    text = page_of([_with_another_defect(runs[0], whole=False)], tmp_path, protocol)
    assert "1 line of pictures left out: files of the run are damaged" in text
    assert text.count("data:image/jpeg") == 1
    assert set(re.findall(r'<use[^>]* href="#([^"]+)"', text)) <= set(re.findall(r' id="([^"]+)"', text))


def test_a_page_has_a_largest_size_and_says_what_it_leaves_out(
    runs: list[Run], protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page_of(runs, tmp_path / "whole", protocol)
    least = len(whole.encode()) - 5000
    monkeypatch.setattr(pictures, "LARGEST_PAGE", least)
    monkeypatch.setattr(page, "LARGEST_PAGE", least)
    text = page_of(runs, tmp_path / "small", protocol)
    assert len(text.encode()) <= least
    assert re.search(r"\d lines? of pictures left out, to keep this page below", text)
    assert "hrbench leaderboard RUNS --assets" in text
    assert 0 < text.count('class="panel"') < whole.count('class="panel"')


def test_assets_lie_beside_the_page(runs: list[Run], protocol: Protocol, tmp_path: Path) -> None:
    text = page_of(runs, tmp_path, protocol, assets=True)
    folder = tmp_path / "leaderboard-pictures"
    addresses = set(re.findall(r'href="(leaderboard-pictures/[^"]+)"', text))
    assert {tmp_path / address for address in addresses} == set(folder.iterdir())
    assert "data:image" not in text
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    page_of(runs[:1], tmp_path, protocol, assets=True)
    assert len(list(folder.iterdir())) < len(addresses) + 1
    assert (folder / "notes.txt").is_file()


def test_pictures_of_an_earlier_version_are_named(runs: list[Run], protocol: Protocol, tmp_path: Path) -> None:
    former = json.dumps([{"file": "00-worst.jpg", "kind": "worst", "image": "x", "caption": "y"}])
    for run in runs:
        (run.files.pictures / "pictures.json").write_text(former, encoding="utf-8")
    assert runs[0].pictures == Pictures(former=True)
    text = page_of([Run(run.folder) for run in runs], tmp_path, protocol)
    assert "ictures were kept by an earlier version" in text
    assert "_heat" not in text


def test_a_damaged_picture_leaves_out_its_line(
    runs: list[Run], protocol: Protocol, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for run in runs:
        (run.files.pictures / "00-map.png").write_bytes(b"root:x:0:0")
    text = page_of(runs, tmp_path, protocol)
    assert "1 line of pictures left out: files of the run are damaged" in text
    assert "00-map.png: not readable as a PNG" in caplog.text
    assert text.count("data:image/jpeg") == 3


def test_without_a_threshold_there_is_no_contour(runs: list[Run], protocol: Protocol, tmp_path: Path) -> None:
    for run in runs:
        found = run.pictures
        write_pictures(run.files.pictures, Pictures(found.items, 0.0, 2.0, None, 0.05, "native"))
    text = page_of([Run(run.folder) for run in runs], tmp_path, protocol)
    assert "Without good test images there is no threshold" in text
    assert 'class="edge contour"' not in text


def test_the_outline_runs_along_the_edges_of_pixels() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    assert sorted(edges(mask)) == [(2, 1, 2, 3), (2, 1, 5, 1), (2, 3, 5, 3), (5, 1, 5, 3)]
    mask[2, 3] = mask[1, 3] = False
    assert len(edges(mask)) == 8
    noise = np.random.default_rng(0).random((300, 301)) < 0.5
    assert len(edges(noise)) <= 4000
    assert max(max(edge) for edge in edges(np.ones((300, 301), bool))) == 301


def test_a_close_up_holds_the_defect_and_stays_in_the_window(runs: list[Run]) -> None:
    for picture in runs[0].pictures.items:
        top, left, bottom, right = close_up(picture)
        assert picture.window[0] <= top < bottom <= picture.window[2]
        assert picture.window[1] <= left < right <= picture.window[3]
        if picture.defect is not None:
            assert top <= picture.defect[0]
            assert picture.defect[3] <= right


def test_the_map_keeps_what_is_at_the_threshold(runs: list[Run]) -> None:
    (picture, *_) = runs[0].pictures.items
    assert (picture.read_map() >= UNIT).sum() == 12
    mask = picture.read_mask()
    assert mask is not None
    assert mask.sum() == 12


def test_the_figure_has_the_panels_of_the_page(runs: list[Run], protocol: Protocol) -> None:
    grid = picture_grid(board_of(runs, protocol), "ballscrew")
    figure = draw_panels(grid, "bsdata")
    assert figure is not None
    axes = figure.axes[: len(grid.lines) * 4]
    assert [len(ax.images) for ax in axes] == [
        count for line in grid.lines for count in (1, *(2 if panel else 0 for panel in line.panels))
    ]
    words = [" ".join(ax.get_xlabel().split()) for ax in axes]
    assert "found, 10 % of it reaches 1.35 × threshold" in words
    assert axes[0].get_title(loc="center") == "Photograph"
    assert draw_panels(picture_grid(board_of(runs, protocol), "no such"), "") is None
