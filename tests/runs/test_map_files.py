from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tifffile
from PIL import Image

from hrbench.data import Sample
from hrbench.errors import HrbenchError
from hrbench.runs.map_files import find_decisions, find_maps, read_decision, read_map

SIZE = (5, 7)
SCORES = np.random.default_rng(1).normal(size=SIZE)


def sample(id_: str, category: str, kind: str = "good", split: Literal["train", "test"] = "test") -> Sample:
    image = Path("/data") / id_
    bad = kind != "good"
    return Sample(id_, image, image if bad else None, int(bad), kind, split, category)  # type: ignore[arg-type]


MVTEC = [
    sample("gear/test/good/000.png", "gear"),
    sample("gear/test/crack/000.png", "gear", "crack"),
    sample("gear/test/crack/001.png", "gear", "crack"),
]
MVTEC_2 = [
    sample("can/test_public/good/000_regular.png", "can"),
    sample("can/test_public/bad/001_regular.png", "can", "bad"),
]
SINGLE = [sample("test/good/000.jpg", "gear"), sample("test/crack/001.jpg", "gear", "crack")]
VISA = [sample("pcb1/Data/Images/Anomaly/000.JPG", "pcb1", "bad")]


def write(folder: Path, *names: str) -> dict[str, Path]:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return {name: folder / name for name in names}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint16", "int32", ">f4"])
def test_reads_npy(tmp_path: Path, dtype: str) -> None:
    array = (SCORES * 100).astype(dtype) if np.dtype(dtype).kind != "u" else np.arange(35).reshape(SIZE).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    read = read_map(tmp_path / "a.npy", SIZE)
    assert read.dtype == (np.float64 if dtype in ("float64", "int32") else np.float32)  # no score is merged
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array.astype(read.dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint16"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_reads_tiff(tmp_path: Path, dtype: str, compression: str | None) -> None:
    array = np.abs(SCORES * 1000).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tiff", array, compression=compression)
    np.testing.assert_array_equal(read_map(tmp_path / "a.tiff", SIZE), array.astype(np.float32))


def test_reads_lzw_float_tiff(tmp_path: Path) -> None:
    array = SCORES.astype(np.float32)
    Image.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_map(tmp_path / "a.tif", SIZE), array)


