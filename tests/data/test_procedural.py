from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from hrbench.data import dataset_stats, load_dataset, make_dataset
from hrbench.data._defects import KINDS, VISIBLE
from hrbench.data._surfaces import SURFACES
from hrbench.data.procedural import _picture
from hrbench.errors import HrbenchError
from hrbench.imaging import read_image, read_mask

SIZE = (192, 256)
SMALL = {"size": (96, 128), "train": 2, "test_good": 1, "test_defective": 8}


def digest(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("procedural"), **SMALL)


def test_has_mvtec_layout_and_loads(made: Path) -> None:
    dataset = load_dataset("folder", made)
    assert {category.name for category in dataset.categories} == set(SURFACES)
    assert len(SURFACES) >= 6
    for category in dataset.categories:
        assert len(category.train) == 2
        assert sorted(sample.defect_type for sample in category.test) == sorted(["good", *KINDS])
        defective = [sample for sample in category.test if sample.label]
        assert all(s.mask and s.mask.name == f"{s.image.stem}_mask.png" for s in defective)
        assert read_image(category.train[0].image).shape == (96, 128, 3)
    assert "CC0" in (made / "LICENSE.txt").read_text()
    frame = dataset_stats(dataset)
    assert (frame["area_min"] >= 4).all()
    assert (frame["components"] >= 8).all()


def test_same_arguments_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "again", **SMALL)
    assert digest(other) == digest(made)


def test_writing_again_is_harmless_and_completes_what_is_missing(tmp_path: Path) -> None:
    small = {**SMALL, "categories": ["weave"]}
    root = make_dataset(tmp_path / "d", **small)
    before = digest(root)
    (root / "weave/test/spot/000.png").unlink()
    (root / "weave/ground_truth/crack/000_mask.png").unlink()
    make_dataset(root, **small)
    assert digest(root) == before


def test_an_image_does_not_depend_on_how_many_there_are(made: Path, tmp_path: Path) -> None:
    more = make_dataset(tmp_path / "more", **{**SMALL, "categories": ["tiles"], "train": 3, "test_defective": 9})
    few = digest(made / "tiles")
    assert few.items() <= digest(more / "tiles").items()


def test_seed_split_and_index_change_the_picture() -> None:
    pictures = [
        _picture("brushed_metal", split, "good", index, seed, (64, 64))[0]
        for split, index, seed in (("train", 0, 0), ("train", 1, 0), ("test", 0, 0), ("train", 0, 1))
    ]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert (first != second).mean() > 0.5


@pytest.mark.parametrize("category", list(SURFACES))
def test_mask_is_exactly_what_the_defect_changed(category: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, kind in enumerate(KINDS):
        image, mask = _picture(category, "defective", kind, index, 5, SIZE)
        assert mask is not None
        with monkeypatch.context() as patch:
            patch.setattr("hrbench.data.procedural._paint", lambda rng, scene, *_: (scene.image, None))
            normal, _ = _picture(category, "defective", kind, index, 5, SIZE)
        change = np.abs(image.astype(int) - normal.astype(int)).max(axis=2)
        np.testing.assert_array_equal(change > 0, mask, err_msg=kind)
        assert change[mask].min() >= VISIBLE - 1, kind  # rounding takes at most one grey level


def test_nothing_is_saturated_by_the_surface() -> None:
    for category in SURFACES:
        image, _ = _picture(category, "train", "good", 0, 0, SIZE)
        assert ((image == 0) | (image == 255)).mean() < 1e-4, category
        assert image.std() > 8, category


def test_areas_are_log_uniform_up_to_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def record(rng: object, scene: object, image: object, taken: np.ndarray, kind: str, area: float) -> np.ndarray:
        asked.append(area)
        mask = np.zeros_like(taken)
        mask[0, 0] = True
        return mask

    monkeypatch.setattr("hrbench.data.procedural.add_defect", record)
    flat = SURFACES["tiles"](np.random.default_rng(0), np.random.default_rng(0), SIZE)
    monkeypatch.setitem(SURFACES, "tiles", lambda *_: flat)
    kinds = list(KINDS)
    for index in range(160):
        _picture("tiles", "defective", kinds[index % len(kinds)], index, 0, SIZE)
    largest = 0.1 * SIZE[0] * SIZE[1]
    assert 4 <= min(asked) < 5
    assert 0.9 * largest < max(asked) <= largest
    place = np.log(np.array(asked) / 4) / np.log(largest / 4)
    counts, _ = np.histogram(place, bins=5, range=(0, 1))
    assert counts.min() > 0.7 * counts.mean()
    assert len(asked) > 160  # some images have several


@pytest.mark.parametrize("category", ["weave", "bearing"])
def test_realised_areas_follow_the_wanted_ones(category: str) -> None:
    areas = []
    for index in range(16):
        _, mask = _picture(category, "defective", list(KINDS)[index % 8], index, 2, SIZE)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        assert 1 <= count <= 3
        areas += list(np.bincount(labels.ravel())[1:])
    assert min(areas) >= 4
    assert min(areas) < 40
    assert 0.02 * SIZE[0] * SIZE[1] < max(areas) <= 0.1 * SIZE[0] * SIZE[1] + 1


def test_written_masks_are_0_and_255(made: Path) -> None:
    path = made / "bolts/ground_truth/stain/000_mask.png"
    values = np.unique(read_image(path))
    assert list(values) == [0, 255]
    assert 4 <= read_mask(path, (96, 128)).sum() <= 0.1 * 96 * 128 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["weaver"]}, "unknown procedural category 'weaver'; did you mean 'weave'"),
        ({"categories": []}, "no category given"),
        ({"size": (1024, 32)}, r"size is \(1024, 32\), expected .* at least 64 px"),
        ({"size": (99_999_999, 99_999_999)}, r"size is 99999999 x 99999999: .* 1,117,\d+,\d+ GiB .*, expected at most"),
        ({"size": (200_000, 6_000)}, r"takes 134 GiB of memory, expected at most \d+ x \d+ px"),
        ({"train": 10**12}, "train is 1000000000000, expected 1 to 100,000"),
        ({"train": 0}, "train is 0, expected 1 to 100,000 images"),
        ({"test_defective": -1}, "test_defective is -1, expected 0 to 100,000 images"),
        ({"test_good": 0, "test_defective": 0}, "expected at least one test image"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        make_dataset(tmp_path / "d", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(HrbenchError, match="not empty and not made by hrbench"):
        make_dataset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(HrbenchError, match=r"holiday\.jpg: is a file"):
        make_dataset(tmp_path / "holiday.jpg")


def test_other_arguments_need_another_folder(made: Path) -> None:
    before = digest(made)
    with pytest.raises(HrbenchError, match=r"made with other arguments .*\"seed\": 0.*expected .*\"seed\": 1"):
        make_dataset(made, **SMALL, seed=1)
    assert digest(made) == before


def test_progress_wraps_the_images(tmp_path: Path) -> None:
    seen: list[object] = []
    make_dataset(
        tmp_path / "d",
        **{**SMALL, "categories": ["weave"]},
        progress=lambda items: [seen.append(item) or item for item in items],
    )
    assert len(seen) == 11
