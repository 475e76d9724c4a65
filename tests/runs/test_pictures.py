"""Pictures of a run: what they show, what they take, and that they never fail a run."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import write_tree
from PIL import Image

from hrbench import load_dataset, load_protocol
from hrbench.data.sample import Category, Sample, sample_mask
from hrbench.errors import Halted
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.imaging import image_size
from hrbench.runs.pictures import (
    LONGEST,
    OUTLINE,
    WIDTH,
    _levels,
    _outline,
    _panel,
    _photo,
    _smallest,
    draw_pictures,
    overlay,
)

Maps = Callable[[Sample], np.ndarray]


def scored(category: Category, side: int | None = None) -> tuple[Evidence, Maps]:
    """Return evidence of noise that is higher on defects, and what gives its maps."""
    rng, maps = np.random.default_rng(0), {}
    collector = EvidenceCollector(EvidenceSpec(side=side))
    for sample in category.test:
        size = image_size(sample.image)
        mask = sample_mask(sample, size)
        maps[sample.id] = rng.normal(0, 1, size).astype(np.float32)
        if mask is not None:
            maps[sample.id] += 4 * mask
        collector.update(sample.id, maps[sample.id], mask)
    return collector.result(), lambda sample: maps[sample.id]


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Category:
    root = write_tree(tmp_path_factory.mktemp("tree"), train=1, good=1, bad=3, size=(96, 140))
    return load_dataset("folder", root).categories[0]


def test_the_peak_of_a_tiny_defect_survives_and_noise_does_not_glow() -> None:
    scores = np.random.default_rng(0).normal(0, 1, (900, 900)).astype(np.float32)
    high = 3.29  # of 1 in 2000
    without = _levels(scores, (50, 50), 0, high)
    assert without.mean() < 0.15  # peaks alone: 0.6
    scores[400:403, 800:802] = 1.5 * high
    levels = _levels(scores, (50, 50), 0, high)
    assert levels[401 // 18, 801 // 18] == pytest.approx(1)
    assert np.count_nonzero(levels != without) <= 2


def test_a_map_is_shown_as_it_is_where_it_is_not_reduced() -> None:
    scores = np.linspace(-1, 2, 12).reshape(3, 4)
    expected = np.clip(scores / 1.5, 0, 1)
    assert np.allclose(_levels(scores, (3, 4), 0, 1), expected)
    assert np.allclose(_levels(scores, (6, 8), 0, 1), np.kron(expected, np.ones((2, 2))))


@pytest.mark.parametrize("size", [(2000, 1), (3, 2500), (1, 1), (1121, 1313)])
def test_any_shape_is_reduced(size: tuple[int, int]) -> None:
    to = (560, 560)
    assert _levels(np.zeros(size, np.float32), to, 0, 1).shape == to
    assert not _outline(np.zeros(size, bool), to).any()
    assert (_photo(np.full((*size, 3), 25700, np.uint16), to) == 100).all()
    assert (_photo(np.full((*size, 3), 100, np.uint8), to) == 100).all()


def test_an_overlay_shows_the_photograph_and_outlines_what_is_called() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    scores = np.zeros((60, 90), np.float32)
    scores[20:24, 30:33] = 5
    pixels = overlay(image, scores, scores >= 5, 0, 5)
    changed = (pixels != image).any(axis=2)
    assert not changed[:18].any()
    assert changed[20:24, 30:33].all()
    assert (pixels[18, 30:33] == OUTLINE).all()
    assert np.array_equal(overlay(image, 0 * scores, scores > 9, 0, 5), image)  # nothing is called, nothing glows
    wide = overlay(
        np.zeros((40, 2 * LONGEST, 3), np.uint16), np.zeros((40, 2 * LONGEST)), np.zeros((40, 2 * LONGEST), bool), 0, 1
    )
    assert wide.shape == (20, LONGEST, 3)


def test_a_photograph_is_reduced_like_the_whole_of_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1500, 1250, 3)).astype(np.uint8)
    at_once = Image.fromarray(image).resize((50, 60), Image.Resampling.LANCZOS)
    assert np.abs(_photo(image, (60, 50)).astype(int) - np.asarray(at_once)).mean() < 1.5


@pytest.mark.parametrize("side", [None, 48])
def test_the_close_up_shows_the_smallest_defect(category: Category, side: int | None) -> None:
    evidence, maps = scored(category, side)
    sample = next(sample for sample in category.test if sample.id.endswith("dent/001.png"))
    panel = _panel(sample, _smallest(evidence, sample.id), maps, 0, 4)
    height = round(96 * WIDTH / 140)
    assert panel.shape == (height, 2 * WIDTH + 2 * height + 18, 3)
    close = (
        panel[:, -height:].astype(int).sum(axis=2)
    )  # bright inside the mask, whose centre lies in that of the square
    assert close[height // 2 - 20 : height // 2 + 20, height // 2 - 20 : height // 2 + 20].max() > 1.5 * close.mean()


def test_a_picture_copies_nothing_of_native_size(tmp_path: Path) -> None:
    native, image, mask = (1500, 1500), tmp_path / "image.png", tmp_path / "mask.png"
    Image.new("RGB", native).save(image)
    Image.new("L", native, 255).save(mask)
    sample = Sample("part/test/dent/image.png", image, mask, 1, "dent", "test", "part")
    scores = np.zeros(native, np.float32)
    tracemalloc.start()
    try:
        _panel(sample, (0, 0, 1, 1), lambda _: scores, 0, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1500**2 + 10 * 8 * WIDTH**2  # the photograph, and parts of the panel in float64


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "no such sector"), RuntimeError("no memory")])
def test_a_picture_that_cannot_be_drawn_is_a_warning(
    category: Category, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    evidence, maps = scored(category)

    def failing(sample: Sample) -> np.ndarray:
        if "dent" in sample.id:
            raise error
        return maps(sample)

    with caplog.at_level(logging.WARNING):
        draw_pictures(tmp_path, evidence, category, load_protocol("native"), failing)
    (record,) = caplog.records
    assert "3 of 4 pictures left out" in record.message
    assert "dent" in record.message
    assert str(error) in record.message
    assert [entry["kind"] for entry in json.loads((tmp_path / "pictures.json").read_text())] == ["false alarm"]


def test_a_file_that_is_gone_is_a_warning(category: Category, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evidence, maps = scored(category)
    gone = [dataclasses.replace(sample, image=tmp_path / "gone.png") for sample in category.test]
    draw_pictures(tmp_path, evidence, dataclasses.replace(category, test=gone), load_protocol("native"), maps)
    assert "4 of 4 pictures left out" in caplog.text


def test_a_full_disk_halts(category: Category, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, maps = scored(category)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(Halted, match="no space left on the disk"):
        draw_pictures(tmp_path, evidence, category, load_protocol("native"), maps)
