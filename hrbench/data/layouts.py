"""Published folder layouts: which categories are there, and their index of paths; images and masks pair by name.

No pixel is read, except where a layout says only by its masks which images are good (KolektorSDD).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from hrbench.data._index import Report, inside, list_images, make_category, pair_masks, sample_id, subfolders
from hrbench.data.defects_config import DEFECTS_CONFIG, read_defects_config
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

    def places(self, root: Path, descriptor: Descriptor, category: str) -> str:
        """Return in words where a category should lie."""
        del descriptor
        return " or ".join(str(root / category / probe) for probe in self.probes)

    @abstractmethod
    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str], report: Report) -> tuple[Category, ...]:
        """Index the categories called `names`, all of them present, of the dataset called ``descriptor.name``.

        What is wrong with single files goes to `report`, and reading goes on without them.
        """


@dataclass(frozen=True)
class Tree(Layout):
    """One MVTec-like tree per category.

    Attributes
    ----------
    train : tuple of str
        Folders of training images, below a category's.
    test, truth : str
        Folders of the folders of test images and of masks, below a category's.
    images, masks : str
        Folders of images and of masks below those of their kind, where they do not lie in these themselves.
    good : tuple of str
        Names that a folder of good images may have.
    mask_suffixes : tuple of str
        What a mask's stem may have more than its image's.
    unread : tuple of str
        As of :class:`hrbench.data.sample.Category`.
    private : tuple of str
        Folders of test images without labels, below a category's.
    unmasked_kinds : bool
        Whether a kind of defect without a folder of masks is one whose masks are unknown, whatever the descriptor says.
    """

    train: tuple[str, ...] = ("train",)
    test: str = "test"
    truth: str = "ground_truth"
    images: str = ""
    masks: str = ""
    good: tuple[str, ...] = ("good",)
    mask_suffixes: tuple[str, ...] = ("_mask",)
    unread: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    unmasked_kinds: bool = False

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str], report: Report) -> tuple[Category, ...]:
        """Index one tree per category."""
        return tuple(self.read_category(root, root / name, descriptor, name, report) for name in names)

    def read_category(self, root: Path, folder: Path, descriptor: Descriptor, name: str, report: Report) -> Category:
        """Index the tree in `folder`."""
        lenient = descriptor.mask.missing == "unknown"

        def sample(image: Path, masks: Sequence[Path] | None, kind: str, split: Split) -> Sample:
            mask, more = (masks[0], tuple(masks[1:])) if masks else (None, ())
            label: Literal[0, 1] = 0 if masks is None else 1
            return Sample(sample_id(root, image), image, mask, label, kind, split, name, more_masks=more)

        train = [
            sample(image, None, "good", "train")
            for part in self.train
            for good in self.good
            for image in list_images(folder / part / good / self.images, report).values()
        ]
        test: list[Sample] = []
        truth = folder / self.truth
        kinds = [path for path in subfolders(folder / self.test) if path != truth]
        for kind in kinds:
            images = list_images(kind / self.images, report)
            if kind.name in self.good:
                test += [sample(image, None, "good", "test") for image in images.values()]
            else:
                masks_of = truth / kind.name / self.masks
                masks: dict[str, Sequence[Path]] = dict.fromkeys(images, ())
                if masks_of.is_dir() or not (lenient or self.unmasked_kinds):
                    paired = self.pair(images, masks_of, report, lenient=lenient)
                    masks = masks | paired if lenient else paired
                test += [sample(images[stem], paths, kind.name, "test") for stem, paths in masks.items()]
        known = {*self.good, *(kind.name for kind in kinds)}
        for masks_of in subfolders(truth):
            if masks_of.name not in known:
                self.pair({}, masks_of, report)  # none of which has an image
        where = " and ".join(str(folder / part / self.good[0] / self.images) for part in self.train)
        read = make_category(descriptor.name, name, train, test, where, folder / self.test, report, self.unread)
        private = (
            Sample(sample_id(root, image), image, None, 0, "", "test", name)
            for part in self.private
            for image in list_images(folder / part, report).values()
        )
        return dataclasses.replace(read, private=tuple(private))

    def pair(
        self, images: Mapping[str, Path], folder: Path, report: Report, *, lenient: bool = False
    ) -> dict[str, Sequence[Path]]:
        """Return the masks, at least one, of each image that has any, by its stem; `lenient` if some may not."""
        paired = pair_masks(images, folder, self.mask_suffixes, report, lenient=lenient)
        return {stem: (mask,) for stem, mask in paired.items()}


class MaskPerRegion(Tree):
    """MVTec LOCO AD's trees, where the masks of an image lie in a folder with its stem, one for each region.

    How much of a region is enough stands in a category's ``defects_config.json``. Without that file, which is told in
    `left_out`, samples have no rules: what their masks mark is a defect, and that is all that is known.
    """

    def read_category(self, root: Path, folder: Path, descriptor: Descriptor, name: str, report: Report) -> Category:
        """Index the tree in `folder`."""
        category = super().read_category(root, folder, descriptor, name, report)
        if not (file := folder / DEFECTS_CONFIG).is_file():
            missing = f"{file}: no such file: how much of a region is enough is not known, and sPRO not measured"
            return replace(category, left_out=(*category.left_out, missing))
        try:
            rules = read_defects_config(file, report)
        except HrbenchError as error:
            report(str(error))
            return category
        test = (replace(sample, rules=rules) if sample.masks else sample for sample in category.test)
        return replace(category, test=tuple(test))

    def pair(
        self, images: Mapping[str, Path], folder: Path, report: Report, *, lenient: bool = False
    ) -> dict[str, Sequence[Path]]:
        """Return the masks, at least one, of each image that has any, by its stem; `lenient` if some may not."""
        paired: dict[str, Sequence[Path]] = {}
        for stem, image in images.items():
            masks = tuple(list_images(folder / stem, report).values())
            if masks:
                paired[stem] = masks
            elif not lenient:
                report(f"{image}: defective image without a mask, expected some in {folder / stem}")
        for masks_of in subfolders(folder):
            if masks_of.name not in images:
                report(f"{masks_of}: masks without image, expected an image of that stem")
        return paired


class AnyFolder(Tree):
    """Any MVTec-like trees: those that the descriptor lists; else the root's subfolders, or the root itself."""

    any_category = True

    def present(self, root: Path, descriptor: Descriptor) -> list[str]:
        """Return those that are listed and there; else the subfolders that are trees, or the root's name if it is."""
        if descriptor.categories:
            return super().present(root, descriptor)
        if self.holds_category(root):
            return [root.resolve().name]
        return [path.name for path in subfolders(root) if self.holds_category(path)]

    def expected(self, descriptor: Descriptor) -> str:
        """Return in words what the root must hold."""
        if descriptor.categories:
            return super().expected(descriptor)
        return " or ".join([self.probes[0], *(f"<category>/{probe}" for probe in self.probes)])

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str], report: Report) -> tuple[Category, ...]:
        """Index the trees."""
        if self.holds_category(root) and not descriptor.categories:
            return (self.read_category(root, root, descriptor, names[0], report),)
        return super().read(root, descriptor, names, report)


