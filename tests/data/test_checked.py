"""Every descriptor's reader on a counterfeit tree, sound and with faults, and the table that says so."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hrbench.data import Dataset, check_dataset, list_datasets, load_dataset, load_descriptor
from hrbench.data.descriptor import Descriptor
from hrbench.data.sample import Sample, sample_regions
from hrbench.imaging import read_mask

from .conftest import write_image, write_mask

PAGE = Path(__file__).parents[2] / "protocols" / "README.md"
HEADING = "## Which reader was checked against what"

Row = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Tree:
    """The counterfeit tree of a fixture: where its files lie, what it has, and what is planted in it.

    Attributes
    ----------
    descriptor : str
    train, good, bad, mask : str
        Files of each sort below the root; ``{}`` stands for a stem.
    quirks : mapping
        What the tree has, in words, and whether it was read so.
    every : str
        Ending of the masks' stems, where each image has one beside it, and that of a good image is empty.
    value : int
        Of defect pixels.
    rows : callable, optional
        Adds rows (split, image, mask) to the file that lists images.
    never : tuple of str
        Of the common faults, those that are none here, or cannot be.
    more : mapping
        Faults of this layout alone: what plants them, and what is found.
    """

    descriptor: str
    train: str
    good: str
    bad: str
    mask: str
    quirks: Mapping[str, Callable[[Dataset], bool]]
    every: str = ""
    value: int = 255
    rows: Callable[[Path, Sequence[Row]], object] | None = None
    never: tuple[str, ...] = ()
    more: Mapping[str, tuple[Callable[[Path], object], tuple[str, ...]]] = dataclasses.field(default_factory=dict)


# Faults that are planted in every tree, each under a stem of its own, and what is found.
FAULTS = {
    "image without mask": r"900.*(without a? ?mask|no such file)",
    "mask without image": r"901.*(masks? without image|no such file)",
    "empty mask": r"902.*no defect pixel",
    "mask of another size": r"903.*mask is 5 x 5 .*12 x 16",
    "damaged mask": r"904.*(damaged|not a readable)",
    "damaged image": r"905.*(damaged|not a readable)",
    "two files of one stem": r"906.*(same stem as|has the stem of)",
    "training image in the test": r"907.*is the training image .*908",
}


def plant(root: Path, tree: Tree) -> list[str]:
    """Plant all faults at once; return a pattern for each finding that is expected."""
    rows: list[Row] = []

    def image(pattern: str, stem: str, split: str, mask: bool = False) -> Path:
        name = pattern.format(stem)
        rows.append((split, name, tree.mask.format(stem) if mask else ""))
        if tree.every and not mask:
            suffix = Path(tree.mask).suffix
            write_mask((root / name).with_name(f"{Path(name).stem}{tree.every}{suffix}"), value=0)
        return write_image(root / name)

    def masked(stem: str, **options: Any) -> Path:
        image(tree.bad, stem, "test", mask=True)
        return write_mask(root / tree.mask.format(stem), **{"value": tree.value, **options})

    masked("900").unlink()
    masked("901")
    (root / tree.bad.format("901")).unlink()
    if "empty mask" not in tree.never:
        masked("902", value=0)
    masked("903", size=(5, 5))
    cut(masked("904"))
    cut(image(tree.train, "905", "train"))
    image(tree.train, "906", "train")
    image(str(Path(tree.train).with_suffix(".tif")), "906", "train")
    shutil.copy(image(tree.train, "908", "train"), image(tree.good, "907", "test"))
    if tree.rows:
        tree.rows(root, rows)
    expected = [pattern for fault, pattern in FAULTS.items() if fault not in tree.never]
    for spoil, patterns in tree.more.values():
        spoil(root)
        expected += patterns
    return expected


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def samples(dataset: Dataset) -> list[Sample]:
    return [sample for category in dataset.categories for sample in (*category.train, *category.test)]


def defective(dataset: Dataset) -> list[Sample]:
    return [sample for sample in samples(dataset) if sample.label]


def folders(dataset: Dataset) -> set[str]:
    """Return the second parts of all ids: of which split an image is on disk."""
    return {sample.id.split("/")[1] for sample in samples(dataset)}


def grouped(dataset: Dataset) -> bool:
    """Tell whether all images have a group and a condition, and test images share groups under two conditions."""
    tested = [sample for category in dataset.categories for sample in category.test]
    conditions: dict[str, set[str]] = {}
    for sample in tested:
        conditions.setdefault(sample.group, set()).add(sample.condition)
    return all(sample.group and sample.condition for sample in samples(dataset)) and all(
        len(names) == 2 for names in conditions.values()
    )


def suffixes(dataset: Dataset) -> set[tuple[str, str]]:
    """Return the endings of images and of their masks."""
    return {(sample.image.suffix, mask.suffix) for sample in defective(dataset) for mask in sample.masks}


def values(dataset: Dataset) -> set[int]:
    """Return the values of all masks' first pixels, which are defects."""
    found = (np.asarray(Image.open(mask))[0, 0] for sample in defective(dataset) for mask in sample.masks)
    return {int(np.ravel(value)[0]) for value in found}


