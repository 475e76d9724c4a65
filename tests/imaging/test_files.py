from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hrbench.errors import HrbenchError
from hrbench.imaging import check_image, image_size, read_image, read_mask, read_pixels
from hrbench.imaging import files as imaging

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)


def filter_rows(rows: np.ndarray, stride: int) -> bytes:
    """Filter PNG rows (H, bytes), the five filters in turn, byte by byte as the specification has it."""
    above, out = np.zeros(rows.shape[1], dtype=int), b""
    for number, row in enumerate(rows.astype(int)):
        kind, line = number % 5, []
        for i, value in enumerate(row):
            left = row[i - stride] if i >= stride else 0
            up, corner = above[i], above[i - stride] if i >= stride else 0
            p = left + up - corner
            paeth = min((abs(p - left), 0, left), (abs(p - up), 1, up), (abs(p - corner), 2, corner))[2]
            line.append((value - [0, left, up, (left + up) // 2, paeth][kind]) % 256)
        out, above = out + bytes([kind, *line]), row
    return out


def write_png16(path: Path, array: np.ndarray) -> Path:
    """Write (H, W, C) uint16 as PNG, which pillow cannot."""
    height, width, channels = array.shape
    rows = np.frombuffer(array.astype(">u2").tobytes(), dtype=np.uint8).reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(filter_rows(rows, 2 * channels)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b""))
    return path


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def grey3(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_rgb_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(RGB), **({"lossless": True} if suffix == "webp" else {}))
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, RGB)
    assert image_size(path) == (5, 7)


def test_grey_and_alpha(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "l.png", Image.fromarray(GREY))), grey3(GREY))
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(RGBA))), RGBA[..., :3])
    grey_alpha = Image.fromarray(np.stack([GREY, GREY // 2], axis=-1), mode="LA")
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", grey_alpha)), grey3(GREY))


@pytest.mark.parametrize("transparent", [None, 1, bytes([0, 128, 255])])
def test_palette_gives_its_colours(tmp_path: Path, transparent: int | bytes | None) -> None:
    colours = np.array([[10, 20, 30], [200, 100, 0], [7, 8, 9]], dtype=np.uint8)
    index = RNG.integers(0, 3, (5, 7), dtype=np.uint8)
    image = Image.fromarray(index, mode="P")
    image.putpalette(colours.tobytes())
    path = save(tmp_path / "p.png", image, **({} if transparent is None else {"transparency": transparent}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), colours[index])


def test_one_bit_and_cmyk(tmp_path: Path) -> None:
    bits = GREY > 127
    for suffix in ("png", "tif", "bmp", "pbm"):
        path = save(tmp_path / f"b.{suffix}", Image.fromarray(bits))
        np.testing.assert_array_equal(read_image(path), grey3(bits * np.uint8(255)), err_msg=suffix)
    flat = np.full((8, 8, 4), (0, 255, 255, 0), dtype=np.uint8)
    for suffix in ("jpg", "tif"):
        red = read_image(save(tmp_path / f"c.{suffix}", Image.fromarray(flat, mode="CMYK")))
        assert red.shape == (8, 8, 3)
        assert np.abs(red.astype(int) - (255, 0, 0)).max() <= 3, suffix


def test_16_bit_grey_png(tmp_path: Path) -> None:
    path = save(tmp_path / "g.png", Image.fromarray(DEEP[..., 0]))
    read = read_image(path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, grey3(DEEP[..., 0]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_all_bits_under_every_filter(tmp_path: Path, channels: int) -> None:
    array = RNG.integers(0, 65536, (11, 6, channels), dtype=np.uint16)
    read = read_image(write_png16(tmp_path / "deep.png", array))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, array[..., :3] if channels > 2 else grey3(array[..., 0]))
    assert image_size(tmp_path / "deep.png") == (11, 6)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("array", [GREY, RGB, DEEP, DEEP[..., 0]], ids=["grey8", "rgb8", "rgb16", "grey16"])
def test_tiff(tmp_path: Path, array: np.ndarray, compression: str | None) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, array, compression=compression)
    read = read_image(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array if array.ndim == 3 else grey3(array))
    assert image_size(path) == (5, 7)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_lzw_tiff_as_other_tools_write_it(tmp_path: Path, mode: str) -> None:
    array = {"L": GREY, "RGB": RGB, "I;16": DEEP[..., 0]}[mode]
    path = save(tmp_path / "a.tif", Image.fromarray(array), compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(path), array if array.ndim == 3 else grey3(array))


def test_tiff_palette_and_planes(tmp_path: Path) -> None:
    colours = np.array([[10, 20, 30], [200, 100, 0]], dtype=np.uint8)
    index = RNG.integers(0, 2, (5, 7), dtype=np.uint8)
    image = Image.fromarray(index, mode="P")
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(read_image(save(tmp_path / "p.tif", image)), colours[index])
    tifffile.imwrite(tmp_path / "s.tif", np.moveaxis(RGB, 2, 0), planarconfig="separate", photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "s.tif"), RGB)
    tifffile.imwrite(tmp_path / "w.tif", GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "w.tif"), grey3(255 - GREY))


def test_tiff_of_floats_and_stacks_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "f.tif", GREY.astype(np.float32))
    with pytest.raises(HrbenchError, match=r"f\.tif: pixels are float32, expected uint8 or uint16"):
        read_image(tmp_path / "f.tif")
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((4, 5, 7), dtype=np.uint8), photometric="minisblack")
    with pytest.raises(HrbenchError, match=r"s\.tif: holds an array .*\(4, 5, 7\), expected one image"):
        read_image(tmp_path / "s.tif")


