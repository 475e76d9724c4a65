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
from hrbench.imaging import image_size, read_image
from hrbench.metrics import DISJOINT
from hrbench.metrics.alarms import alarm_scores, critical_scores
from hrbench.runs.picture_choice import ALARM, FOUND, GOOD, MISSED, Choice, Scale, choose, scale_of
from hrbench.runs.picture_files import UNIT, Pictures, read_pictures
from hrbench.runs.pictures import (
    BOXES,
    LONGEST,
    OUTLINE,
    SHORT,
    STORED,
    WINDOW,
    _around,
    _keep,
    _levels,
    _photo,
    _window,
    captioned,
    keep_pictures,
    overlay,
)

Maps = Callable[[Sample], np.ndarray]


def scored(category: Category, side: int | None = None, *, seed: int = 0, height: float = 4) -> tuple[Evidence, Maps]:
    """Return evidence of noise that is higher on defects, and what gives its maps."""
    rng, maps = np.random.default_rng(seed), {}
    collector = EvidenceCollector(EvidenceSpec(side=side))
    for sample in category.test:
        size = image_size(sample.image)
        mask = sample_mask(sample, size)
        maps[sample.id] = rng.normal(0, 1, size).astype(np.float32)
        if mask is not None:
            maps[sample.id] += height * mask
        collector.update(sample.id, maps[sample.id], mask)
    return collector.result(), lambda sample: maps[sample.id]


def kept(folder: Path, evidence: Evidence, category: Category, maps: Maps) -> Pictures:
    """Keep pictures, and read them back."""
    keep_pictures(folder, evidence, category, load_protocol("native"), maps)
    return read_pictures(folder / "pictures.json", lambda path: path)


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
    assert (_photo(np.full((*size, 3), 25700, np.uint16), to) == 100).all()
    assert (_photo(np.full((*size, 3), 100, np.uint8), to) == 100).all()


def test_an_overlay_outlines_what_is_called_and_covers_nothing_of_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 900, 3)).astype(np.uint8)
    scores = np.zeros((600, 900), np.float32)
    scores[100:200, 300:350] = 4  # nearly called: a weak glow
    scores[200:240, 300:330] = 5
    pixels = overlay(image, scores, scores >= 5, 0, 5, [(200, 300, 240, 330)])
    changed = (pixels != image).any(axis=2)
    assert not changed[200:240, 300:330].any()
    assert (pixels[198, 300:330] == OUTLINE).all()
    assert (pixels[193, 293:337] == OUTLINE).all()  # its box
    assert np.abs(pixels[100:170, 300:350].astype(int) - image[100:170, 300:350]).max() in range(10, 66)
    assert changed[178:192, 293:305].any()  # its number
    changed[90:260, 280:] = False
    assert not changed.any()
    assert np.array_equal(overlay(image, 0 * scores, scores > 9, 0, 5), image)  # nothing is called, nothing glows


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((40, 50), (400, 500)),
        ((1, 1), (SHORT, SHORT)),
        ((511, 3), (511, 3)),
        ((40, 2 * LONGEST), (20, LONGEST)),
        ((LONGEST, 600), (LONGEST, 600)),
    ],
)
def test_an_overlay_is_as_large_as_it_can_be_seen(size: tuple[int, int], shown: tuple[int, int]) -> None:
    called = np.zeros(size, bool)
    called[0, 0] = called[-1, -1] = True
    boxes = [(0, 0, 1, 1), (size[0] - 1, size[1] - 1, *size)]
    pixels = overlay(np.full((*size, 3), 65535, np.uint16), called.astype(np.float32), called, 0, 1, boxes)
    assert pixels.shape == (*shown, 3)
    assert (pixels != 255).any()
    assert np.count_nonzero(_around(called, 2) & called) == 0


