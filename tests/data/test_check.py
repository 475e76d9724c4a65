from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrbench.data import check_dataset, dataset_stats, dataset_summary, load_dataset
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
    missing, count = check_dataset(mini, mvtec_ad)
    assert missing.startswith("cable: missing")
    assert count == "bottle: train: found 2 images, expected 3"


def test_total_counts_are_compared(mini: Path, mvtec_ad: Path) -> None:
    mini.write_text(DESCRIPTOR.replace("train = 6", "train = 7"))
    assert check_dataset(mini, mvtec_ad) == ["total: train: found 6 images, expected 7"]


def test_names_damaged_files_and_masks_of_another_size(mini: Path, mvtec_ad: Path) -> None:
    (mvtec_ad / "bottle/train/good/000.png").write_bytes(b"not an image")
    write_mask(mvtec_ad / "cable/ground_truth/spot/000_mask.png", size=(12, 17))
    damaged, size = check_dataset(mini, mvtec_ad)
    assert "bottle/train/good/000.png: not a readable image" in damaged.replace("\\", "/")
    assert size.endswith("000_mask.png: mask is 12 x 17 (height x width), expected 12 x 16 as its image")


def test_pairing_errors_are_findings_and_do_not_hide_other_categories(mini: Path, mvtec_ad: Path) -> None:
    (mvtec_ad / "bottle/ground_truth/spot/000_mask.png").unlink()
    (mvtec_ad / "cable/train/good/000.png").unlink()
    pairing, count = check_dataset(mini, mvtec_ad)
    broken, readable = dataset_summary(mini, mvtec_ad)
    assert broken == "bottle: cannot be read, see the findings"
    assert readable.startswith("cable: train 2 (expected 3)")
    assert pairing.startswith("bottle: ")
    assert "without a mask" in pairing
    assert count == "cable: train: found 2 images, expected 3"


def test_check_raises_for_what_is_no_dataset(mini: Path, tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match="no such folder"):
        check_dataset(mini, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HrbenchError, match=r"not the root of Mini.*an empty folder"):
        check_dataset(mini, tmp_path / "empty")


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
    assert row["area_q25"] == pytest.approx(7)
    assert row["share_median"] == pytest.approx(12 / 192)
    assert row["defect_share"] == pytest.approx(54 / 384)


def test_stats_name_a_mask_without_defect_and_one_of_another_size(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear")
    path = write_mask(root / "ground_truth/crack/001_mask.png", value=0)
    with pytest.raises(HrbenchError, match=r"001_mask\.png: mask with no defect pixel"):
        dataset_stats(load_dataset("folder", root))
    write_mask(path, size=(5, 5))
    with pytest.raises(HrbenchError, match=r"001_mask\.png: mask is 5 x 5 .*expected 12 x 16"):
        dataset_stats(load_dataset("folder", root))


def test_stats_without_defects(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear", kinds=())
    row = dataset_stats(load_dataset("folder", root)).loc[0]
    assert row["components"] == 0
    assert np.isnan(row["area_median"])
