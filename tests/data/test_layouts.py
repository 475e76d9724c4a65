from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrbench.data import Category, check_dataset, check_files, dataset_stats, list_datasets, load_dataset
from hrbench.data.sample import sample_mask
from hrbench.errors import HrbenchError
from hrbench.imaging import files as imaging

from .conftest import real_iad_row, write_image, write_mask, write_real_iad_split, write_split, write_tree


def counts(category: Category) -> tuple[int, int, int]:
    defective = sum(sample.label for sample in category.test)
    return len(category.train), len(category.test) - defective, defective


def check_pairs(category: Category, root: Path, suffix: str) -> None:
    """Every defective image has the mask of its own stem, every good one has none, ids are relative paths."""
    for sample in (*category.train, *category.test):
        assert sample.image == root / sample.id
        assert sample.image.is_file()
        assert (sample.mask is None) == (sample.label == 0)
        if sample.mask is not None:
            assert sample.mask.is_file()
            assert sample.mask.stem == sample.image.stem + suffix
    assert all(sample.label == 0 and sample.split == "train" for sample in category.train)
    ids = [sample.id for sample in category.test]
    assert ids == sorted(ids)


def test_mvtec_ad(mvtec_ad: Path) -> None:
    dataset = load_dataset("mvtec_ad", mvtec_ad)
    assert dataset.name == "mvtec_ad"
    assert [category.name for category in dataset.categories] == ["bottle", "cable"]
    for category in dataset.categories:
        assert counts(category) == (3, 2, 4)
        check_pairs(category, mvtec_ad, "_mask")
    crack = dataset.categories[0].test[0]
    assert (crack.id, crack.defect_type) == ("bottle/test/crack/000.png", "crack")
    assert crack.mask == mvtec_ad / "bottle/ground_truth/crack/000_mask.png"


def test_no_pixel_is_read(mvtec_ad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in mvtec_ad.rglob("*.png"):
        path.write_bytes(b"")
    monkeypatch.setattr(imaging, "read_pixels", None)
    assert len(load_dataset("mvtec_ad", mvtec_ad).categories) == 2


def test_pairs_do_not_depend_on_listing_order(mvtec_ad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_dataset("mvtec_ad", mvtec_ad).categories[0]
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listing(self), reverse=True)))
    shuffled = load_dataset("mvtec_ad", mvtec_ad).categories[0]
    assert shuffled == expected
    assert shuffled.digest == expected.digest


def test_mvtec_ad_2_joins_validation_and_leaves_private_images_out(mvtec_ad_2: Path) -> None:
    (can,) = load_dataset("mvtec_ad_2", mvtec_ad_2).categories
    assert counts(can) == (4, 2, 2)
    check_pairs(can, mvtec_ad_2, "_mask")
    assert {sample.id.split("/")[1] for sample in can.train} == {"train", "validation"}
    assert {sample.id.split("/")[1] for sample in can.test} == {"test_public"}
    assert [sample.id for sample in can.private] == [
        "can/test_private/000_regular.png",
        "can/test_private_mixed/000_mixed.png",
    ]
    digest = can.digest
    write_image(mvtec_ad_2 / "can/test_private/001_regular.png")
    (more,) = load_dataset("mvtec_ad_2", mvtec_ad_2).categories
    assert len(more.private) == 3
    assert more.digest == digest


def test_visa_by_its_split_file(visa: Path) -> None:
    dataset = load_dataset("visa", visa)
    assert [category.name for category in dataset.categories] == ["candle", "pcb1"]
    for category in dataset.categories:
        assert counts(category) == (3, 1, 2)
        check_pairs(category, visa, "")
    assert dataset.categories[0].test[0].id == "candle/Data/Images/Anomaly/000.JPG"


def test_visa_as_reorganised_folders(visa_folders: Path) -> None:
    (candle,) = load_dataset("visa", visa_folders).categories
    assert counts(candle) == (3, 2, 2)
    check_pairs(candle, visa_folders, "")


