"""Datasets by name: their descriptors, and their images on disk."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from hrbench._util.files import relative_path
from hrbench._util.resources import protocols_root
from hrbench._util.toml import build, read_toml
from hrbench.data._index import subfolders
from hrbench.data.descriptor import Descriptor
from hrbench.data.layouts import LAYOUTS
from hrbench.data.sample import Category, Dataset
from hrbench.errors import HrbenchError, unknown_name

__all__ = ["list_datasets", "load_dataset", "load_descriptor", "present_categories"]


def list_datasets() -> list[str]:
    """Return the names of the built-in descriptors, sorted."""
    return sorted(_builtin())


def load_descriptor(name: str | Path) -> Descriptor:
    """Load a descriptor.

    Parameters
    ----------
    name : str or Path
        A built-in name, or the path of a ``.toml`` file.

    Raises
    ------
    HrbenchError
        For an unknown name, or a file that is not a valid descriptor.
    """
    if str(name).endswith(".toml"):
        path: Traversable = Path(name)
    else:
        names = _builtin()
        if str(name) not in names:
            raise unknown_name("dataset", str(name), names)
        path = names[str(name)]
    descriptor = build(Descriptor, read_toml(path), str(path))
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
        re.compile(descriptor.group)
    except re.error as error:
        raise HrbenchError(f"{path}: group is {descriptor.group!r}, not a regular expression: {error}") from None
    return descriptor


def load_dataset(name: str | Path, root: Path | str, categories: Sequence[str] | None = None) -> Dataset:
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

    Returns
    -------
    Dataset

    Raises
    ------
    HrbenchError
        If the name or a category is unknown, the root is not such a dataset, a defective image has no mask, a
        mask has no image, two files share a stem, or a category has no training or no test image.
    """
    descriptor = load_descriptor(name)
    root = Path(root).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise HrbenchError(f"{root}: {what}, expected the root of {descriptor.title}")
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
            places = " or ".join(str(root / category / probe) for probe in layout.probes)
            raise HrbenchError(
                f"{root}: category {category!r} of {descriptor.title} is not there, expected {places}; "
                f"found: {', '.join(present)}"
            )
    if descriptor.name == "folder":
        descriptor = dataclasses.replace(descriptor, name=str(relative_path(root.resolve().name or "_")))
    read = layout.read(root.absolute(), descriptor, names)  # a method may change the current folder
    return Dataset(descriptor.name, root, tuple(_grouped(category, descriptor) for category in read))


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


def _grouped(category: Category, descriptor: Descriptor) -> Category:
    """Return the category with the group of every sample."""
    if not descriptor.group:
        return category
    train, test = (
        tuple(dataclasses.replace(s, group=descriptor.group_of(category.name, s.id)) for s in part)
        for part in (category.train, category.test)
    )
    return dataclasses.replace(category, train=train, test=test)


def _builtin() -> dict[str, Traversable]:
    folder = protocols_root() / "datasets"
    if not folder.is_dir():
        return {}
    return {path.name.removesuffix(".toml"): path for path in folder.iterdir() if path.name.endswith(".toml")}


def _not_a_dataset(root: Path, descriptor: Descriptor) -> HrbenchError:
    layout = LAYOUTS[descriptor.layout]
    names = [path.name + ("/" if path.is_dir() else "") for path in sorted(root.iterdir())]
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"
    near = [path for path in subfolders(root) if layout.present(path, descriptor)] or _outer(root, descriptor)
    hint = f"; did you mean {near[0]}?" if near else ""
    expected = layout.expected(descriptor)
    return HrbenchError(f"{root}: not the root of {descriptor.title}; looked for {expected}; found {found}{hint}")


def _outer(root: Path, descriptor: Descriptor) -> list[Path]:
    """Return the dataset's root, in a list, where a folder lies inside one of its categories, or is one."""
    layout, root, inside = LAYOUTS[descriptor.layout], root.resolve(), False
    for folder in (root, *root.parents[:3]):
        inside = inside or layout.holds_category(folder)
        if inside and layout.present(folder, descriptor):
            return [folder]
    return []