def visa_rows(root: Path, rows: Sequence[Row]) -> None:
    with (root / "split_csv/1cls.csv").open("a", newline="") as file:
        csv.writer(file).writerows(
            ["candle", split, "anomaly" if mask else "normal", image, mask] for split, image, mask in rows
        )


def real_iad_rows(root: Path, rows: Sequence[Row]) -> None:
    path = root / "realiad_jsons/usb.json"
    content = json.loads(path.read_text())
    for split, image, mask in rows:
        image_path, mask_path = (name.partition("/usb/")[2] or None for name in (image, mask))
        row = {"anomaly_class": "HS" if mask else "OK", "image_path": image_path, "mask_path": mask_path}
        content[split].append(row)
    path.write_text(json.dumps(content))


def two_bad_regions(folder: Path) -> None:
    write_image(folder / "test/structural_anomalies/909.png")
    truth = folder / "ground_truth/structural_anomalies/909"
    write_mask(truth / "000.png", value=40)
    write_mask(truth / "001.png", value=236, size=(5, 5))
    write_mask(truth / "002.png", value=255)


def like_mvtec(descriptor: str, category: str, kind: str, suffix: str, image: str = ".png", **more: Any) -> Tree:
    """Return a tree like that of MVTec AD."""
    return Tree(
        descriptor,
        f"{category}/train/good/{{}}{image}",
        f"{category}/test/good/{{}}{image}",
        f"{category}/test/{kind}/{{}}{image}",
        f"{category}/ground_truth/{kind}/{{}}{suffix}.png",
        **more,
    )


def real_iad(descriptor: str, images: str) -> Tree:
    return Tree(
        descriptor,
        f"{images}/usb/OK/S0001/usb_{{}}_OK_C1_2023.jpg",
        f"{images}/usb/OK/S0003/usb_{{}}_OK_C1_2023.jpg",
        f"{images}/usb/NG/HS/S0004/usb_{{}}_NG_HS_C1_2023.jpg",
        f"{images}/usb/NG/HS/S0004/usb_{{}}_NG_HS_C1_2023.png",
        {
            f"split file over `{images}`": lambda d: {s.id.split("/")[0] for s in samples(d)} == {images},
            "views as conditions, samples as groups": grouped,
            "view without a defect in a defective sample": lambda d: any(
                "/NG/" in s.id and not s.label for s in samples(d)
            ),
            ".jpg images, .png masks beside them": lambda d: suffixes(d) == {(".jpg", ".png")},
        },
        rows=real_iad_rows,
        more={
            "row of another form": (lambda root: spoilt_row(root), (r"usb\.json, test\[\d+\]: 7, expected image_path",))
        },
    )


def spoilt_row(root: Path) -> None:
    path = root / "realiad_jsons/usb.json"
    content = json.loads(path.read_text())
    content["test"].append(7)
    path.write_text(json.dumps(content))


