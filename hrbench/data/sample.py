"""What every dataset reader produces: an index of samples, independent of the layout on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hrbench.data.defects_config import DEFECTS_CONFIG, DefectRule
from hrbench.errors import HrbenchError, unknown_name
from hrbench.imaging import Region, read_mask, read_region

__all__ = ["ArraySample", "Category", "Dataset", "Sample", "content_digest", "sample_mask", "sample_regions"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image and what is known about it.

    Attributes
    ----------
    id : str
        Path of the image relative to the dataset root, with forward slashes; unique in the dataset.
    image : Path
        The image file.
    mask : Path or None
        The defect mask; None for a normal image, and for a defective one whose mask is unknown.
    label : {0, 1}
        1 if the image shows a defect.
    defect_type : str
        Name of the defect class, ``good`` for a normal image.
    split : {'train', 'test'}
    category : str
    group : str
        Equal for images that belong together, see :class:`hrbench.data.descriptor.Descriptor`; empty for an image on
        its own. It says how sure results are, not what they are: digests, and so a run's identity, leave it out.
    condition : str
        Under which light, or from which side, the image was taken; empty where none is known. Digests leave it out,
        too.
    more_masks : tuple of Path
        Further masks, where the annotation has one per region: what any of them marks is a defect.
    rules : tuple of DefectRule
        What each value of such masks stands for, and how much of a region is enough; none where that is not known.
    """

    id: str
    image: Path
    mask: Path | None
    label: Literal[0, 1]
    defect_type: str
    split: Literal["train", "test"]
    category: str
    group: str = ""
    condition: str = ""
    more_masks: tuple[Path, ...] = ()
    rules: tuple[DefectRule, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All masks, none for a normal image."""
        return () if self.mask is None else (self.mask, *self.more_masks)

    @property
    def unmasked(self) -> bool:
        """Whether the image is defective, and where is not known."""
        return self.label == 1 and self.mask is None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ArraySample(Sample):
    """An image that is in memory and has no file.

    Attributes
    ----------
    pixels : ndarray of uint8 or uint16, (H, W, 3)
        As :func:`hrbench.imaging.read_image` gives it.
    """

    pixels: npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Category:
    """The samples of one category: normal training images, and the test images.

    Attributes
    ----------
    dataset, name : str
    train, test : tuple of Sample
        In order of their id. Training samples are all taken as normal.
    left_out : tuple of str
        Which images of the test, or what else, its reader has left out, and why.
    unread : tuple of str
        Patterns of the names of folders beside and below those of its images in which others may lie that are no part
        of it.
    private : tuple of Sample
        Test images whose labels the publisher keeps, folder by folder: no run reads them, digests leave them out.
    """

    dataset: str
    name: str
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    left_out: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    private: tuple[Sample, ...] = ()

    @property
    def groups(self) -> dict[str, str]:
        """The group of each test image by its id."""
        return {sample.id: sample.group for sample in self.test}

    @property
    def conditions(self) -> dict[str, str]:
        """The condition of each test image by its id."""
        return {sample.id: sample.condition for sample in self.test}

    @cached_property
    def names_digest(self) -> str:
        """SHA-256 over the index without the files' content: which samples there are, not what they show."""
        rows = ["\t".join(_row(sample)) for sample in (*self.train, *self.test)]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    @cached_property
    def train_digest(self) -> str:
        """The :func:`content_digest` of the training samples."""
        return content_digest(self.train)

    @cached_property
    def digest(self) -> str:
        """The :func:`content_digest` of all samples: two people with equal ones used the same images."""
        return content_digest((*self.train, *self.test))


def content_digest(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 over ids, labels, defect types, splits, rules and the content of all images and masks.

    Equal digests mean equal images, wherever they lie and however they are grouped. Reads every file once.
    """

    def row(sample: Sample) -> str:
        files = (sample.image, *sample.masks)
        return "\t".join([*_row(sample), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)])

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256("\n".join(pool.map(row, samples)).encode()).hexdigest()


def _row(sample: Sample) -> tuple[str, ...]:
    names = [path.name for path in sample.masks] or [""]
    # Without rules, digests are those of versions that knew none.
    rules = [json.dumps(sorted(map(dataclasses.astuple, sample.rules), key=str))] if sample.rules else []
    return sample.split, sample.id, str(sample.label), sample.defect_type, *names, *rules


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset on disk, read by the layout that its descriptor names.

    Attributes
    ----------
    name : str
    root : Path
    categories : tuple of Category
    """

    name: str
    root: Path
    categories: tuple[Category, ...]

    def select(self, names: Sequence[str] | None) -> tuple[Category, ...]:
        """Return the categories called `names`, all of them for None; an unknown name is an error."""
        if names is None:
            return self.categories
        by_name = {category.name: category for category in self.categories}
        for name in names:
            if name not in by_name:
                raise unknown_name(f"category of {self.name}", name, by_name)
        return tuple(by_name[name] for name in dict.fromkeys(names))


def sample_mask(sample: Sample, size: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    """Return the (H, W) bool mask of a defective sample, all that its masks mark; None for a normal or unmasked one.

    Raises
    ------
    HrbenchError
        If a mask is of another size, or all of them have no defect pixel.
    """
    if sample.mask is None:
        return None
    mask = read_mask(sample.mask, (size[0], size[1]))
    for path in sample.more_masks:
        mask |= read_mask(path, (size[0], size[1]))
    if not mask.any():
        raise HrbenchError(
            f"{sample.mask}: no defect pixel, but {sample.id} is labelled defective: expected at least one"
        )
    return mask


def sample_regions(sample: Sample, size: tuple[int, ...]) -> tuple[Region, ...] | None:
    """Return the regions of a defective sample, one for each of its masks; None where it has no rules.

    Raises
    ------
    HrbenchError
        If a mask is of another size, has no defect pixel, several values, or one that no rule is about.
    """
    if not sample.rules:
        return None
    rules = {rule.pixel_value: rule for rule in sample.rules}
    regions = []
    for path in sample.masks:
        mask, values = read_region(path, (size[0], size[1]))
        if values.size != 1:
            found = f"the values {', '.join(map(str, values))}" if values.size else "no defect pixel"
            raise HrbenchError(f"{path}: {found}, expected the pixels of one region, all of one value")
        rule = rules.get(int(values[0]))
        if rule is None:
            known = ", ".join(map(str, sorted(rules)))
            raise HrbenchError(f"{path}: pixels of value {values[0]}, expected one that {DEFECTS_CONFIG} has: {known}")
        regions.append(Region(mask, rule.saturation(int(mask.sum())), rule.defect_name))
    return tuple(regions)
