"""Images of no dataset: files, folders and arrays of which nothing is known but what they show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hrbench.data.sample import ArraySample, Sample
from hrbench.errors import HrbenchError
from hrbench.imaging import IMAGE_SUFFIXES

__all__ = ["Images", "find_loose", "loose_samples"]

Images = str | Path | npt.NDArray[Any] | Iterable[str | Path | npt.NDArray[Any]]
"""A folder, a file, an array, or any number of them, as from a generator."""

_EXPECTED = "expected an (H, W) or (H, W, 3) array of uint8 or uint16"


def loose_samples(images: Images) -> Iterator[Sample]:
    """Yield images one by one, as they are drawn; that of a folder are all below it, in order of their paths.

    The id of an image is its path below the folder that was given, the path itself, or the number of an array.

    Raises
    ------
    HrbenchError
        For a folder without an image, or what is no image; files are not opened.
    """
    several = not (isinstance(images, str | Path) or (isinstance(images, np.ndarray) and _single(images)))
    items: Iterable[Any] = images if several else [images]  # type: ignore[assignment]
    try:
        drawn = iter(items)
    except TypeError:
        raise HrbenchError(f"images are a {type(images).__name__}, expected paths or arrays, or a folder") from None
    for number, item in enumerate(drawn):
        if isinstance(item, str | Path):
            path = Path(item)
            below = _below(path) if path.is_dir() else [(path.as_posix(), path)]
            for name, file in below:
                yield _sample(name, file)
        else:
            yield _array_sample(item, number)


def find_loose(paths: Sequence[Path]) -> list[Sample]:
    """Return the images of files and folders by names under which results can be kept.

    The id of an image is its path below the folder that was given, or its file's name.

    Raises
    ------
    HrbenchError
        For what is not there, a folder without an image, and two images of the same name, whatever their endings.
    """
    found: dict[Path, Sample] = {}
    for path in paths:
        if not path.exists():
            raise HrbenchError(f"{path}: no such file or folder, expected images")
        for name, file in _below(path) if path.is_dir() else [(path.name, path)]:
            stem = Path(name).with_suffix("")
            if stem in found:
                raise HrbenchError(
                    f"{file}: its results would have the name of those of {found[stem].image}, expected one file per "
                    "stem; rename one, or give the folder above both"
                )
            found[stem] = _sample(name, file)
    return list(found.values())


def _below(folder: Path) -> list[tuple[str, Path]]:
    """Return the images below a folder, hidden ones left out, and their paths in it."""
    paths = ((path.relative_to(folder), path) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    found = sorted((name.as_posix(), path) for name, path in paths if not any(p.startswith(".") for p in name.parts))
    if not found:
        raise HrbenchError(f"{folder}: no image in this folder or below it, expected {', '.join(IMAGE_SUFFIXES)}")
    return found


def _sample(name: str, path: Path) -> Sample:
    return Sample(name, path, None, 0, "", "test", "")


def _single(array: npt.NDArray[Any]) -> bool:
    """Tell whether an array is one image and not several."""
    return array.ndim < 3 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))


def _array_sample(item: Any, number: int) -> Sample:
    name = f"{number:06d}"
    try:
        array = np.asarray(item)
    except (TypeError, ValueError) as error:
        raise HrbenchError(f"image {number}: not an array of numbers: {error}; {_EXPECTED}") from None
    if array.dtype not in (np.uint8, np.uint16):
        raise HrbenchError(f"image {number}: {type(item).__name__} of type {array.dtype}, {_EXPECTED}")
    if not (array.ndim in (2, 3) and _single(array)) or 0 in array.shape:
        raise HrbenchError(f"image {number}: array of shape {array.shape}, {_EXPECTED}")
    if array.ndim == 2:
        array = array[..., None]
    # A copy in any case: images are read ahead, and whoever hands them out may use his buffer again.
    pixels = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.array(array[..., :3], order="C")
    return ArraySample(
        id=name, image=Path(name), mask=None, label=0, defect_type="", split="test", category="", pixels=pixels
    )
