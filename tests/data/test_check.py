from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hrbench.data import (
    Finding,
    check_dataset,
    check_files,
    dataset_stats,
    dataset_summary,
    load_dataset,
    load_descriptor,
    make_dataset,
)
from hrbench.errors import HrbenchError

from .conftest import write_image, write_mask, write_tree

DESCRIPTOR = """
name = "mini"
title = "Mini"
layout = "mvtec"
licence = "none"
citation = "none"
url = "none"
[total]
train = 6
[categories]
bottle = { train = 3, test_good = 2, test_defective = 4 }
cable = { train = 3, test_defective = 4 }
"""


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    path = tmp_path / "mini.toml"
    path.write_text(DESCRIPTOR)
    return path


def test_a_complete_dataset_has_no_findings(mini: Path, mvtec_ad: Path) -> None:
    seen: list[object] = []
    assert check_dataset(mini, mvtec_ad, progress=lambda items: [seen.append(item) or item for item in items]) == []
    assert len(seen) == 18


def test_summary_gives_counts_and_says_where_none_is_expected(mini: Path, mvtec_ad: Path) -> None:
    assert dataset_summary(mini, mvtec_ad) == [
        "bottle: train 3 (expected 3), test good 2 (expected 2), test defective 4 (expected 4)",
        "cable: train 3 (expected 3), test good 2 (no expected count), test defective 4 (expected 4)",
    ]


def test_names_missing_categories_and_differing_counts(mini: Path, mvtec_ad: Path) -> None:
    shutil.rmtree(mvtec_ad / "cable")
    (mvtec_ad / "bottle/train/good/000.png").unlink()
    missing, count = map(str, check_dataset(mini, mvtec_ad))
    assert missing.startswith("warning: cable: missing")
    assert count == "warning: bottle: train: found 2 images, expected 3"


def test_total_counts_are_compared(mini: Path, mvtec_ad: Path) -> None:
    mini.write_text(DESCRIPTOR.replace("train = 6", "train = 7"))
    assert check_dataset(mini, mvtec_ad) == [Finding("warning", "total: train: found 6 images, expected 7")]


def test_names_damaged_files_and_masks_of_another_size(mini: Path, mvtec_ad: Path) -> None:
    (mvtec_ad / "bottle/train/good/000.png").write_bytes(b"not an image")
    write_mask(mvtec_ad / "cable/ground_truth/spot/000_mask.png", size=(12, 17))
    damaged, size = map(str, check_dataset(mini, mvtec_ad))
    assert "bottle/train/good/000.png: not a readable image" in damaged.replace("\\", "/")
    assert size.endswith("000_mask.png: mask is 12 x 17 (height x width), expected 12 x 16 as its image")


def test_pairing_errors_are_findings_and_do_not_hide_other_categories(mini: Path, mvtec_ad: Path) -> None:
    (mvtec_ad / "bottle/ground_truth/spot/000_mask.png").unlink()
    (mvtec_ad / "cable/train/good/000.png").unlink()
    pairing, count = map(str, check_dataset(mini, mvtec_ad))
    broken, readable = dataset_summary(mini, mvtec_ad)
    assert broken == "bottle: cannot be read, see the findings"
    assert readable.startswith("cable: train 2 (expected 3)")
    assert pairing.startswith("error: bottle: ")
    assert "without a mask" in pairing
    assert count == "warning: cable: train: found 2 images, expected 3"


def test_all_pairing_errors_are_findings_and_the_other_files_are_checked(mini: Path, mvtec_ad: Path) -> None:
    bottle = mvtec_ad / "bottle"
    for name in ("crack/000", "spot/000", "spot/001"):
        (bottle / f"ground_truth/{name}_mask.png").unlink()
    write_mask(bottle / "ground_truth/spot/007_mask.png")
    write_mask(bottle / "ground_truth/bent/000_mask.png")
    write_image(bottle / "train/good/000.jpg")
    (bottle / "test/good/001.png").write_bytes(b"not an image")
    with pytest.raises(HrbenchError, match=r"same stem as 000\.jpg.*; and 5 more, which `hrbench data check` lists$"):
        load_dataset(mini, mvtec_ad)
    found = [str(finding).replace(f"{bottle}/", "") for finding in check_dataset(mini, mvtec_ad)]
    assert [text.partition(", expected")[0] for text in found] == [
        "error: bottle: train/good/000.png: same stem as 000.jpg",
        "error: bottle: test/crack/000.png: defective image without a mask",
        "error: bottle: test/spot/000.png: defective image without a mask",
        "error: bottle: test/spot/001.png: defective image without a mask",
        "error: bottle: ground_truth/spot/007_mask.png: mask without image",
        "error: bottle: ground_truth/bent/000_mask.png: mask without image",
        "error: test/good/001.png: not a readable image (it starts with 6e 6f 74 20 61 6e 20 69)",
    ]


