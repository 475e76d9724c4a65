"""Datasets by name: their descriptors, and their images on disk."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from hrbench._util.files import relative_path
from hrbench._util.resources import protocols_root
from hrbench._util.toml import build, read_toml
from hrbench.data._index import Report, subfolders
from hrbench.data.descriptor import Descriptor
from hrbench.data.layouts import LAYOUTS
from hrbench.data.sample import Category, Dataset, Sample
from hrbench.errors import HrbenchError, unknown_name
from hrbench.imaging import image_size, read_mask

__all__ = ["find_categories", "list_datasets", "load_dataset", "load_descriptor", "present_categories"]


_TREE = (
    "; good images belong into PART/train/good and PART/test/good, defective ones into PART/test/KIND, and their masks "
    "into PART/ground_truth/KIND"
)


def list_datasets() -> list[str]:
    """Return the names of the built-in descriptors, sorted."""
    return sorted(_builtin())


def load_descriptor(name: str | Path) -> Descriptor:
    """Load a descriptor.

    Parameters
    ----------
    name : str or Path
        A built-in name, or the path of a ``.toml`` file. Such a file may name a built-in one as its ``base``, and then
        holds only what differs.

    Raises
    ------
    HrbenchError
        For an unknown name, or a file that is not a valid descriptor.
    """
    path = Path(name) if str(name).endswith(".toml") else _builtin_path(str(name))
    descriptor = build(Descriptor, _whole(read_toml(path), path), str(path))
    if descriptor.layout not in LAYOUTS:
        expected = ", ".join(map(repr, LAYOUTS))
        raise HrbenchError(f"{path}: layout is {descriptor.layout!r}, expected one of {expected}")
    if not (LAYOUTS[descriptor.layout].any_category or descriptor.categories):
        raise HrbenchError(f"{path}: no [categories], expected at least one for layout {descriptor.layout!r}")
    try:
        for category in descriptor.categories:
            relative_path(category)
    except HrbenchError as error:
        raise HrbenchError(f"{path}: [categories]: {error}") from None
    try:
        for folder in filter(None, (descriptor.images, descriptor.splits)):
            relative_path(folder)
    except HrbenchError as error:
        raise HrbenchError(f"{path}: {error}") from None
    for key, pattern in (("group", descriptor.group), ("condition", descriptor.condition)):
        try:
            re.compile(pattern)
        except re.error as error:
            raise HrbenchError(f"{path}: {key} is {pattern!r}, not a regular expression: {error}") from None
    return descriptor


def load_dataset(
    name: str | Path, root: Path | str, categories: Sequence[str] | None = None, report: Report | None = None
) -> Dataset:
    """Index a dataset on disk.

    Parameters
    ----------
    name : str or Path
        A built-in descriptor (see ``list_datasets``) or the path of a ``.toml`` one. ``folder`` reads any
        MVTec-like tree and takes the dataset's name from the root folder.
    root : Path or str
        The folder that the descriptor's layout starts from.
    categories : sequence of str, optional
        Read only these. By default all that are there: a partial download is not an error.
    report : callable, optional
        Is told, in words, each thing that is wrong with single files, which are left out: a category may end up
        without training or test images. By default anything that is wrong is an error.

    Returns
    -------
    Dataset

    Raises
    ------
    HrbenchError
        If the name or a category is unknown, the root is not such a dataset, a defective image has no mask, a
        mask has no image, two files share a stem, or a category has no training or no test image.
    """
    root = Path(root).expanduser()
    descriptor, names = find_categories(name, root, categories)
    if descriptor.name == "folder":
        descriptor = dataclasses.replace(descriptor, name=str(relative_path(root.resolve().name or "_")))
    problems: list[str] = []
    here = root.absolute()  # a method may change the folder
    read = LAYOUTS[descriptor.layout].read(here, descriptor, names, report or problems.append)
    if problems:
        others = f"; and {len(problems) - 1} more, which `hrbench data check` lists" if problems[1:] else ""
        raise HrbenchError(f"{problems[0]}{others}")
    return Dataset(
        descriptor.name, root, tuple(_described(_usable(category, descriptor), descriptor) for category in read)
    )


def find_categories(
    name: str | Path, root: Path | str, categories: Sequence[str] | None = None
) -> tuple[Descriptor, list[str]]:
    """Find out what :func:`load_dataset` would read, without looking for images: the descriptor, and categories.

    Raises
    ------
    HrbenchError
        If the name or a category is unknown, or not there.
    """
    descriptor = load_descriptor(name)
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise HrbenchError(f"{root}: {what}, expected {_root_of(descriptor)}")
    layout = LAYOUTS[descriptor.layout]
    if categories is not None:
        if not categories:
            raise HrbenchError(f"no category of {descriptor.name} given, expected at least one (or None for all)")
        known = list(descriptor.categories) or present_categories(root, descriptor)
        for category in categories:
            if category not in known:
                raise unknown_name(f"category of {descriptor.name}", category, known)
    present = present_categories(root, descriptor)
    names = present if categories is None else list(dict.fromkeys(categories))
    for category in names:
        if category not in present:
            raise HrbenchError(
                f"{root}: category {category!r} of {descriptor.title} is not there, expected "
                f"{layout.places(root, descriptor, category)}; found: {', '.join(present)}"
            )
    return descriptor, names


def present_categories(root: Path, descriptor: Descriptor) -> list[str]:
    """Return the categories that are on disk, in the descriptor's order (by name for ``folder``).

    Raises
    ------
    HrbenchError
        If there is none: then `root` is not such a dataset.
    """
    present = LAYOUTS[descriptor.layout].present(root, descriptor)
    if not present:
        raise _not_a_dataset(root, descriptor)
    return present


def _described(category: Category, descriptor: Descriptor) -> Category:
    """Return the category with the group and the condition of every sample."""
    if not (descriptor.group or descriptor.condition):
        return category
    train, test = (
        tuple(
            dataclasses.replace(
                s, group=descriptor.group_of(category.name, s.id), condition=descriptor.condition_of(s.id)
            )
            for s in part
        )
        for part in (category.train, category.test)
    )
    return dataclasses.replace(category, train=train, test=test)


def _usable(category: Category, descriptor: Descriptor) -> Category:
    """Return the category without the images whose masks are of no use, if the descriptor leaves them out."""
    if descriptor.mask.unusable == "error":
        return category
    with ThreadPoolExecutor() as pool:
        flaws = list(pool.map(_flaw, category.test))
    judged = list(zip(category.test, flaws, strict=True))
    return dataclasses.replace(
        category,
        test=tuple(sample for sample, flaw in judged if not flaw),
        left_out=(
            *category.left_out,
            *(f"{sample.mask}: {flaw}: {sample.id} is left out" for sample, flaw in judged if flaw),
        ),
    )


def _flaw(sample: Sample) -> str:
    """Return why a sample's mask is of no use, nothing if it is."""
    if sample.mask is None:
        return ""
    try:
        masks, size = [read_mask(path) for path in sample.masks], image_size(sample.image)
    except HrbenchError:
        return ""  # a damaged file: whoever opens it next says so
    for height, width in (mask.shape for mask in masks):
        if (height, width) != size:
            return f"mask is {height} x {width} (height x width), its image {size[0]} x {size[1]}"
    return "" if any(mask.any() for mask in masks) else "mask with no defect pixel"