def test_of_many_components_the_largest_have_boxes_with_numbers_of_their_own() -> None:
    image, called = np.zeros((600, 600, 3), np.uint8), np.zeros((600, 600), bool)
    boxes = [(y, x, y + 2, x + 2) for y in range(60, 560, 50) for x in range(60, 560, 50)]
    assert len(boxes) > BOXES
    boxes[-1] = (510, 510, 515, 515)
    last = overlay(image, called.astype(np.float32), called, 0, 1, boxes)
    assert last[480:540, 480:540].any()
    assert not last[480:540, 430:480].any()  # the one before it
    swapped = overlay(image, called.astype(np.float32), called, 0, 1, [boxes[-1], *boxes[:-1]])
    assert (swapped[480:540, 480:540] != last[480:540, 480:540]).any()  # another number


@pytest.mark.parametrize("size", [(512, 480), (3, 511), (400, 9), (2048, 2048)])
def test_a_caption_stands_below_and_within_the_picture(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 7, np.uint8)
    text = "alarm: 12 components, highest score 100.00 × threshold"
    found = captioned(pixels, text)
    assert np.array_equal(found[: size[0]], pixels)
    strip = found[size[0] :]
    assert strip.shape[1] == size[1]
    assert 12 <= len(strip) <= 60
    if size[1] > 400:
        assert strip.max() == 255
        assert not strip[:, -4:].any()  # no letter is cut


def test_a_photograph_is_reduced_like_the_whole_of_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1500, 1250, 3)).astype(np.uint8)
    at_once = Image.fromarray(image).resize((50, 60), Image.Resampling.LANCZOS)
    assert np.abs(_photo(image, (60, 50)).astype(int) - np.asarray(at_once)).mean() < 1.5


@pytest.mark.parametrize("side", [None, 48])
def test_a_picture_holds_photograph_map_and_mask_of_its_defect(
    category: Category, tmp_path: Path, side: int | None
) -> None:
    evidence, maps = scored(category, side)
    pictures = kept(tmp_path, evidence, category, maps)
    (threshold,) = {pictures.threshold}
    assert threshold is not None
    for picture in pictures.items:
        sample = next(sample for sample in category.test if sample.id == picture.image)
        top, left, bottom, right = picture.window
        part = (slice(top, bottom), slice(left, right))
        assert np.abs(picture.read_photo().astype(int) - read_image(sample.image)[part]).mean() < 12
        assert np.array_equal(picture.read_map() >= UNIT, maps(sample)[part] >= threshold)
        mask, expected = picture.read_mask(), sample_mask(sample, (96, 140))
        assert (mask is None) == (expected is None) == (picture.label == 0)
        if mask is not None and expected is not None:
            assert np.array_equal(mask, expected[part])
            assert picture.defect is not None
            box = picture.defect
            inside = expected[box[0] : box[2], box[1] : box[3]]
            assert inside.any()
            if side is None:  # else it is measured in other pixels
                assert inside.sum() == picture.area  # no other defect is in its box
                high = (maps(sample) >= threshold)[box[0] : box[2], box[1] : box[3]]
                assert picture.reached == pytest.approx(high[inside].mean())
            assert pictures.found(picture) == (picture.score >= threshold)
        assert maps(sample)[picture.peak] == maps(sample)[part].max()


def test_most_pictures_are_the_same_for_all_methods(category: Category) -> None:
    protocol = load_protocol("native")
    chosen = []
    for seed in (0, 1):
        evidence, _ = scored(category, seed=seed)
        chosen.append(choose(evidence, protocol, scale_of(evidence, protocol).threshold))
    same = [{(c.image, c.defect) for c in some if {*DISJOINT, GOOD} & {*c.kinds}} for some in chosen]
    assert same[0] == same[1]
    kinds = {kind for choice in chosen[0] for kind in choice.kinds}
    assert kinds >= {"tiny", "large", ALARM, GOOD}
    assert kinds & {FOUND, MISSED}
    assert len({(c.image, c.defect, c.kinds == (GOOD,)) for c in chosen[0]}) == len(chosen[0])