def test_a_category_without_training_images_is_checked_all_the_same(mini: Path, mvtec_ad: Path) -> None:
    for path in (mvtec_ad / "bottle/train/good").iterdir():
        path.unlink()
    cut(mvtec_ad / "bottle/test/good/001.png")
    missing, damaged = map(str, check_dataset(mini, mvtec_ad))
    assert "no training images for bottle" in missing
    assert "001.png: damaged or truncated" in damaged


def test_all_bad_rows_of_a_split_file_are_findings_and_each_is_told_once(visa: Path) -> None:
    table = visa / "split_csv/1cls.csv"
    table.write_text(table.read_text() + "candel,test,normal,a.JPG,\ncandle,tset,normal,a.JPG,\npcb1,test,bad,a.JPG,\n")
    found = [str(finding) for finding in check_dataset("visa", visa, ["candle", "pcb1"])]
    assert [finding.partition("1cls.csv, ")[2].partition(",")[0] for finding in found] == [
        "line 14: 'candel'; did you mean 'candle'? Known: candle",
        "line 15: candle",
        "line 16",
        "line 16: defective image a.JPG has no mask",
    ]


def test_check_raises_for_what_is_no_dataset(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match="no such folder"):
        check_dataset(mini, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HrbenchError, match=r"not the root of Mini.*an empty folder"):
        check_dataset(mini, tmp_path / "empty")


def test_categories_that_were_not_asked_for_are_left_out(mini: Path, mvtec_ad: Path) -> None:
    (mvtec_ad / "bottle/train/good/000.png").write_bytes(b"not an image")
    assert check_dataset(mini, mvtec_ad, ["cable"]) == []
    assert len(dataset_summary(mini, mvtec_ad, ["cable"])) == 1
    with pytest.raises(HrbenchError, match="unknown category of mini 'cabel'; did you mean 'cable'"):
        check_dataset(mini, mvtec_ad, ["cabel"])


def replaced(path: Path, suffix: str, convert: Callable[[np.ndarray], np.ndarray] = np.asarray, **options: int) -> Path:
    """Write an image anew in another format; return its new path."""
    pixels = convert(np.asarray(Image.open(path)))
    path.unlink()
    path = path.with_suffix(suffix)
    if suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


