"""Whether a dataset is complete, and how large its images and defects are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hrbench.data.datasets import load_dataset, load_descriptor, present_categories
from hrbench.data.descriptor import Counts
from hrbench.data.sample import Category, Dataset, Sample
from hrbench.errors import HrbenchError
from hrbench.imaging import image_size, read_mask
from hrbench.imaging.components import find_components

__all__ = ["check_dataset", "dataset_stats", "dataset_summary"]

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def check_dataset(name: str | Path, root: Path | str, progress: Progress | None = None) -> list[str]:
    """Compare a tree with its descriptor and read the header of every file.

    Parameters
    ----------
    name : str or Path
        Descriptor, as for ``load_dataset``.
    root : Path or str
    progress : callable, optional
        Wraps the iterable of samples, e.g. ``tqdm``.

    Returns
    -------
    list of str
        One finding per line, empty if all is as expected: missing categories, pairing errors, counts that
        differ, images that the descriptor's `group` does not match, unreadable headers, masks of another size than
        their image. :func:`dataset_summary` has the figures.

    Raises
    ------
    HrbenchError
        If `name` is unknown or `root` is not such a dataset at all.
    """
    descriptor = load_descriptor(name)
    root = Path(root).expanduser()
    if not root.is_dir():
        load_dataset(name, root)  # raises, with the reason
    present = present_categories(root, descriptor)
    findings = [
        f"{category}: missing, expected the folder {root / category}"
        for category in descriptor.categories
        if category not in present
    ]
    categories: list[Category] = []
    for category in present:
        try:
            categories += load_dataset(name, root, [category]).categories
        except HrbenchError as error:
            findings.append(f"{category}: {error}")
    for read in categories:
        findings += [
            f"{read.name}: {what}: found {number} images, expected {expected}"
            for what, number, expected in _counts(read, descriptor.expected(read.name))
            if expected is not None and number != expected
        ]
    if not findings:
        totals = [sum(column) for column in zip(*(_numbers(read) for read in categories), strict=True)]
        findings += [
            f"total: {what}: found {number} images, expected {expected}"
            for what, number, expected in zip(_PARTS, totals, _expected(descriptor.total), strict=True)
            if expected is not None and number != expected
        ]
    for read in categories if descriptor.group else ():
        alone = [sample.id for sample in (*read.train, *read.test) if not sample.group]
        if alone:
            what = f"{len(alone)} images in which group = {descriptor.group!r} finds nothing"
            findings.append(f"{read.name}: {what}, such as {alone[0]}: each stands on its own")
    samples: Iterable[Sample] = [sample for read in categories for sample in (*read.train, *read.test)]
    for sample in progress(samples) if progress else samples:
        findings += _headers(sample)
    return findings


def dataset_summary(name: str | Path, root: Path | str) -> list[str]:
    """Return one line per category on disk with its counts and the expected ones.

    Raises
    ------
    HrbenchError
        If `name` is unknown or `root` is not such a dataset at all.
    """
    descriptor = load_descriptor(name)
    root = Path(root).expanduser()
    if not root.is_dir():
        load_dataset(name, root)  # raises, with the reason
    lines = []
    for present in present_categories(root, descriptor):
        try:
            (category,) = load_dataset(name, root, [present]).categories
        except HrbenchError:
            lines.append(f"{present}: cannot be read, see the findings")
            continue
        parts = [
            f"{what} {number} ({'no expected count' if expected is None else f'expected {expected}'})"
            for what, number, expected in _counts(category, descriptor.expected(category.name))
        ]
        lines.append(f"{category.name}: {', '.join(parts)}")
    return lines


def dataset_stats(dataset: Dataset, progress: Progress | None = None) -> pd.DataFrame:
    """Measure image sizes and defect components at native resolution.

    Parameters
    ----------
    dataset : Dataset
    progress : callable, optional
        Wraps the iterable of samples, e.g. ``tqdm``.

    Returns
    -------
    DataFrame
        One row per category: ``category, train, test_good, test_defective``; where images belong together ``groups``
        of test images, ``groups_good, groups_defective`` with at least one such image; ``height_min, height_max,
        width_min, width_max`` in px over all images; ``components`` (8-connected); ``area_min, area_q05,
        area_q25, area_median, area_q75, area_q95, area_max`` in px; ``slivers``, the components of 1 to 3 px,
        mostly slips of annotation; ``share_median``, the median component's share of its image;
        ``defect_share``, the share of defect pixels in defective images.

    Raises
    ------
    HrbenchError
        If a file cannot be read, a mask has another size than its image, or a mask has no defect pixel.
    """
    total = [(category.name, sample) for category in dataset.categories for sample in (*category.train, *category.test)]
    sizes: dict[str, list[tuple[int, int]]] = {category.name: [] for category in dataset.categories}
    areas: dict[str, list[int]] = {category.name: [] for category in dataset.categories}
    shares: dict[str, list[float]] = {category.name: [] for category in dataset.categories}
    pixels: dict[str, int] = {category.name: 0 for category in dataset.categories}
    for name, sample in progress(total) if progress else total:
        size = image_size(sample.image)
        sizes[name].append(size)
        if sample.mask is not None:
            found = _areas(sample.mask, size)
            areas[name] += found
            shares[name] += [area / (size[0] * size[1]) for area in found]
            pixels[name] += size[0] * size[1]
    rows = []
    for category in dataset.categories:
        height, width = np.array(sizes[category.name]).T
        area = np.array(areas[category.name])
        row: dict[str, object] = {"category": category.name}
        row |= dict(zip(("train", "test_good", "test_defective"), _numbers(category), strict=True))
        if any(sample.group for each in dataset.categories for sample in each.test):
            row |= _groups(category)
        row |= {"height_min": int(height.min()), "height_max": int(height.max())}
        row |= {"width_min": int(width.min()), "width_max": int(width.max())}
        row["components"] = area.size
        for key, q in _QUANTILES.items():
            row[f"area_{key}"] = float(np.quantile(area, q)) if area.size else float("nan")
        row["slivers"] = int((area <= 3).sum())
        row["share_median"] = float(np.median(shares[category.name])) if area.size else float("nan")
        row["defect_share"] = area.sum() / pixels[category.name] if area.size else 0.0
        rows.append(row)
    return pd.DataFrame(rows)


_PARTS = ("train", "test good", "test defective")


def _numbers(category: Category) -> tuple[int, int, int]:
    defective = sum(sample.label for sample in category.test)
    return len(category.train), len(category.test) - defective, defective


def _expected(counts: Counts) -> tuple[int | None, int | None, int | None]:
    return counts.train, counts.test_good, counts.test_defective


def _counts(category: Category, counts: Counts) -> list[tuple[str, int, int | None]]:
    return list(zip(_PARTS, _numbers(category), _expected(counts), strict=True))


def _groups(category: Category) -> dict[str, int]:
    """Return numbers of groups of test images; an image on its own is one."""
    of_label = [{sample.group or sample.id for sample in category.test if sample.label == label} for label in (0, 1)]
    good, defective = of_label
    return {"groups": len(good | defective), "groups_good": len(good), "groups_defective": len(defective)}


def _headers(sample: Sample) -> list[str]:
    findings: list[str] = []
    sizes: list[tuple[int, int]] = []
    for path in (sample.image, sample.mask):
        if path is None:
            continue
        try:
            sizes.append(image_size(path))
        except HrbenchError as error:
            findings.append(str(error))
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        (height, width), (wanted_height, wanted_width) = sizes[1], sizes[0]
        findings.append(
            f"{sample.mask}: mask is {height} x {width} (height x width), "
            f"expected {wanted_height} x {wanted_width} as its image"
        )
    return findings


def _areas(path: Path, size: tuple[int, int]) -> list[int]:
    """Return the areas of a mask's 8-connected components in px."""
    areas = find_components(read_mask(path, size)).areas
    if not areas.size:
        raise HrbenchError(f"{path}: mask with no defect pixel, expected at least one for a defective image")
    return [int(area) for area in areas]