def upright(orientation: int, stored: np.ndarray) -> np.ndarray:
    """Apply the EXIF orientation, each case written out."""
    return {
        1: stored,
        2: np.fliplr(stored),
        3: np.rot90(stored, 2),
        4: np.flipud(stored),
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90(stored, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"e.{suffix}", Image.fromarray(RGB), exif=exif, **options)
    expected = upright(orientation, RGB)
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpeg_and_tiff(tmp_path: Path, orientation: int) -> None:
    blocks = np.kron(RNG.integers(0, 2, (2, 3), dtype=np.uint8) * 200 + 20, np.ones((16, 16), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "e.jpg", Image.fromarray(blocks), exif=exif, quality=95)
    expected = upright(orientation, blocks)
    assert image_size(path) == expected.shape
    assert np.abs(read_image(path)[..., 0].astype(int) - expected).max() < 12
    for compression in ("raw", "tiff_lzw"):
        path = save(tmp_path / "e.tif", Image.fromarray(blocks), tiffinfo={274: orientation}, compression=compression)
        np.testing.assert_array_equal(read_image(path)[..., 0], expected)
        assert image_size(path) == expected.shape


def test_16_bit_png_with_orientation(tmp_path: Path) -> None:
    path = write_png16(tmp_path / "deep.png", DEEP)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    stored = path.read_bytes()
    path.write_bytes(stored[:33] + chunk + stored[33:])
    np.testing.assert_array_equal(read_image(path), np.rot90(DEEP, -1))
    assert image_size(path) == (7, 5)


def test_mask_and_image_turn_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = GREY > 200
    image = save(tmp_path / "i.jpg", Image.fromarray(RGB), exif=exif)
    path = save(tmp_path / "m.png", Image.fromarray(mask * np.uint8(255)), exif=exif)
    np.testing.assert_array_equal(read_mask(path, image_size(image)), np.rot90(mask, -1))


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "e.jpg", Image.fromarray(RGB), exif=b"Exif\0\0garbage")
    assert read_image(path).shape == (5, 7, 3)


@pytest.mark.parametrize("coding", [1, 255, 3])
def test_mask_codings(tmp_path: Path, coding: int) -> None:
    mask = RNG.random((5, 7)) < 0.4
    path = save(tmp_path / "m.png", Image.fromarray(mask * np.uint8(coding)))
    read = read_mask(path, (5, 7))
    assert read.dtype == bool
    np.testing.assert_array_equal(read, mask)


def test_masks_of_classes_colours_and_bits(tmp_path: Path) -> None:
    classes = RNG.integers(0, 4, (5, 7))
    for name, array in {
        "classes": classes.astype(np.uint8),
        "deep": (classes * 256).astype(np.uint16),
        "blue": np.stack([0 * classes, 0 * classes, classes], axis=-1).astype(np.uint8),
        "alpha": np.stack([classes, 0 * classes, 0 * classes, 0 * classes + 255], axis=-1).astype(np.uint8),
        "bits": classes > 0,
    }.items():
        path = save(tmp_path / f"{name}.png", Image.fromarray(array))
        np.testing.assert_array_equal(read_mask(path), classes > 0, err_msg=name)
    path = write_png16(tmp_path / "deep3.png", np.stack([0 * classes, classes, 0 * classes], -1).astype(np.uint16))
    np.testing.assert_array_equal(read_mask(path), classes > 0)
    tifffile.imwrite(tmp_path / "labels.tif", classes.astype(np.int32))
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.tif"), classes > 0)
    palette = Image.fromarray(classes.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128])
    np.testing.assert_array_equal(read_mask(save(tmp_path / "palette.png", palette)), classes > 0)


def test_mask_of_another_size(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(GREY))
    with pytest.raises(HrbenchError, match=r"m\.png: mask is 5 x 7 .*, expected 7 x 5 as its image"):
        read_mask(path, (7, 5))


