"""Readers of published folder layouts. They build an index of paths; images and masks pair by name.

No pixel is read, except where a layout says only by its masks which images are good (KolektorSDD2).
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from hrbench._util.files import safe_name
from hrbench.data._index import inside, list_images, make_category, pair_masks, sample_id, subfolders
from hrbench.data.descriptor import Descriptor, load_descriptor
from hrbench.data.sample import Category, Dataset, Sample
from hrbench.errors import HrbenchError, unknown_name
from hrbench.imaging import read_mask

__all__ = ["LAYOUTS", "load_dataset", "present_categories"]

Reader = Callable[[Path, Descriptor, "Sequence[str] | None"], tuple[Category, ...]]
Split = Literal["train", "test"]


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
    read = LAYOUTS[descriptor.layout]
    if categories is not None:
        if not categories:
            raise HrbenchError(f"no category of {descriptor.name} given, expected at least one (or None for all)")
        known = list(descriptor.categories) or present_categories(root, descriptor)
        for category in categories:
            if category not in known:
                raise unknown_name(f"category of {descriptor.name}", category, known)
        categories = list(dict.fromkeys(categories))
    return Dataset(_name(descriptor, root), root, read(root, descriptor, categories))


def present_categories(root: Path, descriptor: Descriptor) -> list[str]:
    """Return the categories that are on disk, in the descriptor's order (by name for ``folder``).

    Raises
    ------
    HrbenchError
        If there is none: then `root` is not such a dataset.
    """
    present = _present(root, descriptor)
    if not present:
        raise _not_a_dataset(root, descriptor)
    return present


def _present(root: Path, descriptor: Descriptor) -> list[str]:
    probe = _PROBES[descriptor.layout]
    if descriptor.layout == "kolektorsdd2":
        return list(descriptor.categories) if (root / "train").is_dir() and (root / "test").is_dir() else []
    if descriptor.layout == "folder":
        if any((root / "train" / good).is_dir() for good in _FOLDER.good):
            return [root.resolve().name]
        return [path.name for path in subfolders(root) if any((path / p).is_dir() for p in probe)]
    return [name for name in descriptor.categories if any((root / name / p).is_dir() for p in probe)]


@dataclasses.dataclass(frozen=True)
class _Tree:
    """An MVTec-like arrangement: folders below a category's, names of good folders, stems of masks."""

    train: tuple[str, ...] = ("train",)
    test: str = "test"
    truth: str = "ground_truth"
    good: tuple[str, ...] = ("good",)
    mask_suffixes: tuple[str, ...] = ("_mask",)


_FOLDER = _Tree(good=("good", "ok"), mask_suffixes=("_mask", ""))
_TREES = {
    "mvtec": _Tree(),
    "mvtec_ad_2": _Tree(train=("train", "validation"), test="test_public", truth="test_public/ground_truth"),
    "btad": _Tree(good=("ok",), mask_suffixes=("",)),
    "visa": _Tree(mask_suffixes=("", "_mask")),
    "folder": _FOLDER,
}
_VISA_CSV = "split_csv/1cls.csv"
_PROBES: dict[str, tuple[str, ...]] = {
    "mvtec": ("train/good",),
    "mvtec_ad_2": ("train/good",),
    "btad": ("train/ok",),
    "visa": ("Data/Images", "train/good"),
    "kolektorsdd2": ("train",),
    "folder": ("train/good", "train/ok"),
}


def _read_trees(root: Path, descriptor: Descriptor, wanted: Sequence[str] | None) -> tuple[Category, ...]:
    """Read the layouts that have one MVTec-like tree per category."""
    present = present_categories(root, descriptor)
    tree, dataset = _TREES[descriptor.layout], _name(descriptor, root)
    single = descriptor.layout == "folder" and any((root / "train" / good).is_dir() for good in tree.good)
    found = []
    for name in _chosen(wanted, present, root, descriptor):
        found.append(_read_tree(root, root if single else root / name, dataset, name, tree))
    return tuple(found)


def _read_tree(root: Path, folder: Path, dataset: str, name: str, tree: _Tree) -> Category:
    def sample(image: Path, mask: Path | None, kind: str, split: Split) -> Sample:
        return Sample(sample_id(root, image), image, mask, 0 if mask is None else 1, kind, split, name)

    train = [
        sample(image, None, "good", "train")
        for part in tree.train
        for good in tree.good
        for image in list_images(folder / part / good).values()
    ]
    test: list[Sample] = []
    truth = folder / tree.truth
    kinds = [path for path in subfolders(folder / tree.test) if path != truth]
    for kind in kinds:
        images = list_images(kind)
        if kind.name in tree.good:
            test += [sample(image, None, "good", "test") for image in images.values()]
        else:
            masks = pair_masks(images, truth / kind.name, tree.mask_suffixes)
            test += [sample(image, masks[stem], kind.name, "test") for stem, image in images.items()]
    for masks_of in subfolders(truth):
        orphans = [] if masks_of.name in tree.good else list(list_images(masks_of).values())
        if orphans and masks_of.name not in {kind.name for kind in kinds}:
            expected = folder / tree.test / masks_of.name
            raise HrbenchError(f"{orphans[0]}: mask without image, expected its image in {expected}")
    where = " and ".join(str(folder / part / tree.good[0]) for part in tree.train)
    return make_category(dataset, name, train, test, where, folder / tree.test)