def test_the_extremes_are_those_of_the_run(category: Category) -> None:
    protocol = load_protocol("native")
    evidence, _ = scored(category, height=1.5)
    scale = scale_of(evidence, protocol)
    assert scale.threshold is not None
    by_kind = {kind: c for c in choose(evidence, protocol, scale.threshold) for kind in c.kinds}
    critical = critical_scores(evidence, protocol.pod.share)
    areas = evidence.components["area"].to_numpy()
    hit = critical >= scale.threshold
    if hit.any():
        assert by_kind[FOUND].area == areas[hit].min()
    if not hit.all():
        assert by_kind[MISSED].area == areas[~hit].max()
    for one in by_kind.values():  # with the area it tells hit from missed, as the critical score does
        if one.defect is not None:
            assert one.reached is not None
            assert (one.reached >= protocol.pod.share) == (one.score >= scale.threshold)
        else:
            assert one.reached is None
    good = evidence.images["label"].to_numpy() == 0
    assert by_kind[ALARM].score == alarm_scores(evidence, protocol.alarm.pixels)[good].max()


def test_without_good_images_there_is_no_threshold(category: Category, tmp_path: Path) -> None:
    only = dataclasses.replace(category, test=tuple(sample for sample in category.test if sample.label))
    evidence, maps = scored(only)
    pictures = kept(tmp_path, evidence, only, maps)
    assert pictures.threshold is None
    assert pictures.items
    assert not {FOUND, MISSED, ALARM, GOOD} & {kind for picture in pictures.items for kind in picture.kinds}
    assert {pictures.found(picture) for picture in pictures.items} == {None}


def test_a_window_is_at_native_pixels_around_the_defect_and_inside(category: Category) -> None:
    assert _window((5, 1000, 9, 1003), (2000, 3000)) == (0, 1001 - WINDOW // 2, WINDOW, 1001 + WINDOW // 2)
    assert _window((5, 90, 9, 95), (60, 2000)) == (0, 0, 60, WINDOW)
    top, left, bottom, right = _window((100, 100, 1100, 1300), (2000, 3000))
    assert bottom - top == 2000
    assert right - left == 2400


def test_a_large_window_is_kept_smaller_and_its_peak_stays(tmp_path: Path) -> None:
    native, image, mask = (1600, 1600), tmp_path / "image.png", tmp_path / "mask.png"
    Image.new("RGB", native).save(image)
    Image.new("L", native, 255).save(mask)
    sample = Sample("part/test/dent/image.png", image, mask, 1, "dent", "test", "part")
    scores = np.zeros(native, np.float32)
    scores[801, 77] = 4
    choice = Choice(sample.id, ("large",), (0, 0, 1, 1), 1600**2, 4.0)
    tracemalloc.start()
    try:
        (picture,) = _keep(tmp_path, sample, [(0, choice)], Scale(0, 2, 2, 0.05), lambda _: scores).values()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert picture.read_photo().shape == (STORED, STORED, 3)
    assert (picture.read_map() >= UNIT).sum() == 1
    assert picture.read_map().max() == 255
    assert peak < 4 * 1600**2 + 40 * STORED**2  # the photograph, and parts of what is kept in float64


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
        keep_pictures(tmp_path, evidence, category, load_protocol("native"), failing)
    (record,) = caplog.records
    assert "pictures of 3 of 4 images left out" in record.message
    assert "dent" in record.message
    assert str(error) in record.message
    kinds = [entry["kinds"] for entry in json.loads((tmp_path / "pictures.json").read_text())["items"]]
    assert kinds == [[ALARM], [GOOD]] or kinds == [[ALARM, GOOD]]


def test_a_file_that_is_gone_is_a_warning(category: Category, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evidence, maps = scored(category)
    gone = [dataclasses.replace(sample, image=tmp_path / "gone.png") for sample in category.test]
    keep_pictures(tmp_path, evidence, dataclasses.replace(category, test=gone), load_protocol("native"), maps)
    assert "pictures of 4 of 4 images left out" in caplog.text


def test_a_full_disk_halts(category: Category, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, maps = scored(category)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(Halted, match="no space left on the disk"):
        keep_pictures(tmp_path, evidence, category, load_protocol("native"), maps)