def _whole(table: dict[str, Any], path: Traversable) -> dict[str, Any]:
    """Return a descriptor's table with the keys that it leaves to its base."""
    if "base" not in table:
        return table
    base = table.pop("base")
    if not isinstance(base, str):
        raise HrbenchError(f"{path}: base is {base!r}, expected str")
    try:
        below = _builtin_path(base)
    except HrbenchError as error:
        raise HrbenchError(f"{path}: base: {error}") from None
    return _whole(read_toml(below), below) | table


def _builtin_path(name: str) -> Traversable:
    names = _builtin()
    if name not in names:
        raise unknown_name("dataset", name, names)
    return names[name]


def _builtin() -> dict[str, Traversable]:
    folder = protocols_root() / "datasets"
    if not folder.is_dir():
        return {}
    return {path.name.removesuffix(".toml"): path for path in folder.iterdir() if path.name.endswith(".toml")}


def _root_of(descriptor: Descriptor) -> str:
    """Return in words what a root is."""
    return "a dataset folder" if descriptor.name == "folder" else f"the root of {descriptor.title}"


def _not_a_dataset(root: Path, descriptor: Descriptor) -> HrbenchError:
    layout = LAYOUTS[descriptor.layout]
    names = [path.name + ("/" if path.is_dir() else "") for path in sorted(root.iterdir())]
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"
    near = [path for path in subfolders(root) if layout.present(path, descriptor)] or _outer(root, descriptor)
    hint = f"; did you mean {near[0]}?" if near else _TREE * (descriptor.name == "folder")
    expected = layout.expected(descriptor)
    return HrbenchError(f"{root}: not {_root_of(descriptor)}; looked for {expected}; found {found}{hint}")


def _outer(root: Path, descriptor: Descriptor) -> list[Path]:
    """Return the dataset's root, in a list, where a folder lies inside one of its categories, or is one."""
    layout, root, inside = LAYOUTS[descriptor.layout], root.resolve(), False
    for folder in (root, *root.parents[:3]):
        inside = inside or layout.holds_category(folder)
        if inside and layout.present(folder, descriptor):
            return [folder]
    return []