STEM_IS_THAT_OF_ITS_IMAGE = {
    "mask with its image's stem": lambda d: all(s.mask.stem == s.image.stem for s in defective(d) if s.mask)
}
MASK_SUFFIX = {"`_mask`": lambda d: all(s.mask.stem == f"{s.image.stem}_mask" for s in defective(d) if s.mask)}
VISA_VALUES = {"one value per kind of defect": lambda d: values(d) == {1, 2}}

TREES: dict[str, Tree] = {
    "threecad": like_mvtec("3cad", "Iron_Stator", "crack", "", quirks=STEM_IS_THAT_OF_ITS_IMAGE),
    "autovi": Tree(
        "autovi",
        "tank_screw/train/good/{}.png",
        "tank_screw/test/good/{}.png",
        "tank_screw/test/missing/{}.png",
        "tank_screw/ground_truth/missing/{}/0000.png",
        {
            "RGBA masks": lambda d: all(
                np.asarray(Image.open(p)).shape == (12, 16, 4) for s in defective(d) for p in s.masks
            ),
            "rules for regions": lambda d: all(sample_regions(s, (12, 16)) for s in defective(d)),
            "black but opaque is normal": lambda d: all(read_mask(p).sum() == 4 for s in defective(d) for p in s.masks),
        },
        value=7,
    ),
    "btad": Tree(
        "btad",
        "01/train/ok/{}.bmp",
        "01/test/ok/{}.bmp",
        "01/test/ko/{}.bmp",
        "01/ground_truth/ko/{}.png",
        {
            "`ok` and `ko`": lambda d: {s.defect_type for s in samples(d)} == {"good", "ko"},
            ".bmp and .png images, .png masks": lambda d: suffixes(d) == {(".bmp", ".png"), (".png", ".png")},
        },
    ),
    "dtd_synthetic": like_mvtec("dtd_synthetic", "Mesh_114", "bad", "_mask", quirks=MASK_SUFFIX),
    "own_folder": like_mvtec(
        "folder",
        "gear",
        "crack",
        "",
        ".jpg",
        quirks={
            "`good` and `ok`": lambda d: {s.id.split("/")[2] for s in samples(d)} >= {"good", "ok"},
            "masks with and without `_mask`": lambda d: (
                {s.mask.stem.endswith("_mask") for s in defective(d) if s.mask} == {True, False}
            ),
            ".jpg, .tif, .bmp": lambda d: {s.image.suffix for s in samples(d)} == {".jpg", ".tif", ".bmp"},
            "kind without masks": lambda d: {s.defect_type for s in samples(d) if s.unmasked} == {"stain"},
        },
    ),
    "goodsad": like_mvtec(
        "goodsad",
        "box",
        "surface",
        "",
        ".jpg",
        quirks={".jpg images, .png masks of the same stem": lambda d: suffixes(d) == {(".jpg", ".png")}},
    ),
    "kolektorsdd2": Tree(
        "kolektorsdd2",
        "train/{}.png",
        "test/{}.png",
        "test/{}.png",
        "test/{}_GT.png",
        {
            "empty mask is a good image": lambda d: len(defective(d)) == 1,
            "defective training image left out": lambda d: "train/10001.png" not in {s.id for s in samples(d)},
        },
        every="_GT",
        never=("empty mask",),
    ),
    "kolektorsdd": Tree(
        "kolektorsdd_first35",
        "kos01/{}.jpg",
        "kos36/{}.jpg",
        "kos36/{}.jpg",
        "kos36/{}_label.bmp",
        {
            "split by commutator": lambda d: {s.id[:5] for s in d.categories[0].train} == {"kos01", "kos35"},
            "commutators as groups": lambda d: (
                {s.group for s in d.categories[0].test}
                == {
                    "kolektorsdd/kos36",
                    "kolektorsdd/kos50",
                }
            ),
            "empty mask is a good image": lambda d: len(defective(d)) == 2,
            ".jpg images, .bmp masks": lambda d: suffixes(d) == {(".jpg", ".bmp")},
        },
        every="_label",
        never=("empty mask",),
    ),
    "mpdd": like_mvtec("mpdd", "tubes", "anomalous", "_mask", quirks=MASK_SUFFIX),
    "mvtec_3d_ad": Tree(
        "mvtec_3d_ad",
        "bagel/train/good/rgb/{}.png",
        "bagel/test/good/rgb/{}.png",
        "bagel/test/hole/rgb/{}.png",
        "bagel/test/hole/gt/{}.png",
        {
            "`xyz` is not read": lambda d: {s.image.parent.name for s in samples(d)} == {"rgb"},
            "`validation` is training": lambda d: folders(d) == {"train", "validation", "test"},
            "empty masks of good images": lambda d: all(s.mask is None for s in samples(d) if not s.label),
        },
    ),
    "mvtec_ad": like_mvtec(
        "mvtec_ad",
        "bottle",
        "crack",
        "_mask",
        quirks={**MASK_SUFFIX, "part of the categories": lambda d: len(d.categories) == 2},
        more={
            "folder that is not read": (
                lambda root: write_image(root / "bottle/test/good/more/909.png"),
                (r"test/good/more: 1 images in a folder that is not read",),
            )
        },
    ),
    "mvtec_ad_2": Tree(
        "mvtec_ad_2",
        "can/train/good/{}_regular.png",
        "can/test_public/good/{}_regular.png",
        "can/test_public/bad/{}_regular.png",
        "can/test_public/ground_truth/bad/{}_regular_mask.png",
        {
            "lights as conditions, parts as groups": grouped,
            "`validation` is training": lambda d: folders(d) == {"train", "validation", "test_public"},
            "private images apart": lambda d: (
                {s.id.split("/")[1] for s in d.categories[0].private}
                == {
                    "test_private",
                    "test_private_mixed",
                }
            ),
        },
        more={
            "private image damaged": (
                lambda root: cut(root / "can/test_private/000_regular.png"),
                (r"test_private/000_regular\.png: damaged",),
            ),
            "no light in the name": (
                lambda root: write_image(root / "can/test_public/good/909.png"),
                (r"can: 1 images in which group .*909\.png", r"can: 1 images in which condition .*909\.png"),
            ),
        },
    ),
    "mvtec_loco_ad": Tree(
        "mvtec_loco_ad",
        "pushpins/train/good/{}.png",
        "pushpins/test/good/{}.png",
        "pushpins/test/logical_anomalies/{}.png",
        "pushpins/ground_truth/logical_anomalies/{}/000.png",
        {
            "several masks per image": lambda d: {len(s.masks) for s in defective(d)} == {2},
            "one value per kind of defect": lambda d: values(d) >= {236},
            "rules for regions": lambda d: (
                {r.saturation for s in defective(d) for r in sample_regions(s, (12, 16)) or ()} == {6, 10}
            ),
            "`validation` is training": lambda d: folders(d) == {"train", "validation", "test"},
        },
        value=236,
        more={
            "two bad regions of one image": (
                lambda root: two_bad_regions(root / "pushpins"),
                (r"909/000\.png: pixels of value 40, expected one that", r"909/001\.png: mask is 5 x 5"),
            )
        },
    ),
    "real_iad": real_iad("real_iad", "realiad_raw"),
    "real_iad_1024": real_iad("real_iad_1024", "realiad_1024"),
    "viaduct": Tree(
        "viaduct",
        "07Cog/train/good/{}_view0.png",
        "07Cog/test/good/{}_view0.png",
        "07Cog/test/dent/{}_view0.png",
        "07Cog/ground_truth/dent/{}_view0.png",
        {
            "views as conditions, parts as groups": grouped,
            "`val` is not read": lambda d: folders(d) == {"train", "test"},
        },
        more={
            "no view in the name": (
                lambda root: write_image(root / "07Cog/test/good/909.png"),
                (r"07Cog: 1 images in which group .*909\.png", r"07Cog: 1 images in which condition .*909\.png"),
            )
        },
    ),
    "visa": Tree(
        "visa",
        "candle/Data/Images/Normal/{}.JPG",
        "candle/Data/Images/Normal/{}.JPG",
        "candle/Data/Images/Anomaly/{}.JPG",
        "candle/Data/Masks/Anomaly/{}.png",
        {
            "split file": lambda d: "Data" in folders(d),
            **VISA_VALUES,
            ".JPG images, .png masks": lambda d: suffixes(d) == {(".JPG", ".png")},
        },
        value=1,
        rows=visa_rows,
        more={
            "row of no category, row of no split": (
                lambda root: visa_rows(root, [("tset", "a.JPG", ""), ("test", "b.JPG", "c.png")]),
                (r"1cls\.csv, line \d+: candle,tset", r"b\.JPG: no such file", r"c\.png: no such file"),
            )
        },
    ),
    "visa_folders": like_mvtec(
        "visa",
        "candle",
        "bad",
        "",
        ".JPG",
        quirks={"re-organised as folders": lambda d: folders(d) == {"train", "test"}},
    ),
}

