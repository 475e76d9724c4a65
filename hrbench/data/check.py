"""Whether a dataset is complete and its files are sound, and how large its images and defects are."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from hrbench._util.neighbours import NEAR, TIMES, larger_neighbours
from hrbench.data.datasets import load_dataset, load_descriptor, present_categories
from hrbench.data.descriptor import Counts, Descriptor
from hrbench.data.layouts import LAYOUTS
from hrbench.data.procedural import missing_files
from hrbench.data.sample import Category, Dataset, Sample, sample_mask, sample_regions
from hrbench.errors import HrbenchError
from hrbench.imaging import IMAGE_SUFFIXES, check_image, image_size, read_image, read_mask
from hrbench.imaging.components import find_components

__all__ = ["Finding", "check_dataset", "check_files", "dataset_stats", "dataset_summary"]

Progress = Callable[[Iterable[Any]], Iterable[Any]]

_GOOD = ("good", "ok")  # folders of masks that nobody reads, because all is normal there
_THREADS = 4
_LARGE = 50_000_000  # pixels
_ONE_LARGE = threading.Lock()
_QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is not as it should be in a dataset.

    Attributes
    ----------
    severity : {"error", "warning"}
        An error makes a job fail, or its numbers wrong. Of what a warning says, jobs make the best.
    text : str
        The file or category, what was found and what was expected.
    """

    severity: Literal["error", "warning"]
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


def check_dataset(
    name: str | Path, root: Path | str, categories: Sequence[str] | None = None, progress: Progress | None = None
) -> list[Finding]:
    """Compare a tree with its descriptor and read every file.

    Parameters
    ----------
    name : str or Path
        Descriptor, as for ``load_dataset``.
    root : Path or str
    categories : sequence of str, optional
        Check only these.
    progress : callable, optional
        Wraps the iterable of samples, e.g. ``tqdm``.

    Returns
    -------
    list of Finding
        Empty if all is as expected: missing categories, all that keeps a reader from indexing files (such as defective
        images without a mask, if that is a mistake there), counts that differ in categories without it, images that the
        descriptor's `group` or `condition` does not match, components beside far larger ones, and what
        :func:`check_files` finds, with every image decoded, those of private test sets too. :func:`dataset_summary` has
        the figures.

    Raises
    ------
    HrbenchError
        If `name` or a category is unknown or `root` is not such a dataset at all.
    """
    descriptor, root, present = _opened(name, root, categories)
    layout = LAYOUTS[descriptor.layout]
    findings = [
        Finding("warning", f"{category}: missing, expected {layout.places(root, descriptor, category)}")
        for category in (descriptor.categories if categories is None else ())
        if category not in present
    ]
    read: list[Category] = []
    sound: list[Category] = []
    told: set[str] = set()  # a split file may be of several categories
    for category in present:
        problems: list[str] = []
        loaded: tuple[Category, ...] = ()
        try:
            loaded = load_dataset(name, root, [category], problems.append).categories
        except HrbenchError as error:
            problems.append(str(error))
        findings += [Finding("error", f"{category}: {problem}") for problem in problems if problem not in told]
        told.update(problems)
        read += loaded
        if not problems:
            sound += loaded
    findings += _count_findings(sound, descriptor, whole=categories is None and not findings)
    for each in read:
        findings += _pattern_findings(each, descriptor)
        findings += _differing((each.name, *row) for row in _private_counts(each, descriptor.expected(each.name)))
    findings += _unfinished(root, categories)
    return findings + _file_findings(read, progress, decode=True, told=told)


