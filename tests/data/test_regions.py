"""Regions of MVTec LOCO AD and AutoVI: one mask each, and how much of one is enough by its value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hrbench.data import check_dataset, check_files, dataset_stats, load_dataset
from hrbench.data.defects_config import DefectRule, read_defects_config
from hrbench.data.sample import Sample, sample_mask, sample_regions
from hrbench.errors import HrbenchError

from .conftest import write_defects_config, write_image, write_mask, write_tree

LOGICAL = "pushpins/ground_truth/logical_anomalies/000"


def of_test(root: Path, name: str = "mvtec_loco_ad") -> list[Sample]:
    (category,) = load_dataset(name, root).categories
    return [sample for sample in category.test if sample.label]


def test_one_mask_is_one_region(mvtec_loco_ad: Path) -> None:
    other = np.zeros((12, 16), np.uint8)
    other[[0, 11], :2] = 236  # two components, the first of them inside another region
    Image.fromarray(other).save(mvtec_loco_ad / LOGICAL / "002.png")
    first, second = of_test(mvtec_loco_ad)[:2]
    regions, mask = sample_regions(first, (12, 16)), sample_mask(first, (12, 16))
    assert regions is not None
    assert [(region.defect, region.mask.sum(), region.saturation) for region in regions] == [
        ("kind_236", 12, 6),
        ("kind_255", 24, 10),
        ("kind_236", 4, 2),
    ]
    assert np.array_equal(np.any([region.mask for region in regions], axis=0), mask)
    assert len(sample_regions(second, (12, 16)) or ()) == 2
    stats = dataset_stats(load_dataset("mvtec_loco_ad", mvtec_loco_ad)).loc[0]
    assert (stats["regions"], stats["regions_saturated"], stats["components"]) == (9, 9, 9)


@pytest.mark.parametrize(
    ("rule", "area", "expected"),
    [
        ((0.5, True), 11, 5),
        ((1.0, True), 11, 11),
        ((0.01, True), 11, 1),  # the publisher's code would divide by zero
        ((10.0, False), 11, 10),
        ((10.0, False), 9, 9),
    ],
)
def test_saturation(rule: tuple[float, bool], area: int, expected: int) -> None:
    assert DefectRule("scratch", 1, *rule).saturation(area) == expected


def test_regions_of_colours_have_the_value_of_the_first_channel(tmp_path: Path) -> None:
    screw = write_tree(tmp_path / "AutoVI/tank_screw", kinds=())
    write_image(screw / "test/missing/000.png")
    write_defects_config(screw, {7: 3})
    coloured = np.zeros((12, 16, 4), dtype=np.uint8)
    coloured[..., 3] = 255
    coloured[2:4, 2:4, :3] = 7
    path = screw / "ground_truth/missing/000/0000.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(coloured).save(path)
    (sample,) = of_test(tmp_path / "AutoVI", "autovi")
    (region,) = sample_regions(sample, (12, 16)) or ()
    assert (region.defect, region.saturation, region.mask.sum()) == ("kind_7", 3, 4)
    coloured[3, 3, 0] = 0
    Image.fromarray(coloured).save(path)
    with pytest.raises(HrbenchError, match=r"0000\.png: the values 0, 7, expected the pixels of one region"):
        sample_regions(sample, (12, 16))


def test_without_rules_masks_are_united_and_a_word_says_so(mvtec_loco_ad: Path) -> None:
    (mvtec_loco_ad / "pushpins/defects_config.json").unlink()
    (sample, *_) = of_test(mvtec_loco_ad)
    assert sample_regions(sample, (12, 16)) is None
    assert "regions" not in dataset_stats(load_dataset("mvtec_loco_ad", mvtec_loco_ad))
    (finding,) = [str(each) for each in check_dataset("mvtec_loco_ad", mvtec_loco_ad) if "config" in each.text]
    assert finding == (
        f"warning: {mvtec_loco_ad / 'pushpins/defects_config.json'}: no such file: how much of a region is enough is "
        "not known, and sPRO not measured"
    )


def entry(**changes: Any) -> dict[str, Any]:
    usual = {"defect_name": "x", "pixel_value": 236, "saturation_threshold": 0.5, "relative_saturation": True}
    return usual | changes


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("not JSON", "not valid JSON"),
        ([], r"\[\], expected a list of defects"),
        (entry(), "expected a list of defects"),
        ([7], "entry 0: it is 7, expected a table"),
        ([{}], "entry 0: defect_name is missing"),
        ([entry(pixel_value="236")], "entry 0: pixel_value is '236', expected int"),
        ([entry(pixel_value=0)], "entry 0: pixel_value is 0, expected 1 or more"),
        ([entry(), entry()], "entry 1: pixel_value is 236 once more, expected one entry for each"),
        ([entry(saturation_threshold=1.5)], r"saturation_threshold is 1\.5, expected a share in \(0, 1\]"),
        ([entry(saturation_threshold=0)], r"saturation_threshold is 0\.0, expected a share"),
        ([entry(saturation_threshold=2.5, relative_saturation=False)], r"is 2\.5, expected pixels, 1 or more"),
        ([entry(saturation_threshold=float("nan"), relative_saturation=False)], "saturation_threshold is nan"),
        ([entry(relative_saturation=1)], "relative_saturation is 1, expected bool"),
    ],
)
def test_wrong_rules_are_one_error(entries: Any, problem: str, mvtec_loco_ad: Path) -> None:
    path = mvtec_loco_ad / "pushpins/defects_config.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    with pytest.raises(HrbenchError, match=problem) as raised:
        read_defects_config(path)
    assert str(path) in str(raised.value)
    with pytest.raises(HrbenchError, match=problem):
        load_dataset("mvtec_loco_ad", mvtec_loco_ad)
    found = [each for each in check_dataset("mvtec_loco_ad", mvtec_loco_ad) if each.severity == "error"]
    assert [each.text for each in found] == [f"pushpins: {raised.value}"]


def test_all_wrong_rules_are_findings(mvtec_loco_ad: Path) -> None:
    path = mvtec_loco_ad / "pushpins/defects_config.json"
    path.write_text(json.dumps([entry(), 7, entry(pixel_value=255, saturation_threshold=2), entry()]))
    found = [each.text for each in check_dataset("mvtec_loco_ad", mvtec_loco_ad) if each.severity == "error"]
    assert [text.removeprefix(f"pushpins: {path}: ").partition(",")[0] for text in found] == [
        "entry 1: it is 7",
        "entry 2: saturation_threshold is 2.0",
        "entry 3: pixel_value is 236 once more",
    ]


def test_masks_that_are_no_region_of_the_rules_are_found(mvtec_loco_ad: Path) -> None:
    folder = mvtec_loco_ad / LOGICAL
    several = np.asarray(Image.open(folder / "000.png")).copy()
    several[0, 0] = 255
    Image.fromarray(several).save(folder / "000.png")
    structural = mvtec_loco_ad / "pushpins/ground_truth/structural_anomalies"
    write_mask(structural / "000/000.png", value=40)
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(structural / "001/001.png")
    texts = [
        f"{folder / '000.png'}: the values 236, 255, expected the pixels of one region, all of one value",
        f"{structural / '000/000.png'}: pixels of value 40, expected one that defects_config.json has: 236, 255",
        f"{structural / '001/001.png'}: no defect pixel, expected the pixels of one region, all of one value",
    ]
    for found in (
        check_dataset("mvtec_loco_ad", mvtec_loco_ad),
        check_files(load_dataset("mvtec_loco_ad", mvtec_loco_ad)),
    ):
        assert [each.text for each in found if each.severity == "error"] == texts


def test_other_rules_are_another_index(mvtec_loco_ad: Path) -> None:
    (category,) = load_dataset("mvtec_loco_ad", mvtec_loco_ad).categories
    write_defects_config(mvtec_loco_ad / "pushpins", {255: 10, 236: 0.5})  # in another order
    (same,) = load_dataset("mvtec_loco_ad", mvtec_loco_ad).categories
    write_defects_config(mvtec_loco_ad / "pushpins", {255: 10, 236: 0.6})
    (other,) = load_dataset("mvtec_loco_ad", mvtec_loco_ad).categories
    assert (same.digest, same.names_digest) == (category.digest, category.names_digest)
    assert other.digest != category.digest
    assert other.train_digest == category.train_digest


def test_layouts_of_one_mask_read_no_rules(mvtec_ad: Path, mvtec_loco_ad: Path) -> None:
    shutil.copy(mvtec_loco_ad / "pushpins/defects_config.json", mvtec_ad / "bottle/defects_config.json")
    assert not any(sample.rules for sample in load_dataset("mvtec_ad", mvtec_ad).categories[0].test)