class Visa(Tree):
    """VisA by its split file where it is there, else re-organised as trees."""

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str], report: Report) -> tuple[Category, ...]:
        """Index the rows of the split file."""
        table = root / "split_csv/1cls.csv"
        if not table.is_file():
            return super().read(root, descriptor, names, report)
        samples: dict[str, dict[str, list[Sample]]] = {name: {"train": [], "test": []} for name in names}
        for where, row in _visa_rows(table, report):
            try:
                if row["object"] not in descriptor.categories:
                    raise unknown_name(f"object in {where}:", row["object"], descriptor.categories)
                if row["object"] not in samples:
                    continue
                kind = "good" if row["label"] == "normal" else "bad"
                split: Split = "train" if row["split"] == "train" else "test"
            except HrbenchError as error:
                report(str(error))
                continue
            lenient = descriptor.mask.missing == "unknown"
            sample = _listed(
                root, where, row["image"], row["mask"], kind, split, row["object"], report, lenient=lenient
            )
            if sample and (split == "test" or kind == "good"):
                samples[row["object"]][split].append(sample)
        return tuple(
            make_category(descriptor.name, name, of["train"], of["test"], f"{table}", table, report)
            for name, of in samples.items()
        )


def _visa_rows(table: Path, report: Report) -> Iterator[tuple[str, dict[str, str]]]:
    columns = ("object", "split", "label", "image", "mask")
    reader = csv.DictReader(_text(table, "comma-separated values").splitlines())
    if not set(columns) <= set(reader.fieldnames or ()):
        headings = ", ".join(reader.fieldnames or ()) or "nothing"
        raise HrbenchError(f"{table}: columns {headings}, expected {', '.join(columns)}")
    for row in reader:
        where = f"{table}, line {reader.line_num}"
        values = {column: (row[column] or "").strip() for column in columns}
        if values["split"] not in ("train", "test") or not values["label"] or not values["image"]:
            report(f"{where}: {','.join(values.values())}, expected {','.join(columns)}")
        else:
            yield where, values


