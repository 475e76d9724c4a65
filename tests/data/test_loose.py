"""Images of no dataset: which are found, under what names, and what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hrbench import HrbenchError
from hrbench.data.loose import find_loose, loose_samples
from hrbench.data.sample import ArraySample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "new"
    for name in ("b.png", "a/c.JPG", "a/notes.txt", ".hidden/d.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_folder_gives_all_images_below_it_by_their_paths(folder: Path) -> None:
    assert [sample.id for sample in loose_samples(folder)] == ["a/c.JPG", "b.png"]
    assert [sample.id for sample in find_loose([folder])] == ["a/c.JPG", "b.png"]
    assert [sample.id for sample in find_loose([folder / "b.png", folder / "a"])] == ["b.png", "c.JPG"]


def test_names_whose_results_would_collide_are_refused(folder: Path) -> None:
    (folder / "b.jpg").touch()
    with pytest.raises(HrbenchError, match=r"b\.png: its results would have the name of those of .*b\.jpg"):
        find_loose([folder])
    with pytest.raises(HrbenchError, match="expected one file per stem"):
        find_loose([folder / "b.png", folder / "b.png"])


def test_what_is_not_there_and_a_folder_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match="gone: no such file or folder"):
        find_loose([tmp_path / "gone"])
    for find in (lambda: find_loose([tmp_path]), lambda: list(loose_samples(tmp_path))):
        with pytest.raises(HrbenchError, match=r"no image in this folder or below it, expected \.png"):
            find()


def test_arrays_become_images_of_three_channels_and_are_copied() -> None:
    grey, colour = np.full((4, 5), 7, np.uint16), np.zeros((4, 5, 4), np.uint8)
    first, second = loose_samples([grey, colour])
    grey[:] = 0
    assert isinstance(first, ArraySample)
    assert isinstance(second, ArraySample)
    assert (first.id, second.id) == ("000000", "000001")
    assert first.pixels.shape == second.pixels.shape == (4, 5, 3)
    assert (first.pixels == 7).all()
    assert len(list(loose_samples(colour))) == 1
    assert len(list(loose_samples(np.zeros((6, 4, 5), np.uint8)))) == 6  # grey ones


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([np.zeros((4, 4))], "image 0: ndarray of type float64, expected an"),
        ([np.zeros((4, 4, 2), np.uint8)], r"image 0: array of shape \(4, 4, 2\)"),
        ([np.zeros((0, 4), np.uint8)], r"image 0: array of shape \(0, 4\)"),
        (3, "images are a int, expected paths or arrays"),
    ],
)
def test_what_is_no_image_is_refused(images: object, words: str) -> None:
    with pytest.raises(HrbenchError, match=words):
        list(loose_samples(images))
