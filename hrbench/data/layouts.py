"""Published folder layouts: which categories are there, and their index of paths; images and masks pair by name.

No pixel is read, except where a layout says only by its masks which images are good (KolektorSDD2).
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hrbench.data._index import inside, list_images, make_category, pair_masks, sample_id, subfolders
from hrbench.data.descriptor import Descriptor
from hrbench.data.sample import Category, Sample
from hrbench.errors import HrbenchError, unknown_name
from hrbench.imaging import read_mask

__all__ = ["LAYOUTS", "Layout"]

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Layout(ABC):
    """How a dataset lies on disk.

    Attributes
    ----------
    probes : tuple of str
        Folders below a category's, any of which shows that it is there.
    any_category : bool
        Whether every folder of the right form is a category. If not, descriptors list the categories that there are.
    """

    any_category: ClassVar[bool] = False
    probes: tuple[str, ...] = ("train/good",)

    def present(self, root: Path, descriptor: Descriptor) -> list[str]:
        """Return the categories that are on disk, in the descriptor's order."""
        return [name for name in descriptor.categories if self.holds_category(root / name)]

    def holds_category(self, folder: Path) -> bool:
        """Tell whether a folder is that of a category."""
        return any((folder / probe).is_dir() for probe in self.probes)

    def expected(self, descriptor: Descriptor) -> str:
        """Return in words what the root must hold."""
        places = " or ".join(f"<category>/{probe}" for probe in self.probes)
        return f"{places} with a category such as {next(iter(descriptor.categories))}"

    @abstractmethod
    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str]) -> tuple[Category, ...]:
        """Index the categories called `names`, all of them present, of the dataset called ``descriptor.name``."""


@dataclass(frozen=True)
class Tree(Layout):
    """One MVTec-like tree per category.

    Attributes
    ----------
    train : tuple of str
        Folders of training images, below a category's.
    test, truth : str
        Folders of the folders of test images and of masks, below a category's.
    good : tuple of str
        Names that a folder of good images may have.
    mask_suffixes : tuple of str
        What a mask's stem may have more than its image's.
    """

    train: tuple[str, ...] = ("train",)
    test: str = "test"
    truth: str = "ground_truth"
    good: tuple[str, ...] = ("good",)
    mask_suffixes: tuple[str, ...] = ("_mask",)

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str]) -> tuple[Category, ...]:
        """Index one tree per category."""
        return tuple(self.read_category(root, root / name, descriptor.name, name) for name in names)

    def read_category(self, root: Path, folder: Path, dataset: str, name: str) -> Category:
        """Index the tree in `folder`."""

        def sample(image: Path, mask: Path | None, kind: str, split: Split) -> Sample:
            return Sample(sample_id(root, image), image, mask, 0 if mask is None else 1, kind, split, name)

        train = [
            sample(image, None, "good", "train")
            for part in self.train
            for good in self.good
            for image in list_images(folder / part / good).values()
        ]
        test: list[Sample] = []
        truth = folder / self.truth
        kinds = [path for path in subfolders(folder / self.test) if path != truth]
        for kind in kinds:
            images = list_images(kind)
            if kind.name in self.good:
                test += [sample(image, None, "good", "test") for image in images.values()]
            else:
                masks = pair_masks(images, truth / kind.name, self.mask_suffixes)
                test += [sample(image, masks[stem], kind.name, "test") for stem, image in images.items()]
        for masks_of in subfolders(truth):
            orphans = [] if masks_of.name in self.good else list(list_images(masks_of).values())
            if orphans and masks_of.name not in {kind.name for kind in kinds}:
                expected = folder / self.test / masks_of.name
                raise HrbenchError(f"{orphans[0]}: mask without image, expected its image in {expected}")
        where = " and ".join(str(folder / part / self.good[0]) for part in self.train)
        return make_category(dataset, name, train, test, where, folder / self.test)


class AnyFolder(Tree):
    """Any MVTec-like trees: the root's subfolders that are such, or the root itself."""

    any_category = True

    def present(self, root: Path, descriptor: Descriptor) -> list[str]:
        """Return the subfolders that are trees, by name; or the root's name if it is one itself."""
        del descriptor
        if self.holds_category(root):
            return [root.resolve().name]
        return [path.name for path in subfolders(root) if self.holds_category(path)]

    def expected(self, descriptor: Descriptor) -> str:
        """Return in words what the root must hold."""
        del descriptor
        return " or ".join([self.probes[0], *(f"<category>/{probe}" for probe in self.probes)])

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str]) -> tuple[Category, ...]:
        """Index the trees."""
        if self.holds_category(root):
            return (self.read_category(root, root, descriptor.name, names[0]),)
        return super().read(root, descriptor, names)


