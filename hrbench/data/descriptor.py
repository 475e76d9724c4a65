"""Dataset descriptors: what a dataset is, how it lies on disk and how many images it should have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from hrbench._util.resources import protocols_root
from hrbench._util.toml import build, read_toml
from hrbench.errors import HrbenchError, unknown_name

__all__ = ["Counts", "Descriptor", "MaskCoding", "list_datasets", "load_descriptor"]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Expected numbers of images; None where no certain figure is published.

    Attributes
    ----------
    train, test_good, test_defective : int or None
    """

    train: int | None = None
    test_good: int | None = None
    test_defective: int | None = None


@dataclasses.dataclass(frozen=True)
class MaskCoding:
    """How masks are named and coded.

    Attributes
    ----------
    suffix : str
        What a mask's stem has more than its image's, e.g. ``_mask``.
    values : str
        The coding in words. Readers take every non-zero value as defect.
    """

    suffix: str = ""
    values: str = "0 = normal, anything else = defect"


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """A dataset as its publisher describes it.

    Attributes
    ----------
    name, title : str
    layout : str
        Name of the reader, see :mod:`hrbench.data.layouts`.
    licence, citation, url : str
        Terms, whom to cite, and where to get it. Nothing is ever downloaded.
    notes : str
        Quirks, and what the reader does about them.
    mask : MaskCoding
    total : Counts
        Over all categories.
    categories : mapping of str to Counts
        Empty if any folder may be a category.
    """

    name: str
    title: str
    layout: Literal["mvtec", "mvtec_ad_2", "visa", "btad", "kolektorsdd2", "folder"]
    licence: str
    citation: str
    url: str
    notes: str = ""
    mask: MaskCoding = MaskCoding()
    total: Counts = Counts()
    categories: dict[str, Counts] = dataclasses.field(default_factory=dict)

    def expected(self, category: str) -> Counts:
        """Return the expected counts of a category, all None if there are none."""
        known: Mapping[str, Counts] = self.categories
        return known.get(category, Counts())


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
        known = _builtin()
        if str(name) not in known:
            raise unknown_name("dataset", str(name), known)
        path = known[str(name)]
    descriptor = build(Descriptor, read_toml(path), str(path))
    if descriptor.layout != "folder" and not descriptor.categories:
        raise HrbenchError(f"{path}: no [categories], expected at least one for layout {descriptor.layout!r}")
    return descriptor


def _builtin() -> dict[str, Traversable]:
    folder = protocols_root() / "datasets"
    if not folder.is_dir():
        return {}
    return {path.name.removesuffix(".toml"): path for path in folder.iterdir() if path.name.endswith(".toml")}