def test_btad(btad: Path) -> None:
    dataset = load_dataset("btad", btad)
    assert [category.name for category in dataset.categories] == ["01", "02"]
    for category in dataset.categories:
        assert counts(category) == (3, 2, 2)
        check_pairs(category, btad, "")
    assert dataset.categories[0].train[0].image.suffix == ".bmp"
    assert {sample.defect_type for sample in dataset.categories[0].test} == {"good", "ko"}


def test_kolektorsdd2_labels_by_masks_and_trains_on_good_images(kolektorsdd2: Path) -> None:
    (category,) = load_dataset("kolektorsdd2", kolektorsdd2).categories
    assert counts(category) == (3, 2, 1)
    check_pairs(category, kolektorsdd2, "_GT")
    assert "train/10001.png" not in {sample.id for sample in category.train}
    assert [sample.id for sample in category.test if sample.label] == ["test/20001.png"]


@pytest.mark.parametrize(
    ("name", "tree", "category", "suffix", "expected"),
    [
        ("mpdd", "mpdd", "tubes", "_mask", (3, 2, 2)),
        ("dtd_synthetic", "dtd_synthetic", "Mesh_114", "_mask", (3, 2, 2)),
        ("goodsad", "goodsad", "box", "", (3, 2, 4)),
        ("3cad", "threecad", "Iron_Stator", "", (3, 2, 4)),
        ("viaduct", "viaduct", "07Cog", "", (6, 2, 2)),
        ("mvtec_3d_ad", "mvtec_3d_ad", "bagel", "", (4, 2, 2)),
    ],
)
def test_trees_like_that_of_mvtec_ad(
    name: str, tree: str, category: str, suffix: str, expected: tuple[int, int, int], request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(tree)
    dataset = load_dataset(name, root)
    assert dataset.name == name
    (read,) = dataset.categories
    assert (read.name, counts(read)) == (category, expected)
    check_pairs(read, root, suffix)
    masked = [sample for sample in read.test if sample.mask]
    masked[0].mask.unlink()  # type: ignore[union-attr]
    write_mask(orphan := masked[1].mask.with_stem(f"lost{suffix}"))  # type: ignore[union-attr]
    problems: list[str] = []
    (read,) = load_dataset(name, root, report=problems.append).categories
    assert counts(read) == (*expected[:2], expected[2] - 1)
    assert {problem.partition(": ")[0] for problem in problems} == {str(masked[0].image), str(orphan)}


def test_listed_categories_over_the_folder_reader_are_no_others(mpdd: Path) -> None:
    write_tree(mpdd / "screw")
    assert [category.name for category in load_dataset("mpdd", mpdd).categories] == ["tubes"]
    with pytest.raises(HrbenchError, match=rf"not the root of MPDD.*a category such as .*; did you mean {mpdd}\?"):
        load_dataset("mpdd", mpdd / "tubes")


def test_viaduct_groups_the_views_of_a_part_and_leaves_its_validation_images_out(viaduct: Path) -> None:
    (cog,) = load_dataset("viaduct", viaduct).categories
    assert {sample.group for sample in cog.test} == {"07Cog/test/dent/000", "07Cog/test/good/000"}
    assert {sample.condition for sample in cog.test} == {"view0", "view1"}
    assert len({sample.group for sample in cog.train}) == 3
    assert not any("val" in sample.id.split("/") for sample in cog.train)
    assert check_dataset("viaduct", viaduct) == []


def test_mvtec_3d_ad_joins_validation_and_reads_colour_images_alone(mvtec_3d_ad: Path) -> None:
    (bagel,) = load_dataset("mvtec_3d_ad", mvtec_3d_ad).categories
    assert {sample.id.split("/")[1] for sample in bagel.train} == {"train", "validation"}
    assert {sample.image.parent.name for sample in (*bagel.train, *bagel.test)} == {"rgb"}
    assert bagel.test[-1].mask == mvtec_3d_ad / "bagel/test/hole/gt/001.png"
    assert [text for text in map(str, check_dataset("mvtec_3d_ad", mvtec_3d_ad)) if "bagel" in text] == []


def test_mvtec_loco_ad_unites_the_masks_of_an_image(mvtec_loco_ad: Path) -> None:
    (category,) = load_dataset("mvtec_loco_ad", mvtec_loco_ad).categories
    assert counts(category) == (4, 2, 4)
    bad = [sample for sample in category.test if sample.label]
    for sample in bad:
        folder = mvtec_loco_ad / "pushpins/ground_truth" / sample.defect_type / sample.image.stem
        assert sample.masks == (folder / "000.png", folder / "001.png")
        mask = sample_mask(sample, (12, 16))
        assert mask is not None
        assert (mask[:3, :4].all(), mask[8:, 10:].all(), mask.sum()) == (True, True, 36)
    stats = dataset_stats(load_dataset("mvtec_loco_ad", mvtec_loco_ad)).loc[0]
    assert (stats["components"], stats["area_min"], stats["area_max"]) == (8, 12, 24)
    assert [text for text in map(str, check_dataset("mvtec_loco_ad", mvtec_loco_ad)) if "missing" not in text] == []
    digest = category.digest
    write_mask(bad[0].masks[1])
    assert load_dataset("mvtec_loco_ad", mvtec_loco_ad).categories[0].digest != digest
    write_mask(bad[0].masks[1], size=(5, 5))
    assert "001.png: mask is 5 x 5" in str(check_dataset("mvtec_loco_ad", mvtec_loco_ad))


def test_mvtec_loco_ad_image_or_masks_alone(mvtec_loco_ad: Path) -> None:
    truth = mvtec_loco_ad / "pushpins/ground_truth/logical_anomalies"
    (truth / "001").rename(truth / "007")
    write_mask(truth.parent / "other/000/000.png")
    problems: list[str] = []
    (category,) = load_dataset("mvtec_loco_ad", mvtec_loco_ad, report=problems.append).categories
    assert counts(category) == (4, 2, 3)
    image = mvtec_loco_ad / "pushpins/test/logical_anomalies/001.png"
    assert problems == [
        f"{image}: defective image without a mask, expected some in {truth / '001'}",
        f"{truth / '007'}: masks without image, expected an image of that stem",
        f"{truth.parent / 'other/000'}: masks without image, expected an image of that stem",
    ]


def test_autovi_is_read_as_mvtec_loco_ad(tmp_path: Path) -> None:
    screw = write_tree(tmp_path / "AutoVI/tank_screw", kinds=())
    write_image(screw / "test/missing/000.png")
    coloured = np.zeros((12, 16, 4), dtype=np.uint8)
    coloured[..., 3] = 255
    coloured[2:4, 2:4, :3] = 7
    (screw / "ground_truth/missing/000").mkdir(parents=True)
    Image.fromarray(coloured).save(screw / "ground_truth/missing/000/0000.png")
    (category,) = load_dataset("autovi", tmp_path / "AutoVI").categories
    assert counts(category) == (3, 2, 1)
    mask = sample_mask(category.test[-1], (12, 16))
    assert mask is not None
    assert mask.sum() == 4


def test_kolektorsdd_splits_by_commutator(kolektorsdd: Path) -> None:
    dataset = load_dataset("kolektorsdd_first35", kolektorsdd)
    (category,) = dataset.categories
    assert (dataset.name, category.name) == ("kolektorsdd_first35", "kolektorsdd")
    assert counts(category) == (4, 4, 2)
    check_pairs(category, kolektorsdd, "_label")
    assert {sample.id.split("/")[0] for sample in category.train} == {"kos01", "kos35"}
    assert [sample.id for sample in category.test if sample.label] == ["kos36/Part1.jpg", "kos50/Part1.jpg"]
    assert {sample.group for sample in category.test} == {"kolektorsdd/kos36", "kolektorsdd/kos50"}
    assert check_dataset("kolektorsdd_first35", kolektorsdd) == []
    (kolektorsdd / "kos36/Part0_label.bmp").unlink()
    (kolektorsdd / "kos50/Part0_label.bmp").write_bytes(b"BM")
    with pytest.raises(HrbenchError, match=r"Part0\.jpg: image without mask, expected .*kos36.Part0_label\.bmp"):
        load_dataset("kolektorsdd_first35", kolektorsdd)
    assert len(check_dataset("kolektorsdd_first35", kolektorsdd)) == 2


def test_kolektorsdd_needs_both_sides_of_its_split(kolektorsdd: Path) -> None:
    for commutator in ("kos36", "kos50"):
        shutil.rmtree(kolektorsdd / commutator)
    with pytest.raises(HrbenchError, match=r"not the root of KolektorSDD, .*; looked for kos01 and kos36"):
        load_dataset("kolektorsdd_first35", kolektorsdd)


def test_real_iad_by_its_split_files(real_iad: Path) -> None:
    (usb,) = load_dataset("real_iad", real_iad).categories
    assert counts(usb) == (4, 3, 1)
    check_pairs(usb, real_iad, "")
    groups: dict[str, list[tuple[str, int]]] = {}
    for sample in usb.test:
        groups.setdefault(sample.group, []).append((sample.condition, sample.label))
    assert groups == {"usb/NG/HS/S0004": [("C1", 1), ("C2", 0)], "usb/OK/S0003": [("C1", 0), ("C2", 0)]}
    assert [sample.defect_type for sample in usb.test] == ["HS", "good", "good", "good"]
    missing = check_dataset("real_iad", real_iad)
    assert len(missing) == 29
    assert str(missing[0]).endswith(
        f"audiojack: missing, expected {real_iad}/realiad_raw/audiojack and {real_iad}/realiad_jsons/audiojack.json"
    )


def test_real_iad_takes_what_a_noisy_split_trains_on_as_normal(real_iad: Path, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.toml"
    noisy.write_text('base = "real_iad"\nname = "real_iad_fuiad_0.1"\nsplits = "realiad_jsons_fuiad_0.1"\n')
    (usb,) = load_dataset(noisy, real_iad).categories  # from the folder of folders that archives unpack into
    assert counts(usb) == (5, 3, 1)
    check_pairs(usb, real_iad, "")
    (noise,) = [sample for sample in usb.train if "/NG/" in sample.id]
    assert (noise.label, noise.mask, noise.defect_type) == (0, None, "good")


GOOD_ROW = real_iad_row("OK/S0003/usb_0003_OK_C1_20231023", "OK", masked=False)
BAD_ROW = real_iad_row("NG/HS/S0004/usb_0004_NG_HS_C1_20231023", "HS", masked=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (BAD_ROW | {"image_path": "../../secret.png"}, "leaves its folder"),
        (BAD_ROW | {"image_path": "OK/S0009/x.jpg"}, r"x\.jpg: no such file, expected by .*usb\.json, test\[1\]"),
        (BAD_ROW | {"mask_path": None}, r"test\[1\]: defective image .*_C1_20231023\.jpg has no mask"),
        (BAD_ROW | {"anomaly_class": "OK"}, r"test\[1\]: normal image .* with mask"),
        (GOOD_ROW | {"anomaly_class": "HS", "mask_path": BAD_ROW["mask_path"]}, "does not carry the stem"),
        ({"image_path": 3}, r"test\[1\]: \{'image_path': 3\}, expected image_path, anomaly_class and mask_path"),
        (GOOD_ROW, r"usb_0003_OK_C1_20231023\.jpg is listed twice"),
    ],
)
def test_real_iad_split_file_with_a_bad_row(real_iad: Path, row: dict[str, str | None], message: str) -> None:
    rows = {
        "train": [real_iad_row(f"OK/S000{i}/usb_000{i}_OK_C1_20231023", "OK", masked=False) for i in (1, 2)],
        "test": [GOOD_ROW, row],
    }
    write_real_iad_split(real_iad / "realiad_jsons/usb.json", rows)
    write_image(real_iad / "secret.png")
    with pytest.raises(HrbenchError, match=message):
        load_dataset("real_iad", real_iad)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"meta": {"prefix": "usb/"}}', '{"meta": {"prefix": 1, "normal_class": "OK"}}', "[" * 100_000]
)
def test_real_iad_split_file_that_is_none(real_iad: Path, text: str) -> None:
    (real_iad / "realiad_jsons/usb.json").write_text(text)
    with pytest.raises(HrbenchError, match=r"usb\.json: not a split file, expected JSON with .*meta\.prefix"):
        load_dataset("real_iad", real_iad)