REAL = {
    "folder": "yes: BSData, 837 photographs of ball screws, masks made of its polygons, groups by a descriptor of its "
    "own: 4 splinters of 178 components found, nothing else"
}


def expected_without_faults(finding: str) -> bool:
    """Tell whether a finding is of what a counterfeit tree lacks because it is small."""
    return (
        re.search(r": missing, expected |: found \d+ images, expected \d+|test images have no mask", finding)
        is not None
    )


@pytest.mark.parametrize("tree", TREES)
def test_a_sound_tree_is_read_as_it_is_meant(tree: str, request: pytest.FixtureRequest) -> None:
    root, case = request.getfixturevalue(tree), TREES[tree]
    dataset = load_dataset(case.descriptor, root)
    for quirk, holds in case.quirks.items():
        assert holds(dataset), quirk
    assert [text for text in map(str, check_dataset(case.descriptor, root)) if not expected_without_faults(text)] == []


@pytest.mark.parametrize("tree", TREES)
def test_all_faults_that_are_planted_at_once_are_found(tree: str, request: pytest.FixtureRequest) -> None:
    root, case = request.getfixturevalue(tree), TREES[tree]
    expected = plant(root, case)
    found = [text for text in map(str, check_dataset(case.descriptor, root)) if not expected_without_faults(text)]
    of_pattern = {pattern: [text for text in found if re.search(pattern, text)] for pattern in expected}
    assert {pattern: len(texts) for pattern, texts in of_pattern.items()} == dict.fromkeys(expected, 1), found
    assert len(found) == len(expected), found


