"""Miniature trees in the exact published layouts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., Path]


def write_image(path: Path, size: tuple[int, int] = (12, 16)) -> Path:
    """Write an RGB image of (height, width), of noise that no other path has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(str(path).encode())).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_mask(path: Path, value: int = 255, size: tuple[int, int] = (12, 16)) -> Path:
    """Write a grey mask with a 3 x 4 defect of `value` in its corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, dtype=np.uint8)
    mask[:3, :4] = value
    Image.fromarray(mask).save(path)
    return path


def write_tree(
    folder: Path,
    *,
    train: str = "train/good",
    test: str = "test",
    truth: str = "ground_truth",
    good: str = "good",
    kinds: tuple[str, ...] = ("crack", "spot"),
    suffix: str = "_mask",
    image_suffix: str = ".png",
) -> Path:
    """Write one category: three training, two good and two images per kind of defect."""
    for i in range(3):
        write_image(folder / train / f"{i:03d}{image_suffix}")
    for i in range(2):
        write_image(folder / test / good / f"{i:03d}{image_suffix}")
        for kind in kinds:
            write_image(folder / test / kind / f"{i:03d}{image_suffix}")
            write_mask(folder / truth / kind / f"{i:03d}{suffix}.png")
    return folder


@pytest.fixture
def mvtec_ad(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec_anomaly_detection"
    for category in ("bottle", "cable"):
        write_tree(root / category)
    (root / "license.txt").write_text("CC BY-NC-SA")
    (root / "bottle" / "test" / ".DS_Store").write_bytes(b"x")
    return root


@pytest.fixture
def mvtec_ad_2(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec_ad_2"
    can = root / "can"
    for i in range(3):
        write_image(can / "train" / "good" / f"{i:03d}_regular.png")
    write_image(can / "validation" / "good" / "000_regular.png")
    for light in ("regular", "overexposed"):
        write_image(can / "test_public" / "good" / f"000_{light}.png")
        write_image(can / "test_public" / "bad" / f"000_{light}.png")
        write_mask(can / "test_public" / "ground_truth" / "bad" / f"000_{light}_mask.png")
    write_image(can / "test_private" / "000_regular.png")
    write_image(can / "test_private_mixed" / "000_mixed.png")
    return root


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    """The archive as published: JPEG images, masks with one value per kind of defect, a split file."""
    root = tmp_path / "VisA"
    rows = []
    for name in ("candle", "pcb1"):
        data = root / name / "Data"
        for i in range(4):
            write_image(data / "Images" / "Normal" / f"{i:04d}.JPG")
            split = "train" if i < 3 else "test"
            rows.append([name, split, "normal", f"{name}/Data/Images/Normal/{i:04d}.JPG", ""])
        for i in range(2):
            write_image(data / "Images" / "Anomaly" / f"{i:03d}.JPG")
            write_mask(data / "Masks" / "Anomaly" / f"{i:03d}.png", value=i + 1)
            image, mask = f"{name}/Data/Images/Anomaly/{i:03d}.JPG", f"{name}/Data/Masks/Anomaly/{i:03d}.png"
            rows.append([name, "test", "anomaly", image, mask])
    write_split(root, rows)
    return root


def write_split(root: Path, rows: list[list[str]]) -> None:
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir(exist_ok=True)
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["object", "split", "label", "image", "mask"], *rows])


@pytest.fixture
def visa_folders(tmp_path: Path) -> Path:
    """VisA as its own preparation script re-organises it."""
    root = tmp_path / "visa_pytorch"
    write_tree(root / "candle", kinds=("bad",), suffix="", image_suffix=".JPG")
    return root


@pytest.fixture
def btad(tmp_path: Path) -> Path:
    root = tmp_path / "BTech_Dataset_transformed"
    for name, suffix in (("01", ".bmp"), ("02", ".png")):
        write_tree(root / name, train="train/ok", good="ok", kinds=("ko",), suffix="", image_suffix=suffix)
    return root


@pytest.fixture
def kolektorsdd2(tmp_path: Path) -> Path:
    root = tmp_path / "KolektorSDD2"
    for split, numbers in (("train", range(10000, 10004)), ("test", range(20000, 20003))):
        for number in numbers:
            write_image(root / split / f"{number}.png")
            write_mask(root / split / f"{number}_GT.png", value=255 * (number % 10 == 1))
    return root


@pytest.fixture
def mpdd(tmp_path: Path) -> Path:
    root = tmp_path / "MPDD"
    write_tree(root / "tubes", kinds=("anomalous",))
    return root


@pytest.fixture
def dtd_synthetic(tmp_path: Path) -> Path:
    root = tmp_path / "DTD-Synthetic"
    write_tree(root / "Mesh_114", kinds=("bad",))
    return root


@pytest.fixture
def goodsad(tmp_path: Path) -> Path:
    root = tmp_path / "GoodsAD"
    write_tree(root / "box", kinds=("opened", "surface"), suffix="", image_suffix=".jpg")
    return root


@pytest.fixture
def threecad(tmp_path: Path) -> Path:
    root = tmp_path / "3CAD"
    write_tree(root / "Iron_Stator", suffix="")
    return root


@pytest.fixture
def viaduct(tmp_path: Path) -> Path:
    """Two views of every part."""
    root = tmp_path / "VIADUCT"
    cog = root / "07Cog"
    for view in range(2):
        for part in range(3):
            write_image(cog / f"train/good/{part:03d}_view{view}.png")
        write_image(cog / f"val/good/000_view{view}.png")
        for kind in ("good", "dent"):
            write_image(cog / f"test/{kind}/000_view{view}.png")
        write_mask(cog / f"ground_truth/dent/000_view{view}.png")
    return root


@pytest.fixture
def mvtec_loco_ad(tmp_path: Path) -> Path:
    """Masks of two regions, side by side, for each defective image; their value is the number of their kind.

    Half of the one of 12 px is enough, and 10 px of that of 24 px.
    """
    root = tmp_path / "mvtec_loco_anomaly_detection"
    box = write_tree(root / "pushpins", kinds=())
    write_image(box / "validation/good/000.png")
    write_defects_config(box, {236: 0.5, 255: 10})
    for kind in ("logical_anomalies", "structural_anomalies"):
        for i in range(2):
            write_image(box / f"test/{kind}/{i:03d}.png")
            write_mask(box / f"ground_truth/{kind}/{i:03d}/000.png", value=236)
            second = np.zeros((12, 16), dtype=np.uint8)
            second[8:, 10:] = 255
            Image.fromarray(second).save(box / f"ground_truth/{kind}/{i:03d}/001.png")
    return root


@pytest.fixture
def autovi(tmp_path: Path) -> Path:
    """RGBA masks, opaque everywhere, of which the first channel has the value of the region's kind."""
    root = tmp_path / "AutoVI"
    screw = write_tree(root / "tank_screw", kinds=())
    write_defects_config(screw, {7: 3})
    coloured = np.zeros((12, 16, 4), dtype=np.uint8)
    coloured[..., 3] = 255
    coloured[:2, :2, :3] = 7
    for i in range(2):
        write_image(screw / f"test/missing/{i:03d}.png")
        path = screw / f"ground_truth/missing/{i:03d}/0000.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(coloured).save(path)
    return root


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Anybody's trees: images and masks of several types, one kind of defect without masks."""
    root = tmp_path / "my parts"
    write_tree(root / "gear", suffix="", image_suffix=".jpg")
    write_tree(root / "axle", train="train/ok", good="ok", image_suffix=".tif")
    write_image(root / "gear/test/stain/000.bmp")
    return root