class RealIAD(Layout):
    """Real-IAD by its split files, one of JSON per category.

    Whatever a split trains on is taken as normal: the splits of the noisy setting mix defective images in, and no
    label tells methods which.
    """

    def present(self, root: Path, descriptor: Descriptor) -> list[str]:
        """Return the categories with a split file and a folder of images."""
        return [
            name
            for name in descriptor.categories
            if (root / descriptor.images / name).is_dir() and self._split_file(root, descriptor, name).is_file()
        ]

    def expected(self, descriptor: Descriptor) -> str:
        """Return in words what the root must hold."""
        name = next(iter(descriptor.categories))
        return f"{descriptor.images}/<category> and {descriptor.splits}/<category>.json with a category such as {name}"

    def places(self, root: Path, descriptor: Descriptor, category: str) -> str:
        """Return in words where a category should lie."""
        return f"{root / descriptor.images / category} and {root / descriptor.splits / category}.json"

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str], report: Report) -> tuple[Category, ...]:
        """Index the rows of the split files."""
        return tuple(self._read_category(root, descriptor, name, report) for name in names)

    def _split_file(self, root: Path, descriptor: Descriptor, name: str) -> Path:
        """Return the path of a split file; archives unpack into a folder ``realiad_jsons`` of their own."""
        path = root / descriptor.splits / f"{name}.json"
        nested = root / "realiad_jsons" / descriptor.splits / f"{name}.json"
        return nested if nested.is_file() and not path.is_file() else path

    def _read_category(self, root: Path, descriptor: Descriptor, name: str, report: Report) -> Category:
        file = self._split_file(root, descriptor, name)
        meta, rows = _real_iad_rows(file)
        folder = f"{descriptor.images}/{meta['prefix']}" if descriptor.images else meta["prefix"]
        samples: dict[Split, list[Sample]] = {"train": [], "test": []}
        for split, number, row in rows:
            where = f"{file}, {split}[{number}]"
            try:
                image, kind, mask = _real_iad_row(row, where)
            except HrbenchError as error:
                report(str(error))
                continue
            kind = "good" if kind == meta["normal_class"] or split == "train" else kind
            mask = f"{folder}{mask}" if mask and split == "test" else ""
            lenient = descriptor.mask.missing == "unknown"
            if sample := _listed(root, where, f"{folder}{image}", mask, kind, split, name, report, lenient=lenient):
                samples[split].append(sample)
        return make_category(
            descriptor.name, name, samples["train"], samples["test"], f"{file}", file, report, unread=("*",)
        )


def _real_iad_rows(file: Path) -> tuple[dict[str, str], list[tuple[Split, int, Any]]]:
    """Return what holds for all rows of a split file, and the rows with their split and number."""
    text = _text(file, "JSON")
    try:
        content = json.loads(text)
        meta = {key: content["meta"][key] for key in ("prefix", "normal_class")}
        splits: tuple[Split, ...] = ("train", "test")
        rows = [(split, number, row) for split in splits for number, row in enumerate(content[split])]
        if not all(isinstance(value, str) for value in meta.values()):
            raise TypeError
    except (ValueError, TypeError, LookupError, RecursionError):
        raise HrbenchError(
            f"{file}: not a split file, expected JSON with the texts meta.prefix and meta.normal_class and the lists "
            "train and test"
        ) from None
    return meta, rows


def _real_iad_row(row: Any, where: str) -> tuple[str, str, str]:
    """Return image, class and mask of a row, the mask empty if it has none."""
    if isinstance(row, dict):
        image, kind, mask = (row.get(key) for key in ("image_path", "anomaly_class", "mask_path"))
        if isinstance(image, str) and isinstance(kind, str) and isinstance(mask, str | None):
            return image, kind, mask or ""
    raise HrbenchError(f"{where}: {row!r}, expected image_path, anomaly_class and mask_path (which may be null)")