def test_lossy_and_float_masks_are_refused(tmp_path: Path) -> None:
    disc = (np.hypot(*np.mgrid[-16:16, -16:16]) < 9) * np.uint8(255)
    with pytest.raises(HrbenchError, match=r"m\.jpg: mask in a lossy format: .*save it as PNG"):
        read_mask(save(tmp_path / "m.jpg", Image.fromarray(disc), quality=80))
    tifffile.imwrite(tmp_path / "m.tif", disc.astype(np.float32))
    with pytest.raises(HrbenchError, match=r"m\.tif: mask pixels are float32, expected integers"):
        read_mask(tmp_path / "m.tif")


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_missing_empty_and_foreign_files(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(HrbenchError, match=r"gone\.png: no such file, expected a PNG"):
        read(tmp_path / "gone.png")
    with pytest.raises(HrbenchError, match="is a folder, expected a PNG"):
        read(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(HrbenchError, match=r"empty\.png: the file is empty \(0 bytes\), expected a PNG"):
        read(tmp_path / "empty.png")
    for name, content in {"text.png": b"hello, world", "gif.gif": b"GIF89a" + bytes(30), "tif.tif": b"II*\0"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HrbenchError, match=f"{name}: .*expected a"):
            read(tmp_path / name)


NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm", "lzw.tif", "deep.png", "deep.tif"])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"t.{suffix}"
    deep = NOISE.astype(np.uint16) * 257
    if suffix == "deep.png":
        write_png16(path, deep[:16, :16])
    elif suffix == "deep.tif":
        tifffile.imwrite(path, deep, compression="zlib")
    else:
        save(path, Image.fromarray(NOISE), **({"compression": "tiff_lzw"} if suffix == "lzw.tif" else {}))
    data = path.read_bytes()
    path.write_bytes(data[: max(1, int(share * len(data)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(HrbenchError, match=r"t\..*expected"):
            read_image(path)
        with pytest.raises(HrbenchError, match=r"t\..*expected"):
            check_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "zlib.tif", "deep.png", "deep.tif"])
def test_a_complete_file_is_not_decoded_to_be_checked(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, deep = tmp_path / f"t.{suffix}", NOISE.astype(np.uint16)[:40]
    if suffix == "deep.png":
        write_png16(path, deep[:, :16])
    elif suffix.endswith("tif"):
        zlib_or_none = "zlib" if suffix == "zlib.tif" else None
        tifffile.imwrite(path, deep, compression=zlib_or_none, photometric="rgb")
    else:
        Image.fromarray(NOISE[:40]).save(path)
    monkeypatch.setattr(imaging, "read_image", None)
    assert check_image(path) == (40, 16 if suffix == "deep.png" else 64)


@pytest.mark.parametrize("suffix", ["png", "jpg", "ppm", "lzw.tif", "predictor.tif"])
def test_what_the_end_of_a_file_leaves_open_is_decoded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    tiff = {"lzw.tif": "tiff_lzw", "predictor.tif": "tiff_adobe_deflate"}
    options: dict[str, object] = {"compression": tiff[suffix]} if suffix in tiff else {}
    if suffix == "predictor.tif":
        options["tiffinfo"] = {317: 2}
    save(path, Image.fromarray(NOISE[:40]), **options)
    if suffix in ("png", "jpg"):
        path.write_bytes(path.read_bytes() + b"what some cameras append")
    assert check_image(path) == (40, 64)
    np.testing.assert_array_equal(image_size(path), read_image(path).shape[:2])


def test_16_bit_colour_ppm_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 # deep\n7 5\n65535\n" + DEEP.astype(">u2").tobytes())
    with pytest.raises(HrbenchError, match=r"a\.ppm: PPM with maximum 65535, expected 255"):
        read_image(path)
    path.write_bytes(b"P5 7 5 65535\n" + DEEP[..., 0].astype(">u2").tobytes())
    np.testing.assert_array_equal(read_image(path), grey3(DEEP[..., 0]))


def test_large_images_pass_pillows_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Image.MAX_IMAGE_PIXELS == imaging.MAX_PIXELS > 180_000_000
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(HrbenchError, match=r"a\.png: .*expected at most"):
        read_image(path)


def test_image_size_reads_the_header_only(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(NOISE))
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (64, 64)


@pytest.mark.parametrize("height", [1, 255, 256, 257, 700])
@pytest.mark.parametrize(("mode", "shape"), [("L", ()), ("LA", (2,)), ("RGB", (3,)), ("RGBA", (4,)), ("I;16", ())])
def test_pixels_copied_in_bands_are_all_there(tmp_path, height, mode, shape):
    dtype = np.uint16 if mode == "I;16" else np.uint8
    pixels = np.random.default_rng(height).integers(0, np.iinfo(dtype).max, (height, 5, *shape)).astype(dtype)
    Image.fromarray(pixels).save(path := tmp_path / "image.png")
    found = read_pixels(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)
    assert read_image(path).flags.writeable
