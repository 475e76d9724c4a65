from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hrbench.data import Category, check_dataset, load_dataset
from hrbench.errors import HrbenchError
from hrbench.imaging import files as imaging

from .conftest import write_image, write_mask, write_split, write_tree


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


@pytest.mark.parametrize("name", ["mvtec_ad", "mvtec_ad_2", "visa", "btad", "kolektorsdd2", "folder"])
def test_root_that_is_not_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match=r"gone: no such folder, expected the root of"):
        load_dataset(name, tmp_path / "gone")
    write_image(tmp_path / "a.png")
    with pytest.raises(HrbenchError, match=r"a\.png: is a file, expected the root of"):
        load_dataset(name, tmp_path / "a.png")
    with pytest.raises(HrbenchError, match=r"not the root of .*; looked for .*; found a\.png"):
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
    with pytest.raises(HrbenchError, match=r"found an empty folder$"):
        load_dataset("folder", mvtec_ad / "other")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are POSIX")
@pytest.mark.parametrize("place", ["train/good/pipe.png", "ground_truth/spot/000_mask.png"])
def test_a_pipe_is_named_and_never_opened(mvtec_ad: Path, place: str) -> None:
    path = mvtec_ad / "bottle" / place
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(HrbenchError, match=rf"{path.name}: is a pipe, socket or device, expected a PNG"):
        load_dataset("mvtec_ad", mvtec_ad)
    (found,) = check_dataset("mvtec_ad", mvtec_ad, ["bottle"])
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