def test_btad_leaves_images_out_whose_masks_are_of_no_use_and_says_so(btad: Path) -> None:
    empty = write_mask(btad / "01/ground_truth/ko/000.png", value=0)
    other = write_mask(btad / "02/ground_truth/ko/001.png", size=(12, 17))
    first, second = load_dataset("btad", btad).categories
    assert (counts(first), counts(second)) == ((3, 2, 1), (3, 2, 1))
    assert first.left_out == (f"{empty}: mask with no defect pixel: 01/test/ko/000.bmp is left out",)
    assert second.left_out == (
        f"{other}: mask is 12 x 17 (height x width), its image 12 x 16: 02/test/ko/001.png is left out",
    )
    findings = list(map(str, check_files(load_dataset("btad", btad))))
    assert findings == [f"warning: {text}" for text in (*first.left_out, *second.left_out)]
    other.write_bytes(b"no mask")  # that is damage, not a quirk of the dataset
    assert counts(load_dataset("btad", btad, ["02"]).categories[0]) == (3, 2, 2)
    assert [finding.severity for finding in check_files(load_dataset("btad", btad, ["02"]))] == ["error"]


@pytest.mark.parametrize("suffix", ["_mask", ""])
def test_folder_of_several_categories(tmp_path: Path, suffix: str) -> None:
    root = tmp_path / "my parts"
    write_tree(root / "gear", suffix=suffix, image_suffix=".jpg")
    write_tree(root / "axle", suffix=suffix, image_suffix=".tif")
    (root / "notes").mkdir()
    dataset = load_dataset("folder", root)
    assert dataset.name == "my parts"
    assert [category.name for category in dataset.categories] == ["axle", "gear"]
    assert all(counts(category) == (3, 2, 4) for category in dataset.categories)
    assert load_dataset("folder", root, ["gear"]).categories == dataset.categories[1:]