def _read_visa(root: Path, descriptor: Descriptor, wanted: Sequence[str] | None) -> tuple[Category, ...]:
    """Read VisA by its split file where it is there, else as re-organised folders."""
    table = root / _VISA_CSV
    if not table.is_file():
        return _read_trees(root, descriptor, wanted)
    present = present_categories(root, descriptor)
    names = _chosen(wanted, present, root, descriptor)
    train: dict[str, list[Sample]] = {name: [] for name in names}
    test: dict[str, list[Sample]] = {name: [] for name in names}
    dataset = _name(descriptor, root)
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
    return tuple(make_category(dataset, name, train[name], test[name], f"{table}", table) for name in names)


def _visa_rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    columns = ("object", "split", "label", "image", "mask")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise HrbenchError(f"{table}: not a text file ({error}), expected comma-separated values") from None
    reader = csv.DictReader(text.splitlines())
    if not set(columns) <= set(reader.fieldnames or ()):
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise HrbenchError(f"{table}: columns {found}, expected {', '.join(columns)}")
    for row in reader:
        where = f"{table}, line {reader.line_num}"
        values = {column: (row[column] or "").strip() for column in columns}
        if values["split"] not in ("train", "test") or not values["label"] or not values["image"]:
            raise HrbenchError(f"{where}: {','.join(values.values())}, expected {','.join(columns)}")
        yield where, values


def _read_kolektorsdd2(root: Path, descriptor: Descriptor, wanted: Sequence[str] | None) -> tuple[Category, ...]:
    """Read KolektorSDD2, where only an image's mask tells whether it is good."""
    (name,) = _chosen(wanted, present_categories(root, descriptor), root, descriptor)
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
            samples[split].append(Sample(sample_id(root, image), image, mask, 1 if defective else 0, kind, split, name))
        for stem in masks.keys() - images.keys():
            raise HrbenchError(f"{masks[stem]}: mask without image, expected an image {stem} beside it")
    return (
        make_category(
            _name(descriptor, root),
            name,
            samples["train"],
            samples["test"],
            str(root / "train"),
            root / "test",
        ),
    )


LAYOUTS: dict[str, Reader] = {
    "mvtec": _read_trees,
    "mvtec_ad_2": _read_trees,
    "visa": _read_visa,
    "btad": _read_trees,
    "kolektorsdd2": _read_kolektorsdd2,
    "folder": _read_trees,
}
"""Reader of each layout: (root, descriptor, wanted categories or None) -> categories."""


def _name(descriptor: Descriptor, root: Path) -> str:
    return safe_name(root.resolve().name) if descriptor.name == "folder" else descriptor.name


def _chosen(wanted: Sequence[str] | None, present: list[str], root: Path, descriptor: Descriptor) -> list[str]:
    if wanted is None:
        return present
    for name in wanted:
        if name not in present:
            places = " or ".join(str(root / name / probe) for probe in _PROBES[descriptor.layout])
            raise HrbenchError(
                f"{root}: category {name!r} of {descriptor.title} is not there, expected {places}; "
                f"found: {', '.join(present)}"
            )
    return list(wanted)


def _not_a_dataset(root: Path, descriptor: Descriptor) -> HrbenchError:
    looked = " or ".join(
        f"train and test ({descriptor.title})" if descriptor.layout == "kolektorsdd2" else f"<category>/{probe}"
        for probe in _PROBES[descriptor.layout]
    )
    if descriptor.layout == "folder":
        looked = f"train/good or {looked}"
    elif descriptor.categories and descriptor.layout != "kolektorsdd2":
        looked += f" with a category such as {next(iter(descriptor.categories))}"
    names = [path.name + ("/" if path.is_dir() else "") for path in sorted(root.iterdir())]
    found = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "an empty folder"
    inner = [path for path in subfolders(root) if _present(path, descriptor)]
    hint = f"; did you mean {inner[0]}?" if inner else ""
    return HrbenchError(f"{root}: not the root of {descriptor.title}; looked for {looked}; found {found}{hint}")
