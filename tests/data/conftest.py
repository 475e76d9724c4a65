"""Miniature trees in the exact published layouts."""

from __future__ import annotations

import csv
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
