"""Defective images without masks: which layouts take them as unknown, which as a mistake, and what checks say."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from helpers import write_tree

from hrbench.cli import main
from hrbench.data import check_files, dataset_stats, load_dataset
from hrbench.data.check import check_dataset
from hrbench.errors import HrbenchError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A category with two kinds of defects, the second without a folder of masks."""
    root = write_tree(tmp_path / "tree", train=3, good=2, bad=3)
    shutil.copytree(root / "bolt" / "test" / "dent", root / "bolt" / "test" / "stain")
    return root


def descriptor(folder: Path, base: str, text: str = '[mask]\nmissing = "unknown"\n') -> Path:
    path = folder / "mine.toml"
    path.write_text(f'name = "mine"\nbase = "{base}"\n{text}', encoding="utf-8")
    return path


def test_a_kind_without_masks_is_defective_and_unmasked(tree: Path) -> None:
    (category,) = load_dataset("folder", tree).categories
    kinds = {(sample.defect_type, sample.label, sample.unmasked) for sample in category.test}
    assert kinds == {("good", 0, False), ("dent", 1, False), ("stain", 1, True)}
    assert "3 of 6 defective test images have no mask" in str(check_dataset("folder", tree)[-1])


def test_a_mask_missing_among_others_stays_a_mistake(tree: Path) -> None:
    (tree / "bolt/ground_truth/dent/001_mask.png").unlink()
    with pytest.raises(HrbenchError, match=r"001\.png: defective image without a mask, expected"):
        load_dataset("folder", tree)


def test_masks_of_no_kind_stay_a_mistake(tree: Path) -> None:
    (tree / "bolt/ground_truth/dent").rename(tree / "bolt/ground_truth/dents")
    with pytest.raises(HrbenchError, match="mask without image"):
        load_dataset("folder", tree)


def test_a_descriptor_may_take_any_missing_mask_as_unknown(tree: Path, tmp_path: Path) -> None:
    (tree / "bolt/ground_truth/dent/001_mask.png").unlink()
    text = '[mask]\nmissing = "unknown"\n[categories]\nbolt = {}\n'
    name = descriptor(tmp_path, "mvtec_ad", text)
    (category,) = load_dataset(name, tree).categories
    assert [sample.id for sample in category.test if sample.unmasked] == [
        "bolt/test/dent/001.png", *(f"bolt/test/stain/00{number}.png" for number in range(3)),
    ]  # fmt: skip
    (found,) = check_files(load_dataset(name, tree))
    assert found.severity == "warning"
    assert "4 of 6 defective test images have no mask" in found.text
    with pytest.raises(HrbenchError, match="without a mask"):
        load_dataset(descriptor(tmp_path, "mvtec_ad", "[categories]\nbolt = {}\n"), tree)


def test_split_files_may_name_no_mask(visa: Path, real_iad: Path, tmp_path: Path) -> None:
    table = visa / "split_csv/1cls.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    defective = next(row for row in rows if row["mask"])
    defective["mask"] = ""
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    file = next((real_iad).rglob("*.json"))
    content = json.loads(file.read_text(encoding="utf-8"))
    next(row for row in content["test"] if row["mask_path"])["mask_path"] = None
    file.write_text(json.dumps(content), encoding="utf-8")
    for base, root in (("visa", visa), ("real_iad", real_iad)):
        with pytest.raises(HrbenchError, match="has no mask"):
            load_dataset(base, root)
        read = load_dataset(descriptor(tmp_path, base), root)
        assert sum(sample.unmasked for category in read.categories for sample in category.test) == 1


def test_stats_print_a_dash(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dataset_stats(load_dataset("folder", tree)).iloc[0]
    shutil.rmtree(tree / "bolt/test/stain")
    after = dataset_stats(load_dataset("folder", tree)).iloc[0]
    columns = [name for name in after.index if name != "test_defective"]
    assert before[columns].equals(after[columns])  # what has no mask counts in no figure of components
    shutil.rmtree(tree / "bolt/ground_truth")
    bare = dataset_stats(load_dataset("folder", tree)).iloc[0]
    assert all(math.isnan(bare[name]) for name in ("components", "area_median", "slivers", "defect_share"))
    assert main(["data", "stats", "--dataset", "folder", "--root", str(tree)]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "components" in line] == ["–"]