def counted(descriptor: Descriptor) -> str:
    """Return in words which counts a descriptor states, and so `data check` compares."""
    total = [
        f"{value:,} {part.replace('_', ' ')}"
        for part, value in dataclasses.asdict(descriptor.total).items()
        if value is not None
    ]
    number = Counter(
        part.replace("private", "each private folder").replace("_", " ")
        for counts in descriptor.categories.values()
        for part, value in dataclasses.asdict(counts).items()
        if value is not None
    )
    known = [f"{part} of {n} of {len(descriptor.categories)} categories" for part, n in number.items()]
    if len(number) == 3 and len(set(number.values())) == 1:
        known = [f"each of {number['train']} categories"]
    return "; ".join([*([", ".join(total)] if total else []), *known]) or "none"


def row(name: str) -> str:
    """Return the line of a descriptor in the table."""
    cases = [case for case in TREES.values() if case.descriptor == name]
    quirks = "; ".join(dict.fromkeys(quirk for case in cases for quirk in case.quirks))
    faults = [f"{len(FAULTS) - len(cases[0].never)}", *(fault for case in cases for fault in case.more)]
    cells = [f"`{name}`", load_descriptor(name).layout, quirks, ", ".join(faults), counted(load_descriptor(name))]
    return f"| {' | '.join([*cells, REAL.get(name, 'no')])} |"


def test_the_table_is_of_the_descriptors_that_ship() -> None:
    assert {case.descriptor for case in TREES.values()} == set(list_datasets())
    section = PAGE.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    assert lines == [row(name) for name in list_datasets()], "\n".join(row(name) for name in list_datasets())
    for fault in FAULTS:
        assert fault in " ".join(section.split())