def _text(file: Path, expected: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HrbenchError(f"{file}: not a text file ({error}), expected {expected}") from None


def _listed(
    root: Path,
    where: str,
    image: str,
    mask: str,
    kind: str,
    split: Split,
    category: str,
    report: Report,
    *,
    lenient: bool,
) -> Sample | None:
    """Return the sample of a row of a split file, of the kind ``good`` if it is normal; `lenient` if masks may lack.

    All that is wrong with the row goes to `report`, and nothing is returned.
    """
    problems: list[str] = []

    def found(name: str) -> Path | None:
        try:
            return inside(root, name, where) if name else None
        except HrbenchError as error:
            problems.append(str(error))
            return None

    image_path, mask_path = found(image), found(mask)
    if kind == "good" and mask:
        problems.append(f"{where}: normal image {image} with mask {mask}, expected none")
    if kind != "good" and not (mask or lenient):
        problems.append(f"{where}: defective image {image} has no mask")
    if not problems and mask and Path(mask).stem != Path(image).stem:
        problems.append(f"{where}: mask {mask} does not carry the stem of its image {image}")
    for problem in problems:
        report(problem)
    if problems or image_path is None:
        return None
    label: Literal[0, 1] = 0 if kind == "good" else 1
    return Sample(sample_id(root, image_path), image_path, mask_path, label, kind, split, category)


@dataclass(frozen=True)
class Kolektor(Layout):
    """KolektorSDD2, where only an image's mask, beside it, tells whether it is good.

    Attributes
    ----------
    mask_type : str
        Ending of the masks' names.
    """

    probes: tuple[str, ...] = ("train", "test")
    mask_type: str = ".png"

    def folders(self, root: Path, split: Split) -> list[Path]:
        """Return the folders of a split's images."""
        return [root / split] if (root / split).is_dir() else []

    def present(self, root: Path, descriptor: Descriptor) -> list[str]:
        """Return the one category if both splits are there."""
        return list(descriptor.categories) if self.folders(root, "train") and self.folders(root, "test") else []

    def expected(self, descriptor: Descriptor) -> str:
        """Return in words what the root must hold."""
        return f"{' and '.join(self.probes)} ({descriptor.title})"

    def read(self, root: Path, descriptor: Descriptor, names: Sequence[str], report: Report) -> tuple[Category, ...]:
        """Index both splits; defective training images are left out."""
        (name,) = names
        samples: dict[Split, list[Sample]] = {"train": [], "test": []}
        for split, found in samples.items():
            for folder in self.folders(root, split):
                for image, mask in self._pairs(folder, descriptor.mask.suffix, report):
                    try:
                        defective = bool(read_mask(mask).any())
                    except HrbenchError as error:
                        report(str(error))
                        continue
                    if not defective:
                        found.append(Sample(sample_id(root, image), image, None, 0, "good", split, name))
                    elif split == "test":
                        found.append(Sample(sample_id(root, image), image, mask, 1, "defect", split, name))
        trained, tested = (root / probe for probe in self.probes)
        return (make_category(descriptor.name, name, samples["train"], samples["test"], str(trained), tested, report),)

    def _pairs(self, folder: Path, suffix: str, report: Report) -> Iterator[tuple[Path, Path]]:
        files = list_images(folder, report)
        masks = {stem.removesuffix(suffix): path for stem, path in files.items() if stem.endswith(suffix)}
        images = {stem: path for stem, path in files.items() if not stem.endswith(suffix)}
        for stem, image in images.items():
            if stem in masks:
                yield image, masks[stem]
            else:
                report(f"{image}: image without mask, expected {folder / (stem + suffix)}{self.mask_type}")
        for stem, mask in masks.items():
            if stem not in images:
                report(f"{mask}: mask without image, expected an image {stem} beside it")


@dataclass(frozen=True)
class Commutators(Kolektor):
    """KolektorSDD, a folder of images per commutator.

    Attributes
    ----------
    trained : int
        The number of the last commutator whose good images are for training.
    """

    probes: tuple[str, ...] = ("kos01", "kos36")
    mask_type: str = ".bmp"
    trained: int = 35

    def folders(self, root: Path, split: Split) -> list[Path]:
        """Return the folders of the split's commutators."""
        numbered = [(re.fullmatch(r"kos(\d+)", folder.name), folder) for folder in subfolders(root)]
        return [folder for name, folder in numbered if name and (int(name[1]) <= self.trained) == (split == "train")]


LAYOUTS: Mapping[str, Layout] = {
    "mvtec": Tree(),
    "mvtec_ad_2": Tree(
        train=("train", "validation"),
        test="test_public",
        truth="test_public/ground_truth",
        private=("test_private", "test_private_mixed"),
    ),
    "mvtec_3d_ad": Tree(
        probes=("train/good/rgb",),
        train=("train", "validation"),
        truth="test",
        images="rgb",
        masks="gt",
        mask_suffixes=("",),
        unread=("xyz", "gt"),
    ),
    "mvtec_loco_ad": MaskPerRegion(train=("train", "validation")),
    "visa": Visa(probes=("Data/Images", "train/good"), mask_suffixes=("", "_mask")),
    "btad": Tree(probes=("train/ok",), good=("ok",), mask_suffixes=("",)),
    "kolektorsdd": Commutators(),
    "kolektorsdd2": Kolektor(),
    "real_iad": RealIAD(probes=("OK", "NG")),
    "folder": AnyFolder(
        probes=("train/good", "train/ok"), good=("good", "ok"), mask_suffixes=("_mask", ""), unmasked_kinds=True
    ),
}
"""What a descriptor may name as its layout."""