IMAGE, MASK, TRAINED = "test/good/001.png", "ground_truth/crack/001_mask.png", "train/good/000.png"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "png": (lambda gear: cut(gear / IMAGE), r"error: .*001\.png: damaged or truncated"),
    "jpeg": (lambda gear: cut(replaced(gear / IMAGE, ".jpg")), r"error: .*001\.jpg: damaged or truncated"),
    "tiff": (lambda gear: cut(replaced(gear / IMAGE, ".tif")), r"error: .*001\.tif: TIFF .*undamaged file"),
    "floats": (
        lambda gear: replaced(gear / IMAGE, ".tif", lambda pixels: pixels[..., 0].astype(np.float32)),
        r"error: .*001\.tif: pixels are float32, expected uint8",
    ),
    "stack": (
        lambda gear: replaced(gear / IMAGE, ".tif", lambda pixels: np.stack([pixels[..., 0]] * 5)),
        r"error: .*001\.tif: holds an array with axes .*expected one image",
    ),
    "empty mask": (lambda gear: write_mask(gear / MASK, value=0), r"error: .*001_mask\.png: no defect pixel, but .*"),
    "lossy mask": (
        lambda gear: replaced(gear / MASK, ".jpg", quality=30),
        r"error: .*001_mask\.jpg: mask in a lossy format",
    ),
    "mask of another size": (
        lambda gear: write_mask(gear / MASK, size=(12, 17)),
        r"error: .*001_mask\.png: mask is 12 x 17 .*, expected 12 x 16 as its image",
    ),
    "one training image": (
        lambda gear: [(gear / f"train/good/00{i}.png").unlink() for i in (0, 1)],
        "error: gear: 1 training image, expected at least 2",
    ),
    "no defect": (
        lambda gear: [shutil.rmtree(gear / part) for part in ("test/crack", "ground_truth")],
        "warning: gear: no defective test image, expected some",
    ),
    "no good image": (lambda gear: shutil.rmtree(gear / "test/good"), "warning: gear: no good test image"),
    "good copy": (
        lambda gear: shutil.copy(gear / TRAINED, gear / IMAGE),
        r"warning: .*001\.png: is the training image .*000\.png once more: expected",
    ),
    "defective copy": (
        lambda gear: shutil.copy(gear / TRAINED, gear / "test/crack/001.png"),
        r"error: .*001\.png: is the training image .*000\.png once more, though labelled defective",
    ),
    "folder in a folder": (
        lambda gear: write_image(gear / "test/good/more/001.png"),
        "warning: .*more: 1 images in a folder that is not read",
    ),
    "files beside folders": (
        lambda gear: write_image(gear / "test/001.png"),
        "warning: .*test: 1 images in a folder that is not read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_files_are_found_with_and_without_decoding(tmp_path: Path, fault: str) -> None:
    gear = write_tree(tmp_path / "gear", kinds=("crack",))
    write_mask(gear / "ground_truth/good/000_mask.png", value=0)  # nobody reads it, and that is as it should be
    assert check_files(load_dataset("folder", tmp_path)) == []
    spoil, expected = FAULTS[fault]
    spoil(gear)
    quick, thorough = check_files(load_dataset("folder", tmp_path)), check_dataset("folder", tmp_path)
    assert quick == thorough
    assert re.match(expected, str(quick[0])), quick
    assert len(quick) == 1


def test_damage_inside_a_file_is_found_by_decoding_alone(tmp_path: Path) -> None:
    data = bytearray((path := write_tree(tmp_path / "gear") / IMAGE).read_bytes())
    data[200:300] = bytes(100)
    path.write_bytes(data)
    assert check_files(load_dataset("folder", tmp_path)) == []
    assert "001.png: damaged" in str(*check_dataset("folder", tmp_path))


def test_all_findings_are_told_not_only_the_first(tmp_path: Path) -> None:
    gear = write_tree(tmp_path / "gear")
    cut(gear / "test/crack/001.png")
    write_mask(gear / MASK, value=0)
    cut(gear / TRAINED)
    assert [finding.severity for finding in check_files(load_dataset("folder", tmp_path))] == ["error"] * 3


TREES = {"visa_folders": "visa", "threecad": "3cad", "kolektorsdd": "kolektorsdd_first35"}


@pytest.mark.parametrize(
    "tree",
    [
        "visa",
        "btad",
        "mvtec_ad_2",
        "kolektorsdd2",
        "mpdd",
        "goodsad",
        "viaduct",
        "mvtec_3d_ad",
        "mvtec_loco_ad",
        "real_iad",
        *TREES,
    ],
)
def test_sound_layouts_have_no_findings_in_their_files(tree: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(tree)
    found = check_files(load_dataset(TREES.get(tree, tree), root))
    assert [finding for finding in found if finding.severity == "error" or "not read" in finding.text] == []


def test_private_images_are_counted_and_a_corrupt_one_is_named(mvtec_ad_2: Path) -> None:
    """As `265_regular.png` of some copies of rice is: training goes on without a word, a submission cannot."""
    write_image(mvtec_ad_2 / "can/test_private_mixed/001_mixed.png")
    data = bytearray((path := mvtec_ad_2 / "can/test_private/000_regular.png").read_bytes())
    data[200:300] = bytes(100)
    path.write_bytes(data)
    trained = mvtec_ad_2 / "can/train/good/001_regular.png"
    trained.write_bytes(trained.read_bytes()[:150])
    found = [str(finding) for finding in check_dataset("mvtec_ad_2", mvtec_ad_2, ["can"])]
    assert found[:2] == [
        "warning: can: test_private: found 1 images, expected 321",
        "warning: can: test_private_mixed: found 2 images, expected 321",
    ]
    assert [re.sub(r"[(:].*", "", text.removeprefix("error: ")) for text in found[2:]] == [
        f"{trained}",
        f"{path}",
    ]
    dataset = load_dataset("mvtec_ad_2", mvtec_ad_2)
    assert [finding.text for finding in check_files(dataset)] == [found[2].removeprefix("error: ")]
    (summary,) = dataset_summary("mvtec_ad_2", mvtec_ad_2)
    assert "test_private 1 (expected 321), test_private_mixed 2 (expected 321)" in summary
    assert dataset_stats(dataset).loc[0, "private"] == 3


def test_counts_are_compared_where_there_is_a_descriptor(mini: Path, mvtec_ad: Path) -> None:
    (mvtec_ad / "bottle/train/good/000.png").unlink()
    found = check_files(load_dataset(mini, mvtec_ad, ["bottle"]), load_descriptor(mini))
    assert found == [Finding("warning", "bottle: train: found 2 images, expected 3")]


def test_a_procedural_dataset_that_is_made_in_part(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path / "made", categories=["weave", "wood_grain"], size=(64, 64), train=2, test_good=1, test_defective=2
    )
    assert check_dataset("folder", root) == []
    victims = (
        sorted((root / "wood_grain/test").rglob("*.png"))[-1:]
        + sorted((root / "wood_grain/ground_truth").rglob("*.png"))[-1:]
    )
    for path in victims:
        path.unlink()
    shutil.rmtree(victims[1].parent)
    expected = "and 1 more files: missing, expected all that `hrbench data make` makes"
    assert expected in str(*check_files(load_dataset("folder", root, ["wood_grain"])))
    assert expected in str(*check_dataset("folder", root))
    assert expected in str(*check_dataset("folder", root / "wood_grain"))
    assert check_files(load_dataset("folder", root, ["weave"])) == []
    shutil.rmtree(root / "wood_grain")
    assert "missing" in str(*check_dataset("folder", root))


def test_stats(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear", kinds=("crack",))
    write_image(root / "train/good/009.png", size=(20, 30))
    mask = np.zeros((12, 16), dtype=np.uint8)
    mask[1, 1] = mask[2, 2] = 255  # diagonal neighbours: one component of 2 px
    mask[6:10, 6:16] = 1  # 40 px
    Image.fromarray(mask).save(root / "ground_truth/crack/000_mask.png")
    frame = dataset_stats(load_dataset("folder", root))
    row = frame.loc[0]
    assert (row["category"], row["train"], row["test_good"], row["test_defective"]) == ("gear", 4, 2, 2)
    assert list(row[["height_min", "height_max", "width_min", "width_max"]]) == [12, 20, 16, 30]
    assert (row["components"], row["slivers"]) == (3, 1)  # 2, 12 and 40 px
    assert (row["area_min"], row["area_median"], row["area_max"]) == (2, 12, 40)
    assert row["splinters"] == 1  # 2 beside 40 px
    assert row["area_q25"] == pytest.approx(7)
    (finding,) = check_dataset("folder", root)
    assert "gear: 1 of 3 components are at most 1/10 of another one whose box is within 10 px" in str(finding)
    assert "such as 2 px beside 40 px in " in str(finding)
    assert check_files(load_dataset("folder", root)) == []
    assert row["share_median"] == pytest.approx(12 / 192)
    assert row["defect_share"] == pytest.approx(54 / 384)


def test_stats_name_a_mask_without_defect_and_one_of_another_size(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear")
    path = write_mask(root / "ground_truth/crack/001_mask.png", value=0)
    with pytest.raises(HrbenchError, match=r"001_mask\.png: no defect pixel"):
        dataset_stats(load_dataset("folder", root))
    write_mask(path, size=(5, 5))
    with pytest.raises(HrbenchError, match=r"001_mask\.png: mask is 5 x 5 .*expected 12 x 16"):
        dataset_stats(load_dataset("folder", root))


def test_stats_without_defects(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear", kinds=())
    row = dataset_stats(load_dataset("folder", root)).loc[0]
    assert row["components"] == 0
    assert np.isnan(row["area_median"])
