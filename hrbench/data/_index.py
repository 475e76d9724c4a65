"""What every layout's reader is made of: listing images, pairing masks by name, checking a category."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from hrbench._util.files import relative_path
from hrbench.data.sample import Category, Sample
from hrbench.errors import HrbenchError
from hrbench.imaging import IMAGE_SUFFIXES, refuse_no_file

__all__ = ["inside", "list_images", "make_category", "pair_masks", "sample_id", "subfolders"]


def make_category(
    dataset: str, name: str, train: Iterable[Sample], test: Iterable[Sample], trained: str, tested: Path
) -> Category:
    """Sort and check the samples of a category; `trained` and `tested` say in errors where they come from."""
    train, test = (tuple(sorted(part, key=lambda sample: sample.id)) for part in (train, test))
    if not train:
        raise HrbenchError(f"{trained}: no training images for {name}, expected normal images there")
    if not test:
        raise HrbenchError(f"{tested}: no test images for {name}, expected some there")
    seen: dict[PurePosixPath, str] = {}  # by the path without the ending, which maps do not share
    for sample in (*train, *test):
        try:
            place = relative_path(name, sample.id).with_suffix("")
        except HrbenchError as error:
            raise HrbenchError(f"{trained}: {error}") from None
        if place in seen:
            what = "is listed twice" if seen[place] == sample.id else f"has the stem of {seen[place]}"
            raise HrbenchError(f"{trained}: image {sample.id} {what}, expected one file per stem")
        seen[place] = sample.id
    return Category(dataset, name, train, test)


def list_images(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by stem, sorted; empty if there is no such folder."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        refuse_no_file(path)
        if path.stem in paths:
            raise HrbenchError(f"{path}: same stem as {paths[path.stem].name}, expected one file per stem")
        paths[path.stem] = path
    return paths


def pair_masks(images: dict[str, Path], folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the mask of each image, a dict of paths by the image's stem."""
    masks = list_images(folder)
    paired: dict[str, Path] = {}
    for stem, image in images.items():
        candidates = [masks[stem + suffix] for suffix in suffixes if stem + suffix in masks]
        if not candidates:
            expected = " or ".join(f"{stem}{suffix}.png" for suffix in suffixes)
            raise HrbenchError(f"{image}: defective image without a mask, expected {folder / expected}")
        if len(candidates) > 1:
            raise HrbenchError(f"{image}: two masks, {candidates[0]} and {candidates[1]}; expected one")
        paired[stem] = candidates[0]
    orphans = sorted(set(masks.values()) - set(paired.values()))
    if orphans:
        raise HrbenchError(f"{orphans[0]}: mask without image, expected an image of that stem")
    return paired


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def sample_id(root: Path, path: Path) -> str:
    """Return the id of an image: its path below the root, with forward slashes."""
    return path.relative_to(root).as_posix()


def inside(root: Path, name: str, where: str) -> Path:
    """Turn a path from a file into one below `root`; the file may not lead anywhere else."""
    try:
        path = root / relative_path(name)
    except HrbenchError as error:
        raise HrbenchError(f"{where}: {error}") from None
    if not path.is_file():
        raise HrbenchError(f"{path}: no such file, expected by {where}")
    return path