class Visa(Tree):
    """VisA by its split file where it is there, else re-organised as trees."""

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str]) -> tuple[Category, ...]:
        """Index the rows of the split file."""
        table = root / "split_csv/1cls.csv"
        if not table.is_file():
            return super().read(root, descriptor, names)
        train: dict[str, list[Sample]] = {name: [] for name in names}
        test: dict[str, list[Sample]] = {name: [] for name in names}
        for where, row in _visa_rows(table):
            if row["object"] not in descriptor.categories:
                raise unknown_name(f"object in {where}:", row["object"], descriptor.categories)
            if row["object"] not in train:
                continue
            normal = row["label"] == "normal"
            image = inside(root, row["image"], where)
            mask = inside(root, row["mask"], where) if row["mask"] else None
            if normal and mask is not None:
                raise HrbenchError(f"{where}: normal image {row['image']} with mask {row['mask']}, expected none")
            if not normal and mask is None:
                raise HrbenchError(f"{where}: defective image {row['image']} has no mask")
            if mask is not None and mask.stem != image.stem:
                raise HrbenchError(f"{where}: mask {row['mask']} does not carry the stem of its image {row['image']}")
            kind = "good" if normal else "bad"
            split: Split = "train" if row["split"] == "train" else "test"
            sample = Sample(sample_id(root, image), image, mask, 0 if normal else 1, kind, split, row["object"])
            if split == "test" or normal:
                (train if split == "train" else test)[row["object"]].append(sample)
        return tuple(make_category(descriptor.name, name, train[name], test[name], f"{table}", table) for name in names)


def _visa_rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    columns = ("object", "split", "label", "image", "mask")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HrbenchError(f"{table}: not a text file ({error}), expected comma-separated values") from None
    reader = csv.DictReader(text.splitlines())
    if not set(columns) <= set(reader.fieldnames or ()):
        headings = ", ".join(reader.fieldnames or ()) or "nothing"
        raise HrbenchError(f"{table}: columns {headings}, expected {', '.join(columns)}")
    for row in reader:
        where = f"{table}, line {reader.line_num}"
        values = {column: (row[column] or "").strip() for column in columns}
        if values["split"] not in ("train", "test") or not values["label"] or not values["image"]:
            raise HrbenchError(f"{where}: {','.join(values.values())}, expected {','.join(columns)}")
        yield where, values


class KolektorSDD2(Layout):
    """KolektorSDD2, where only an image's mask tells whether it is good."""

    def present(self, root: Path, descriptor: Descriptor) -> list[str]:
        """Return the one category if both splits are there."""
        return list(descriptor.categories) if all((root / probe).is_dir() for probe in self.probes) else []

    def expected(self, descriptor: Descriptor) -> str:
        """Return in words what the root must hold."""
        return f"{' and '.join(self.probes)} ({descriptor.title})"

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str]) -> tuple[Category, ...]:
        """Index both splits; defective training images are left out."""
        (name,) = names
        suffix = descriptor.mask.suffix
        samples: dict[str, list[Sample]] = {"train": [], "test": []}
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            files = list_images(root / split)
            masks = {stem.removesuffix(suffix): path for stem, path in files.items() if stem.endswith(suffix)}
            images = {stem: path for stem, path in files.items() if not stem.endswith(suffix)}
            for stem, image in images.items():
                if stem not in masks:
                    raise HrbenchError(f"{image}: image without mask, expected {root / split / (stem + suffix)}.png")
                defective = bool(read_mask(masks[stem]).any())
                if defective and split == "train":
                    continue
                mask, kind = (masks[stem], "defect") if defective else (None, "good")
                samples[split].append(
                    Sample(sample_id(root, image), image, mask, 1 if defective else 0, kind, split, name)
                )
            for stem in masks.keys() - images.keys():
                raise HrbenchError(f"{masks[stem]}: mask without image, expected an image {stem} beside it")
        train, test = samples["train"], samples["test"]
        return (make_category(descriptor.name, name, train, test, str(root / "train"), root / "test"),)


LAYOUTS: Mapping[str, Layout] = {
    "mvtec": Tree(),
    "mvtec_ad_2": Tree(train=("train", "validation"), test="test_public", truth="test_public/ground_truth"),
    "visa": Visa(probes=("Data/Images", "train/good"), mask_suffixes=("", "_mask")),
    "btad": Tree(probes=("train/ok",), good=("ok",), mask_suffixes=("",)),
    "kolektorsdd2": KolektorSDD2(probes=("train", "test")),
    "folder": AnyFolder(probes=("train/good", "train/ok"), good=("good", "ok"), mask_suffixes=("_mask", "")),
}
"""What a descriptor may name as its layout."""
