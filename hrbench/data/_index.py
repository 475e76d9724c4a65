"""What every layout's reader is made of: listing images, pairing masks by name, checking a category."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from hrbench._util.files import relative_path
from hrbench.data.sample import Category, Sample
from hrbench.errors import HrbenchError
from hrbench.imaging import IMAGE_SUFFIXES, refuse_no_file

__all__ = [
    "Report",
    "inside",
    "list_images",
    "make_category",
    "pair_masks",
    "sample_id",
    "subfolders",
]

Report = Callable[[str], object]
"""Is told what is wrong with a dataset, one thing after another; a reader goes on without what it concerns."""


def make_category(
    dataset: str,
    name: str,
    train: Iterable[Sample],
    test: Iterable[Sample],
    trained: str,
    tested: Path,
    report: Report,
    unread: tuple[str, ...] = (),
) -> Category:
    """Sort and check the samples of a category; `trained` and `tested` say in errors where they come from."""
    parts = {"train": list(train), "test": list(test)}
    if not parts["train"]:
        report(f"{trained}: no training images for {name}, expected normal images there")
    if not parts["test"]:
        report(f"{tested}: no test images for {name}, expected some there")
    seen: dict[PurePosixPath, str] = {}  # by the path without the ending, which maps do not share
    kept: dict[str, list[Sample]] = {"train": [], "test": []}
    for part, samples in parts.items():
        for sample in sorted(samples, key=lambda sample: sample.id):
            try:
                place = relative_path(name, sample.id).with_suffix("")
            except HrbenchError as error:
                report(f"{trained}: {error}")
                continue
            if place in seen:
                what = "is listed twice" if seen[place] == sample.id else f"has the stem of {seen[place]}"
                report(f"{trained}: image {sample.id} {what}, expected one file per stem")
                continue
            seen[place] = sample.id
            kept[part].append(sample)
    return Category(dataset, name, tuple(kept["train"]), tuple(kept["test"]), unread=unread)


def list_images(folder: Path, report: Report) -> dict[str, Path]:
    """Return the images of a folder by stem, sorted; empty if there is no such folder."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        try:
            refuse_no_file(path)
        except HrbenchError as error:
            report(str(error))
            continue
        if path.stem in paths:
            report(f"{path}: same stem as {paths[path.stem].name}, expected one file per stem")
            continue
        paths[path.stem] = path
    return paths


def pair_masks(
    images: Mapping[str, Path], folder: Path, suffixes: tuple[str, ...], report: Report, *, lenient: bool = False
) -> dict[str, Path]:
    """Return the mask of each image that has one, a dict of paths by the image's stem; `lenient` if some may not."""
    masks = list_images(folder, report)
    paired: dict[str, Path] = {}
    claimed: set[Path] = set()
    for stem, image in images.items():
        candidates = [masks[stem + suffix] for suffix in suffixes if stem + suffix in masks]
        claimed.update(candidates)
        if not candidates and lenient:
            continue
        if not candidates:
            expected = " or ".join(f"{stem}{suffix}.png" for suffix in suffixes)
            report(f"{image}: defective image without a mask, expected {folder / expected}")
        elif len(candidates) > 1:
            report(f"{image}: two masks, {candidates[0]} and {candidates[1]}; expected one")
        else:
            paired[stem] = candidates[0]
    for orphan in sorted(set(masks.values()) - claimed):
        report(f"{orphan}: mask without image, expected an image of that stem")
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
    """Turn a path from a file into that of a file below `root`; it may not lead anywhere else."""
    try:
        path = root / relative_path(name)
    except HrbenchError as error:
        raise HrbenchError(f"{where}: {error}") from None
    if not path.is_file():
        raise HrbenchError(f"{path}: no such file, expected by {where}")
    return path