def write_defects_config(folder: Path, thresholds: dict[int, float]) -> None:
    """Say by the values of masks how much of a region is enough: a share, or whole pixels."""
    rules = [
        {
            "defect_name": f"kind_{value}",
            "pixel_value": value,
            "saturation_threshold": threshold,
            "relative_saturation": isinstance(threshold, float),
        }
        for value, threshold in thresholds.items()
    ]
    (folder / "defects_config.json").write_text(json.dumps(rules))


@pytest.fixture
def kolektorsdd(tmp_path: Path) -> Path:
    """Two commutators for training and two for the test; one image of each has a defect."""
    root = tmp_path / "KolektorSDD"
    for commutator in (1, 35, 36, 50):
        for part in range(3):
            stem = root / f"kos{commutator:02d}" / f"Part{part}"
            write_image(stem.with_suffix(".jpg"))
            write_mask(stem.with_name(f"Part{part}_label.bmp"), value=255 * (part == 1))
    return root


@pytest.fixture
def mvtec_3d_ad(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec_3d_anomaly_detection"
    for place, number in (("train/good", 3), ("validation/good", 1), ("test/good", 2), ("test/hole", 2)):
        for i in range(number):
            folder = root / "bagel" / place
            write_image(folder / "rgb" / f"{i:03d}.png")
            write_image(folder / "xyz" / f"{i:03d}.tiff")
            write_mask(folder / "gt" / f"{i:03d}.png", value=255 * (place == "test/hole"))
    return root


@pytest.fixture
def real_iad(tmp_path: Path) -> Path:
    """Two views of two good samples for training and of a good and a defective one for the test.

    The defective sample shows its defect in its first view only. The noisy split trains on a defective image as well.
    """
    root = tmp_path / "Real-IAD"
    rows: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}
    for number, split in ((1, "train"), (2, "train"), (3, "test"), (4, "test")):
        for view in (1, 2):
            sample, kind = (f"OK/S{number:04d}", "OK") if number < 4 else (f"NG/HS/S{number:04d}", "NG_HS")
            stem = f"{sample}/usb_{number:04d}_{kind}_C{view}_20231023"
            write_image(root / "realiad_raw/usb" / f"{stem}.jpg")
            defective = number == 4 and view == 1
            if defective:
                write_mask(root / "realiad_raw/usb" / f"{stem}.png")
            rows[split].append(real_iad_row(stem, "HS" if defective else "OK", masked=defective))
    write_real_iad_split(root / "realiad_jsons/usb.json", rows)
    noise = real_iad_row("NG/HS/S0005/usb_0005_NG_HS_C1_20231023", "HS", masked=True)
    write_image(root / "realiad_raw/usb" / str(noise["image_path"]))
    write_mask(root / "realiad_raw/usb" / str(noise["mask_path"]))
    noisy = {"train": [*rows["train"], noise], "test": rows["test"]}
    write_real_iad_split(root / "realiad_jsons/realiad_jsons_fuiad_0.1/usb.json", noisy)
    return root


@pytest.fixture
def real_iad_1024(real_iad: Path) -> Path:
    (real_iad / "realiad_raw").rename(real_iad / "realiad_1024")
    return real_iad


def real_iad_row(stem: str, kind: str, *, masked: bool) -> dict[str, str | None]:
    mask = f"{stem}.png" if masked else None
    return {"category": "usb", "anomaly_class": kind, "image_path": f"{stem}.jpg", "mask_path": mask}


def write_real_iad_split(path: Path, rows: dict[str, list[dict[str, str | None]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"prefix": "usb/", "normal_class": "OK", "pre_transform": "pass"}
    path.write_text(json.dumps({"meta": meta, **rows}))