def test_folder_that_is_a_category(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "gear")
    dataset = load_dataset("folder", tmp_path / "gear")
    assert [category.name for category in dataset.categories] == ["gear"]
    assert dataset.categories[0].test[0].id == "test/crack/000.png"
    monkeypatch.chdir(tmp_path / "gear")
    assert load_dataset("folder", ".").name == "gear"


def test_folder_takes_masks_of_any_image_type_and_leaves_other_training_images_out(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear", kinds=("crack",))
    (root / "ground_truth/crack/000_mask.png").unlink()
    write_mask(root / "ground_truth/crack/000.bmp")
    write_image(root / "train/crack/000.png")
    write_mask(root / "ground_truth/good/000.png", value=0)
    assert counts(load_dataset("folder", root).categories[0]) == (3, 2, 2)


def test_partial_download_is_not_an_error_but_a_missing_category_is(mvtec_ad: Path) -> None:
    assert len(load_dataset("mvtec_ad", mvtec_ad, ["cable"]).categories) == 1
    with pytest.raises(HrbenchError, match=r"category 'screw' of MVTec AD is not there.*found: bottle, cable"):
        load_dataset("mvtec_ad", mvtec_ad, ["screw"])
    with pytest.raises(HrbenchError, match=r"unknown category of mvtec_ad 'botle'; did you mean 'bottle'"):
        load_dataset("mvtec_ad", mvtec_ad, ["botle"])


def test_no_category_at_all_is_a_mistake(mvtec_ad: Path) -> None:
    with pytest.raises(HrbenchError, match="no category of mvtec_ad given"):
        load_dataset("mvtec_ad", mvtec_ad, [])


def test_a_broken_category_does_not_matter_to_another(mvtec_ad: Path) -> None:
    shutil.rmtree(mvtec_ad / "bottle" / "ground_truth")
    assert load_dataset("mvtec_ad", mvtec_ad, ["cable"]).categories[0].name == "cable"
    with pytest.raises(HrbenchError, match="without a mask"):
        load_dataset("mvtec_ad", mvtec_ad)


@pytest.mark.parametrize("name", list_datasets())
def test_root_that_is_not_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match=r"gone: no such folder, expected (the root of|a dataset folder)"):
        load_dataset(name, tmp_path / "gone")
    write_image(tmp_path / "a.png")
    with pytest.raises(HrbenchError, match=r"a\.png: is a file, expected (the root of|a dataset folder)"):
        load_dataset(name, tmp_path / "a.png")
    with pytest.raises(HrbenchError, match=r"not (the root of .*|a dataset folder); looked for .*; found a\.png"):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("mvtec_ad", "bottle"),
        ("mvtec_ad", "bottle/train"),
        ("mvtec_ad_2", "can/train"),
        ("visa", "candle"),
        ("btad", "01/test"),
        ("kolektorsdd2", "train"),
        ("mpdd", "tubes/test"),
        ("mvtec_3d_ad", "bagel/train/good"),
        ("real_iad", "realiad_raw/usb"),
    ],
)
def test_a_root_that_lies_too_deep_is_hinted_at(name: str, below: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(name)
    with pytest.raises(HrbenchError, match=rf"not the root of .*; did you mean {root}\?"):
        load_dataset(name, root / below)


def test_a_folder_inside_a_category_leads_to_it_and_one_beside_it_nowhere(mvtec_ad: Path) -> None:
    with pytest.raises(HrbenchError, match=rf"did you mean {mvtec_ad / 'bottle'}\?"):
        load_dataset("folder", mvtec_ad / "bottle/train/good")
    (mvtec_ad / "other").mkdir()
    with pytest.raises(HrbenchError, match=r"found an empty folder; good images belong into PART/train/good"):
        load_dataset("folder", mvtec_ad / "other")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX")
@pytest.mark.parametrize("place", ["train/good/pipe.png", "ground_truth/spot/000_mask.png"])
def test_a_pipe_is_named_and_never_opened(mvtec_ad: Path, place: str) -> None:
    path = mvtec_ad / "bottle" / place
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(HrbenchError, match=rf"{path.name}: is a pipe, socket or device, expected a PNG"):
        load_dataset("mvtec_ad", mvtec_ad)
    found, *_ = check_dataset("mvtec_ad", mvtec_ad, ["bottle"])
    assert "is a pipe" in str(found)


def test_a_folder_named_like_an_image_is_named(mvtec_ad: Path) -> None:
    (mvtec_ad / "bottle/test/good/009.png").mkdir()
    with pytest.raises(HrbenchError, match=r"009\.png: is a folder, expected a PNG"):
        load_dataset("mvtec_ad", mvtec_ad)


def test_root_one_level_too_high_is_hinted_at(mvtec_ad: Path) -> None:
    with pytest.raises(HrbenchError, match=r"did you mean .*mvtec_anomaly_detection"):
        load_dataset("mvtec_ad", mvtec_ad.parent)


def test_defective_image_without_mask(mvtec_ad: Path) -> None:
    (mvtec_ad / "cable/ground_truth/spot/001_mask.png").unlink()
    with pytest.raises(HrbenchError, match=r"spot.001\.png: defective image without a mask.*001_mask\.png"):
        load_dataset("mvtec_ad", mvtec_ad)


def test_mask_without_image(mvtec_ad: Path) -> None:
    orphan = write_mask(mvtec_ad / "cable/ground_truth/spot/007_mask.png")
    with pytest.raises(HrbenchError, match=r"007_mask\.png: mask without image"):
        load_dataset("mvtec_ad", mvtec_ad)
    orphan.unlink()
    write_mask(mvtec_ad / "cable/ground_truth/bent/000_mask.png")
    with pytest.raises(HrbenchError, match=r"bent.000_mask\.png: mask without image"):
        load_dataset("mvtec_ad", mvtec_ad)


def test_a_mask_of_another_stem_does_not_pair(mvtec_ad: Path) -> None:
    truth = mvtec_ad / "cable/ground_truth/spot"
    (truth / "001_mask.png").rename(truth / "0001_mask.png")
    with pytest.raises(HrbenchError, match=r"001\.png: defective image without a mask"):
        load_dataset("mvtec_ad", mvtec_ad)


def test_duplicate_stem(mvtec_ad: Path) -> None:
    write_image(mvtec_ad / "cable/train/good/000.jpg")
    with pytest.raises(HrbenchError, match=r"000\.png: same stem as 000\.jpg"):
        load_dataset("mvtec_ad", mvtec_ad)


def test_two_masks_for_one_image(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear")
    write_mask(root / "ground_truth/crack/000.png")
    with pytest.raises(HrbenchError, match=r"two masks, .*000_mask\.png and .*000\.png"):
        load_dataset("folder", root)


def test_no_training_and_no_test_images(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "gear")
    shutil.rmtree(root / "train/good")
    (root / "train/good").mkdir()
    with pytest.raises(HrbenchError, match=r"train.good: no training images for gear"):
        load_dataset("folder", root)
    write_image(root / "train/good/000.png")
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "ground_truth")
    with pytest.raises(HrbenchError, match=r"test: no test images for gear"):
        load_dataset("folder", root)


def test_kolektorsdd2_image_or_mask_alone(kolektorsdd2: Path) -> None:
    write_image(kolektorsdd2 / "test/29999.png")
    with pytest.raises(HrbenchError, match=r"29999\.png: image without mask, expected .*29999_GT\.png"):
        load_dataset("kolektorsdd2", kolektorsdd2)
    (kolektorsdd2 / "test/29999.png").rename(kolektorsdd2 / "test/29999_GT.png")
    with pytest.raises(HrbenchError, match=r"29999_GT\.png: mask without image"):
        load_dataset("kolektorsdd2", kolektorsdd2)


NORMAL = ["candle", "train", "normal", "candle/Data/Images/Normal/0000.JPG", ""]
GOOD = ["candle", "test", "normal", "candle/Data/Images/Normal/0003.JPG", ""]
IMAGE, MASK = "candle/Data/Images/Anomaly/000.JPG", "candle/Data/Masks/Anomaly/000.png"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["candle", "test", "anomaly", "../secret.png", MASK], "leaves its folder"),
        (["candle", "test", "anomaly", IMAGE, "/etc/passwd"], "leaves its folder"),
        (["candle", "test", "anomaly", "candle/../../secret.png", MASK], "leaves its folder"),
        (["candle", "test", "anomaly", "candle\\..\\..\\secret.png", MASK], "leaves its folder"),
        (["candle", "test", "anomaly", "C:/secret.png", MASK], "leaves its folder"),
        (["candle", "test", "anomaly", IMAGE, ""], "defective image .*000.JPG has no mask"),
        (["candle", "test", "normal", IMAGE, MASK], "normal image .*000.JPG with mask"),
        (["candle", "test", "anomaly", IMAGE, MASK.replace("000", "001")], "does not carry the stem"),
        (["candle", "test", "anomaly", IMAGE.replace("000", "777"), MASK], "777.JPG: no such file"),
        (["candel", "test", "anomaly", IMAGE, MASK], "'candel'; did you mean 'candle'"),
        (["candle", "tset", "anomaly", IMAGE, MASK], "line 4: candle,tset"),
        (["candle", "test"], "line 4: candle,test"),
        (GOOD, "0003.JPG is listed twice"),
        ([*GOOD[:3], GOOD[3].replace("JPG", "png"), ""], "0003.png has the stem of .*0003.JPG"),
    ],
)
def test_visa_split_file_with_a_bad_row(visa: Path, row: list[str], message: str) -> None:
    write_image(visa.parent / "secret.png")
    write_image(visa / "candle/Data/Images/Normal/0003.png")
    write_split(visa, [NORMAL, GOOD, row])
    with pytest.raises(HrbenchError, match=message):
        load_dataset("visa", visa)


def test_visa_split_file_without_its_columns(visa: Path) -> None:
    (visa / "split_csv/1cls.csv").write_text("object,split,image\n")
    with pytest.raises(HrbenchError, match=r"1cls\.csv: columns object, split, image, expected object, split,"):
        load_dataset("visa", visa)
    (visa / "split_csv/1cls.csv").write_bytes(b"object,split,label,image,mask\n\xff\xfe\n")
    with pytest.raises(HrbenchError, match=r"1cls\.csv: not a text file"):
        load_dataset("visa", visa)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_links_to_folders_are_followed(mvtec_ad: Path, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    root.mkdir()
    (root / "cable").symlink_to(mvtec_ad / "cable", target_is_directory=True)
    assert load_dataset("mvtec_ad", root).categories[0].test[0].id == "cable/test/crack/000.png"