def check_files(
    dataset: Dataset,
    descriptor: Descriptor | None = None,
    progress: Progress | None = None,
    *,
    held_out: bool = True,
) -> list[Finding]:
    """Look for what would make a job on a dataset fail, or its numbers wrong: quickly, no image is decoded.

    Parameters
    ----------
    dataset : Dataset
    descriptor : Descriptor, optional
        With the counts that are expected.
    progress : callable, optional
        Wraps the iterable of samples, e.g. ``tqdm``.
    held_out : bool
        Whether jobs hold out normal training images, one at least.

    Returns
    -------
    list of Finding
        Errors: a file that is unreadable, truncated or of a type without a fixed white (floats, stacks); a mask that is
        of another size than its image, lossy or empty; one of a region whose value has no rule; a test image with a
        defect that is a training image as well; too few images to fit on; a procedural dataset that is made only in
        part.
        Warnings: other test images that are training images as well; no good test image; defective images that are
        left out for their masks; none, or some without a mask; no rules for regions where the layout has some; images
        in folders that the dataset's layout ignores; counts that differ.
    """
    findings = _count_findings(dataset.categories, descriptor, whole=False) if descriptor else []
    findings += _unfinished(dataset.root, [category.name for category in dataset.categories])
    return findings + _file_findings(dataset.categories, progress, decode=False, held_out=held_out)