def test_reads_16_bit_png_and_single_channel_axes(tmp_path: Path) -> None:
    array = np.arange(35, dtype=np.uint16).reshape(SIZE) * 1800
    Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_map(tmp_path / "a.png", SIZE), array)
    np.save(tmp_path / "b.npy", SCORES[None])
    np.save(tmp_path / "c.npy", SCORES[..., None])
    for name in ("b.npy", "c.npy"):
        np.testing.assert_array_equal(read_map(tmp_path / name, SIZE), SCORES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    array = SCORES.copy()
    array[2, 3] = bad
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(HrbenchError, match=r"a\.npy: the anomaly map has 1 NaN or infinite pixels"):
        read_map(tmp_path / "a.npy", SIZE)


def test_8_bit_maps_are_refused(tmp_path: Path) -> None:
    eight = np.zeros(SIZE, dtype=np.uint8)
    Image.fromarray(eight).save(tmp_path / "a.png")
    Image.fromarray(eight, mode="P").save(tmp_path / "p.png")
    np.save(tmp_path / "a.npy", eight)
    tifffile.imwrite(tmp_path / "a.tif", eight)
    for name in ("a.png", "p.png", "a.npy", "a.tif"):
        with pytest.raises(HrbenchError, match=rf"{name}: 8-bit map.*256 levels destroy metrics that rank pixels"):
            read_map(tmp_path / name, SIZE)


def test_wrong_shapes_and_types_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SCORES.T)
    with pytest.raises(HrbenchError, match=r"a\.npy: map is 7 x 5 \(height x width\), expected 5 x 7"):
        read_map(tmp_path / "a.npy", SIZE)
    np.save(tmp_path / "a.npy", np.stack([SCORES] * 3, axis=-1))
    with pytest.raises(HrbenchError, match=r"a\.npy: array of shape \(5, 7, 3\), expected one channel"):
        read_map(tmp_path / "a.npy", SIZE)
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    with pytest.raises(HrbenchError, match=r"a\.png: array of shape \(5, 7, 3\), expected one channel"):
        read_map(tmp_path / "a.png", SIZE)
    np.save(tmp_path / "a.npy", SCORES.astype(complex))
    with pytest.raises(HrbenchError, match=r"a\.npy: values are complex128"):
        read_map(tmp_path / "a.npy", SIZE)
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(HrbenchError, match=r"a\.jpg: unknown type of map '\.jpg'"):
        read_map(tmp_path / "a.jpg", SIZE)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(HrbenchError, match=r"a\.npy: not a readable array"):
        read_map(tmp_path / "a.npy", SIZE)


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")  # Pillow's, before the error that is ours
def test_damaged_and_missing_maps(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SCORES)
    tifffile.imwrite(tmp_path / "a.tiff", SCORES.astype(np.float32), compression="zlib")
    Image.fromarray(np.zeros(SIZE, dtype=np.uint16)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.tiff", "a.png"):
        data = (tmp_path / name).read_bytes()
        for length in (0, 3, len(data) // 2, len(data) - 30):
            (tmp_path / name).write_bytes(data[:length])
            with pytest.raises(HrbenchError, match=rf"{name}: .*expected"):
                read_map(tmp_path / name, SIZE)
        (tmp_path / name).unlink()
        with pytest.raises(HrbenchError, match=rf"{name}: no such file"):
            read_map(tmp_path / name, SIZE)


@pytest.mark.parametrize(
    ("samples", "names"),
    [
        (MVTEC, ["gear/test/good/000.tiff", "gear/test/crack/000.npy", "gear/test/crack/001.PNG"]),
        (SINGLE, ["test/good/000.tif", "test/crack/001.tif"]),
        (SINGLE, ["gear/test/good/000.tiff", "gear/test/crack/001.tiff"]),
        (SINGLE, ["000.npy", "001.npy"]),
        (SINGLE, ["gear/000.npy", "gear/001.npy"]),
        (VISA, ["pcb1/Data/Images/Anomaly/000.npy"]),
        (VISA, ["pcb1/test/bad/000.tiff"]),
        (MVTEC_2, [f"anomaly_images/can/test_public/{n}_regular.tiff" for n in ("000", "001")]),
        (MVTEC_2, [f"can/test_public/{n}_regular.tiff" for n in ("000", "001")]),
        (
            MVTEC_2,
            [f"anomaly_images/can/test_public/{n}_regular.tiff" for n in ("good/000", "bad/001")],
        ),
    ],
)
def test_finds_maps_in_every_layout(tmp_path: Path, samples: list[Sample], names: list[str]) -> None:
    written = write(tmp_path, *names, "readme.txt", "gear/test/good/999.npy")
    found = find_maps(tmp_path, samples)
    assert list(found) == [sample.id for sample in samples]
    assert list(found.values()) == [written[name] for name in names]


def test_a_file_without_the_defects_folder_must_name_one_image_only(tmp_path: Path) -> None:
    write(tmp_path, "000.npy", "001.npy")
    with pytest.raises(HrbenchError, match=r"no map for 2 of 3 images: gear/test/good/000\.png.*000 alone"):
        find_maps(tmp_path, MVTEC)
    write(tmp_path, "gear/test/good/000.npy", "gear/test/crack/000.npy")
    assert find_maps(tmp_path, MVTEC)["gear/test/crack/001.png"] == tmp_path / "001.npy"


def test_missing_maps_are_counted_and_named(tmp_path: Path) -> None:
    samples = [sample(f"gear/test/good/{i:03d}.png", "gear") for i in range(9)]
    write(tmp_path, *(f"gear/test/good/{i:03d}.npy" for i in range(4)))
    with pytest.raises(HrbenchError, match=r"no map for 5 of 9 images: .*004\.png, .*005\.png, .*006\.png, \.\.\.;"):
        find_maps(tmp_path, samples)
    with pytest.raises(HrbenchError, match=r"gone: no such folder, expected one with an anomaly map per image"):
        find_maps(tmp_path / "gone", samples)


@pytest.mark.parametrize("second", ["gear/test/crack/001.npy", "anomaly_images/gear/test/001.tiff", "001.npy"])
def test_two_candidates_are_both_named(tmp_path: Path, second: str) -> None:
    write(tmp_path, "gear/test/good/000.tiff", "gear/test/crack/000.tiff", "gear/test/crack/001.tiff", second)
    with pytest.raises(HrbenchError, match=r"001\.png: two candidates for its map, .*001\.\w+ and .*001\.\w+;"):
        find_maps(tmp_path, MVTEC)


def test_the_dataset_itself_is_not_taken_for_maps(tmp_path: Path) -> None:
    image = write(tmp_path, "test/bad/000.png")["test/bad/000.png"]
    inside = [Sample("test/bad/000.png", image, None, 0, "good", "test", "gear")]
    with pytest.raises(HrbenchError, match="no map for 1 of 1 images"):
        find_maps(tmp_path, inside)


def test_finds_decisions_beside_the_maps(tmp_path: Path) -> None:
    names = [f"anomaly_images_thresholded/can/test_public/{n}_regular.png" for n in ("000", "001")]
    maps = [f"anomaly_images/can/test_public/{n}_regular.tiff" for n in ("000", "001")]
    write(tmp_path, *maps)
    assert find_decisions(tmp_path, MVTEC_2) == {}
    written = write(tmp_path, *names)
    for folder in (tmp_path, tmp_path / "anomaly_images"):
        assert list(find_decisions(folder, MVTEC_2).values()) == list(written.values())
        assert [path.suffix for path in find_maps(folder, MVTEC_2).values()] == [".tiff", ".tiff"]
    written[names[1]].unlink()
    with pytest.raises(HrbenchError, match=r"no decision for 1 of 2 images: can/test_public/bad/001_regular\.png"):
        find_decisions(tmp_path, MVTEC_2)


def test_reads_decisions(tmp_path: Path) -> None:
    path = tmp_path / "d.png"
    decision = SCORES > 0
    Image.fromarray(decision * np.uint8(255)).save(path)
    np.testing.assert_array_equal(read_decision(path, SIZE), decision)
    with pytest.raises(HrbenchError, match=r"d\.png: mask is 5 x 7 .*expected 7 x 5"):
        read_decision(path, (7, 5))
    Image.fromarray(decision * np.uint8(1)).save(path)
    with pytest.raises(HrbenchError, match=r"d\.png: values 1 found, expected only 0 and 255"):
        read_decision(path, SIZE)
    Image.new("RGB", (7, 5)).save(path)
    with pytest.raises(HrbenchError, match=r"d\.png: 3 channels, expected one"):
        read_decision(path, SIZE)