def dataset_summary(name: str | Path, root: Path | str, categories: Sequence[str] | None = None) -> list[str]:
    """Return one line per category on disk, of those that are asked for, with its counts and the expected ones.

    Raises
    ------
    HrbenchError
        If `name` or a category is unknown or `root` is not such a dataset at all.
    """
    descriptor, root, names = _opened(name, root, categories)
    lines = []
    for present in names:
        try:
            (category,) = load_dataset(name, root, [present]).categories
        except HrbenchError:
            lines.append(f"{present}: cannot be read, see the findings")
            continue
        parts = [
            f"{what} {number} ({'no expected count' if expected is None else f'expected {expected}'})"
            for counts in (_counts, _private_counts)
            for what, number, expected in counts(category, descriptor.expected(category.name))
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
        of test images, ``groups_good, groups_defective`` with at least one such image; where they are known
        ``conditions`` of test images; where it is known how much of a region is enough ``regions``, and
        ``regions_saturated``, those of which less than all is; where there are any the ``private`` images, whose labels
        the publisher keeps and which count in nothing else; ``height_min, height_max, width_min, width_max`` in px over
        all others; ``components`` (8-connected); ``area_min, area_q05, area_q25, area_median, area_q75, area_q95,
        area_max`` in px; ``slivers``, the components of 1 to 3 px, mostly slips of annotation; ``splinters``, those at
        most a tenth as large as another one whose box is within 10 px of theirs; ``share_median``, the median
        component's share of its image; ``defect_share``, the share of defect pixels in defective images.
        Defective images without a mask count in none of these; where there are only such, figures of components are
        missing.

    Raises
    ------
    HrbenchError
        If a file cannot be read, a mask has another size than its image, or a mask has no defect pixel.
    """
    total = [(category.name, sample) for category in dataset.categories for sample in (*category.train, *category.test)]
    sizes: dict[str, list[tuple[int, int]]] = {category.name: [] for category in dataset.categories}
    areas: dict[str, list[int]] = {category.name: [] for category in dataset.categories}
    shares: dict[str, list[float]] = {category.name: [] for category in dataset.categories}
    splinters: dict[str, int] = {category.name: 0 for category in dataset.categories}
    pixels: dict[str, int] = {category.name: 0 for category in dataset.categories}
    regions: dict[str, list[bool]] = {category.name: [] for category in dataset.categories}  # is less than all enough?
    for name, sample in progress(total) if progress else total:
        size = image_size(sample.image)
        sizes[name].append(size)
        if sample.masks:
            found, beside = _areas(sample, size)
            areas[name] += found
            splinters[name] += sum(larger > 0 for larger in beside)
            shares[name] += [area / (size[0] * size[1]) for area in found]
            pixels[name] += size[0] * size[1]
            regions[name] += [r.saturation < int(r.mask.sum()) for r in sample_regions(sample, size) or ()]
    rows = []
    for category in dataset.categories:
        height, width = np.array(sizes[category.name]).T
        area = np.array(areas[category.name])
        row: dict[str, object] = {"category": category.name}
        row |= dict(zip(("train", "test_good", "test_defective"), _numbers(category), strict=True))
        if any(sample.group for each in dataset.categories for sample in each.test):
            row |= _groups(category)
        if any(sample.condition for each in dataset.categories for sample in each.test):
            row["conditions"] = len({sample.condition for sample in category.test} - {""})
        if any(regions.values()):
            row |= {"regions": len(regions[category.name]), "regions_saturated": sum(regions[category.name])}
        if any(each.private for each in dataset.categories):
            row["private"] = len(category.private)
        row |= {"height_min": int(height.min()), "height_max": int(height.max())}
        row |= {"width_min": int(width.min()), "width_max": int(width.max())}
        masked = any(sample.masks for sample in category.test) or not any(sample.label for sample in category.test)
        row["components"] = area.size if masked else float("nan")
        for key, q in _QUANTILES.items():
            row[f"area_{key}"] = float(np.quantile(area, q)) if area.size else float("nan")
        row["slivers"] = int((area <= 3).sum()) if masked else float("nan")
        row["splinters"] = splinters[category.name] if masked else float("nan")
        row["share_median"] = float(np.median(shares[category.name])) if area.size else float("nan")
        row["defect_share"] = area.sum() / pixels[category.name] if area.size else 0.0 if masked else float("nan")
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


def _private_counts(category: Category, counts: Counts) -> list[tuple[str, int, int | None]]:
    folders = Counter(sample.image.parent.name for sample in category.private)
    return [(folder, number, counts.private) for folder, number in folders.items()]


def _groups(category: Category) -> dict[str, int]:
    """Return numbers of groups of test images; an image on its own is one."""
    of_label = [{sample.group or sample.id for sample in category.test if sample.label == label} for label in (0, 1)]
    good, defective = of_label
    return {"groups": len(good | defective), "groups_good": len(good), "groups_defective": len(defective)}


def _opened(
    name: str | Path, root: Path | str, categories: Sequence[str] | None
) -> tuple[Descriptor, Path, Sequence[str]]:
    """Return the descriptor, the root, and the categories to look at."""
    descriptor, root = load_descriptor(name), Path(root).expanduser()
    present = present_categories(root, descriptor) if root.is_dir() else []
    if not set(categories or present) <= set(present) or not present:
        load_dataset(name, root, categories)  # raises, with the reason
    return descriptor, root, [category for category in present if categories is None or category in categories]


def _count_findings(categories: Sequence[Category], descriptor: Descriptor, *, whole: bool) -> list[Finding]:
    """Compare counts; those of the whole dataset only if those of its categories are as expected."""
    rows = [(read.name, *row) for read in categories for row in _counts(read, descriptor.expected(read.name))]
    if whole and all(expected in (None, number) for _, _, number, expected in rows):
        totals = [sum(column) for column in zip(*(_numbers(read) for read in categories), strict=True)]
        rows = [("total", *row) for row in zip(_PARTS, totals, _expected(descriptor.total), strict=True)]
    return _differing(rows)


def _differing(rows: Iterable[tuple[str, str, int, int | None]]) -> list[Finding]:
    return [
        Finding("warning", f"{name}: {what}: found {number} images, expected {expected}")
        for name, what, number, expected in rows
        if expected not in (None, number)
    ]


def _pattern_findings(category: Category, descriptor: Descriptor) -> Iterator[Finding]:
    """Find images that a descriptor's patterns do not match."""
    samples = (*category.train, *category.test)
    for key, pattern, names, outcome in (
        ("group", descriptor.group, [sample.group for sample in samples], "each stands on its own"),
        ("condition", descriptor.condition, [sample.condition for sample in samples], "theirs is not known"),
    ):
        without = [sample.id for sample, name in zip(samples, names, strict=True) if not name]
        if pattern and without:
            what = f"{len(without)} images in which {key} = {pattern!r} finds nothing"
            yield Finding("warning", f"{category.name}: {what}, such as {without[0]}: {outcome}")


def _splinter_findings(samples: Sequence[Sample], pool: ThreadPoolExecutor) -> Iterator[Finding]:
    """Find components that what a map shows of a far larger one beside them may reach."""
    masked = [sample for sample in samples if sample.masks]
    total: Counter[str] = Counter()
    found: dict[str, list[tuple[int, int, str]]] = {}
    for sample, (areas, beside) in zip(masked, pool.map(_measured, masked), strict=True):
        total[sample.category] += len(areas)
        pairs = [(area, larger, sample.id) for area, larger in zip(areas, beside, strict=True) if larger]
        found.setdefault(sample.category, []).extend(pairs)
    for category, splinters in found.items():
        if splinters:
            area, larger, name = min(splinters)
            yield Finding(
                "warning",
                f"{category}: {len(splinters)} of {total[category]} components are at most 1/{TIMES} of another one "
                f"whose box is within {NEAR} px, such as {area:,} px beside {larger:,} px in {name}: a map of the "
                "larger one may reach them, so that a hit of theirs says little; expected masks without such splinters",
            )


def _measured(sample: Sample) -> tuple[list[int], list[int]]:
    return _areas(sample, image_size(sample.image))


def _unfinished(root: Path, categories: Sequence[str] | None) -> list[Finding]:
    """Find that a procedural dataset, of which `root` may also be one category, is not made to its end."""
    inner = root.resolve()
    if missing := missing_files(root, categories) or missing_files(inner.parent, [inner.name]):
        others = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        remedy = "expected all that `hrbench data make` makes: run it again with the same arguments, it goes on"
        return [Finding("error", f"{missing[0]}{others}: missing, {remedy}")]
    return []


def _file_findings(
    categories: Sequence[Category],
    progress: Progress | None,
    *,
    decode: bool,
    held_out: bool = True,
    told: Collection[str] = (),
) -> list[Finding]:
    """Check categories, and all their files side by side; `told` are problems that were found before."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        samples = [sample for category in categories for sample in (*category.train, *category.test)]
        private = [sample for category in categories for sample in category.private if decode]
        jobs = [pool.submit(_sample_findings, sample, decode) for sample in (*samples, *private)]
        of_files = [job.result() for job in (progress(jobs) if progress else jobs)]
        sound = [sample for sample, found in zip(samples, of_files[: len(samples)], strict=True) if not found]
        findings = [finding for category in categories for finding in _category_findings(category, held_out, told)]
        findings += (finding for found in of_files for finding in found)
        return [*findings, *(_splinter_findings(sound, pool) if decode else ()), *_copies(sound, pool)]
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for all files


def _category_findings(category: Category, held_out: bool, told: Collection[str]) -> Iterator[Finding]:
    name, (train, good, defective) = category.name, _numbers(category)
    for text in category.left_out:
        yield Finding("warning", text)
    if train == 1 and held_out:  # without any it is told already
        yield Finding("error", f"{name}: {train} training image, expected at least 2: one is held out")
    if category.test and not defective:
        yield Finding("warning", f"{name}: no defective test image, expected some: only false alarms can be measured")
    if unmasked := [sample for sample in category.test if sample.unmasked]:
        what = f"{len(unmasked)} of {defective} defective test images have no mask, such as {unmasked[0].id}"
        yield Finding("warning", f"{name}: {what}: what is found in them is measured per image only")
    if category.test and not good:
        yield Finding("warning", f"{name}: no good test image, expected some: false alarms per image are not known")
    for folder, number in _ignored(category):
        if any(f"{folder}{end}" in text for text in told for end in (os.sep, ":")):
            continue  # what is wrong there has kept it from being read
        yield Finding("warning", f"{folder}: {number} images in a folder that is not read, expected none there")


def _ignored(category: Category) -> Iterator[tuple[Path, int]]:
    """Yield folders with images that are not read, beside and below those that are, and how many images each has."""
    samples = (*category.train, *category.test)
    images = {sample.image.parent for sample in samples}
    masks = {mask.parent for sample in samples for mask in sample.masks}
    truths = {folder.parent for folder in masks}
    for top in sorted({folder.parent for folder in images} | truths):
        for place, folders, files in os.walk(top):
            folder = Path(place)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".")
                and folder / name not in truths
                and not any(fnmatchcase(name, pattern) for pattern in category.unread)
            )
            if folder in images | masks or (folder.parent in truths and folder.name in _GOOD):
                continue
            number = sum(not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES for name in files)
            if number:
                yield folder, number


def _sample_findings(sample: Sample, decode: bool) -> list[Finding]:
    """Check the files of a sample; an unreadable image does not hide what is wrong with its mask."""
    findings: list[Finding] = []
    size: tuple[int, int] | None = None
    try:
        size = check_image(sample.image)
        if decode:
            with _turn(size):
                read_image(sample.image)
    except HrbenchError as error:
        findings.append(Finding("error", str(error)))
    if sample.mask is not None:
        try:
            size = size or image_size(sample.mask)
            with _turn(size):
                findings += [Finding("error", problem) for problem in _mask_problems(sample, size)]
        except HrbenchError as error:
            findings.append(Finding("error", str(error)))
    return findings


def _mask_problems(sample: Sample, size: tuple[int, int]) -> list[str]:
    """Return what is wrong with each of a sample's masks, or else with all of them together."""
    try:
        sample_mask(sample, size)
        sample_regions(sample, size)
    except HrbenchError as error:
        problems = []
        for path in sample.masks if sample.more_masks else ():
            try:
                read_mask(path, size)
                sample_regions(dataclasses.replace(sample, mask=path, more_masks=()), size)
            except HrbenchError as of_one:
                problems.append(str(of_one))
        return problems or [str(error)]
    return []


def _turn(size: tuple[int, int]) -> Any:
    """Let images that take much memory be decoded one after another."""
    return _ONE_LARGE if size[0] * size[1] > _LARGE else nullcontext()


def _copies(samples: Sequence[Sample], pool: ThreadPoolExecutor) -> Iterator[Finding]:
    """Find test images with the content of a training image of their category, reading as little as that takes."""
    keys: tuple[Callable[[Path], object], ...] = (_length, _middle, _digest)
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.category, []).append(sample)
    for key in keys:
        samples = [s for group in groups.values() if len({s.split for s in group}) == 2 for s in group]
        found = pool.map(key, [sample.image for sample in samples])
        groups = {}
        for sample, value in zip(samples, found, strict=True):
            groups.setdefault((sample.category, value), []).append(sample)
    for group in groups.values():
        trained = [sample for sample in group if sample.split == "train"]
        for sample in group if trained else ():
            if sample.split == "test":
                what = f"{sample.image}: is the training image {trained[0].image} once more"
                if sample.label:
                    yield Finding("error", f"{what}, though labelled defective: expected normal training images")
                else:
                    yield Finding("warning", f"{what}: expected test images that nothing was learnt from")


def _length(path: Path) -> int:
    return path.stat().st_size


def _middle(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return hash(file.read(4096))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _areas(sample: Sample, size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Return the areas of the 8-connected components of what a sample's masks mark, in px.

    And, for each, that of a far larger one beside it; 0 without any.
    """
    mask = sample_mask(sample, size)
    if mask is None:
        return [], []
    found = find_components(mask)
    beside = larger_neighbours([0] * found.areas.size, found.boxes, found.areas)
    return found.areas.tolist(), np.where(beside < 0, 0, found.areas[beside]).tolist()
