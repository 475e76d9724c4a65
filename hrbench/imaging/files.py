"""Images and masks at native resolution: what is in the file is what is measured, bit depth included.

Pillow decodes what has 8 bits per channel, tifffile decodes TIFF. PNG with 16 bits per channel and colour,
which pillow would cut to 8 bits without a word, is recognised by its header and decoded in full.
"""

from __future__ import annotations

import lzma
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hrbench.errors import HrbenchError

__all__ = [
    "IMAGE_SUFFIXES",
    "check_image",
    "image_size",
    "png_depth",
    "read_image",
    "read_mask",
    "read_pixels",
    "read_region",
    "read_tiff",
    "refuse_no_file",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""File name endings (lower case) that count as images."""

MAX_PIXELS = 10**9
"""Larger images are refused; pillow's own limit (179 Mpx) is below what line-scan cameras deliver."""

# Set here, where every file is opened, and not per call: data loaders read in several threads.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_BAND = 256  # rows
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
_EXPECTED = "expected a PNG, JPEG, BMP, WebP, PPM or TIFF image"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_COLOURS = (0, 1, 2, 3, 6, 32803)  # photometric interpretations that tifffile decodes to grey, palette or RGB
_ORIENTATION = 0x0112
_DECODER_ERRORS = (  # what pillow, tifffile and zlib raise on damaged files
    OSError,
    SyntaxError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,  # a damaged header may ask for any size
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tifffile.TiffFileError,
    zlib.error,
)


def read_image(path: Path | str) -> NDArray[Any]:
    """Read an image as a viewer shows it: EXIF rotation applied, alpha dropped, three channels.

    Parameters
    ----------
    path : Path or str
        PNG, JPEG, BMP, WebP, PPM or TIFF; grey, palette, 1-bit, CMYK or RGB, with or without alpha.

    Returns
    -------
    ndarray, shape (H, W, 3)
        ``uint8``, or ``uint16`` if the file holds more than 8 bits per channel. Grey is repeated three times.

    Raises
    ------
    HrbenchError
        If the file is missing, empty, truncated, not an image, or of a type without a fixed white (floats).
    """
    path = Path(path)
    array = read_pixels(path)
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype not in (np.uint8, np.uint16):
        raise HrbenchError(
            f"{path}: pixels are {array.dtype}, expected uint8 or uint16: scale the image to one of them"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] < 3:
        array = np.repeat(array[..., :1], 3, axis=2)
    array = np.ascontiguousarray(array[..., :3])
    return array if array.flags.writeable else array.copy()


def read_mask(path: Path | str, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read a defect mask: every pixel that is not black is a defect.

    This covers the codings {0, 1}, {0, 255}, one grey level per class and coloured classes; alpha is ignored.

    Parameters
    ----------
    path : Path or str
    size : tuple of int, optional
        Height and width of the image that the mask belongs to.

    Returns
    -------
    ndarray of bool, shape (H, W)

    Raises
    ------
    HrbenchError
        If the file cannot be read, has another size, holds floats, or was stored by a lossy format, whose
        ringing would count as defect.
    """
    return _read_mask(Path(path), size)[0]


def read_region(
    path: Path | str, size: tuple[int, int] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.integer[Any]]]:
    """Read a mask as :func:`read_mask` does, and the distinct values of its defect pixels, rising.

    Of a colour that is the value in the first channel, as where all three hold the same.
    """
    mask, array = _read_mask(Path(path), size)
    return mask, np.unique((array if array.ndim == 2 else array[..., 0])[mask])


def _read_mask(path: Path, size: tuple[int, int] | None) -> tuple[NDArray[np.bool_], NDArray[np.integer[Any]]]:
    """Return a mask and the pixels, (H, W) or (H, W, C), that it follows from."""
    array = read_pixels(path)
    if array.dtype.kind not in "bui":
        raise HrbenchError(f"{path}: mask pixels are {array.dtype}, expected integers (0 = normal)")
    if array.ndim == 3:
        array = array[..., :1] if array.shape[2] == 2 else array[..., :3]
    mask: NDArray[np.bool_] = array != 0 if array.ndim == 2 else (array != 0).any(axis=2)
    if _lossy(path):
        between = np.count_nonzero((array > 0) & (array < 255))
        if between:
            raise HrbenchError(
                f"{path}: mask in a lossy format: {between} values are neither 0 nor 255; "
                "expected a lossless mask: save it as PNG"
            )
    if size is not None and mask.shape != tuple(size):
        raise HrbenchError(f"{path}: mask is {_by(mask.shape)} (height x width), expected {_by(size)} as its image")
    return mask, array


def image_size(path: Path | str) -> tuple[int, int]:
    """Return (height, width) of an image or mask as :func:`read_image` gives it, from the header alone.

    Raises
    ------
    HrbenchError
        If the file is missing, empty or has no readable header.
    """
    path = Path(path)
    with _readable(path):
        if _head(path)[:4] in _TIFF_SIGNATURES:
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                size, orientation = (page.imagelength, page.imagewidth), _tiff_orientation(page)
        else:
            with Image.open(path, formats=_PILLOW_FORMATS) as image:
                size, orientation = (image.height, image.width), _exif_orientation(image)
    return size[::-1] if orientation >= 5 else size


def check_image(path: Path | str) -> tuple[int, int]:
    """Return an image's (height, width) if its file is complete and of a type that :func:`read_image` takes.

    Reads the header and the end of the file, and decodes only where these leave it open: what is damaged in between
    is not found.

    Raises
    ------
    HrbenchError
        As :func:`read_image`.
    """
    path = Path(path)
    with _readable(path):
        if _head(path)[:4] in _TIFF_SIGNATURES:
            with tifffile.TiffFile(path) as file:
                _refuse_stacks(path, file)
                complete = _tiff_complete(path, file.pages.first)
        else:
            with Image.open(path, formats=_PILLOW_FORMATS) as image:
                _refuse_huge(path, image.size)
                complete = _complete(path, image)
    if not complete:
        read_image(path)  # says what is wrong, if anything is
    return image_size(path)


def refuse_no_file(path: Path) -> None:
    """Refuse what is no regular file: to open a pipe, a socket or a device might wait for ever.

    Raises
    ------
    HrbenchError
        With what it is.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is a pipe, socket or device" if path.exists() else "no such file"
        raise HrbenchError(f"{path}: {what}, {_EXPECTED}")


def png_depth(path: Path) -> tuple[int, int] | None:
    """Return (bits per channel, channels) from a PNG's header, None if the file is not a PNG.

    A palette counts as one channel.
    """
    head = _head(path)
    if not head.startswith(_PNG_SIGNATURE) or len(head) < 26:
        return None
    bits, colour = head[24], head[25]
    return bits, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)


def read_tiff(path: Path) -> NDArray[Any]:
    """Read a TIFF that holds one image, in the file's own type.

    Returns
    -------
    ndarray, shape (H, W) or (H, W, C)
        TIFF's orientation tag is applied, palettes are looked up, white-is-zero is inverted.

    Raises
    ------
    HrbenchError
        If it holds a stack, is damaged, or uses a compression that neither tifffile nor pillow decodes.
    """
    with _readable(path), tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages.first
        _refuse_stacks(path, file)
        try:
            array = np.asarray(series.asarray())
        except _DECODER_ERRORS as error:
            return _tiff_by_pillow(path, page, error)
        if series.axes == "SYX":
            array = np.moveaxis(array, 0, -1)
        photometric = int(page.photometric)
        if photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            colours = np.asarray(page.colormap)[:, array]
            array = np.moveaxis(colours >> 8, 0, -1).astype(np.uint8)
        elif photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
            array = ~array if array.dtype == bool else np.iinfo(array.dtype).max - array
        elif photometric not in _TIFF_COLOURS and array.dtype.kind != "f":
            return _tiff_by_pillow(path, page, f"colour space {photometric}")
        return _orient(array, _tiff_orientation(page))


def read_pixels(path: Path) -> NDArray[Any]:
    """Decode any supported file as it is: (H, W) or (H, W, C) in the file's own type, orientation applied.

    Palettes come as RGBA, CMYK and other colour spaces as RGB.

    Raises
    ------
    HrbenchError
        If the file is missing, empty, damaged or of an unknown format.
    """
    with _readable(path):
        head = _head(path)
        if head[:4] in _TIFF_SIGNATURES:
            return read_tiff(path)
        depth = png_depth(path)
        if depth is not None and depth[0] == 16 and depth[1] > 1:
            return _colour_png16(path, depth[1])
        with Image.open(path, formats=_PILLOW_FORMATS) as image:
            _refuse_huge(path, image.size)
            _refuse_narrowing(path, image)
            orientation = _exif_orientation(image)
            return _orient(_to_array(path, image), orientation)


def _to_array(path: Path, image: Image.Image) -> NDArray[Any]:
    if image.mode in ("P", "PA", "RGBa", "La"):
        image = image.convert("RGBA")  # by way of alpha: pillow warns about transparent palettes otherwise
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "F", "I") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    array = _copied(image)
    if image.mode == "I":  # pillow's name for 16-bit grey in PGM, and in PNG before version 11
        if array.min() < 0 or array.max() > 65535:
            raise HrbenchError(f"{path}: grey values {array.min()} to {array.max()}, expected at most 16 bits")
        array = array.astype(np.uint16)
    return array.astype(array.dtype.newbyteorder("=")) if not array.dtype.isnative else array


def _copied(image: Image.Image) -> NDArray[Any]:
    """Copy the pixels band by band: at once, pillow would make two more copies of them on the way."""
    image.load()
    bands = range(0, image.height, _BAND)
    parts = (np.asarray(image.crop((0, top, image.width, min(top + _BAND, image.height)))) for top in bands)
    array: NDArray[Any] | None = None
    for top, part in zip(bands, parts, strict=True):
        if array is None:
            array = np.empty((image.height, *part.shape[1:]), part.dtype)
        array[top : top + _BAND] = part
    return np.asarray(image) if array is None else array


def _colour_png16(path: Path, channels: int) -> NDArray[Any]:
    """Decode a PNG with 16 bits in each of 2, 3 or 4 channels.

    Pillow undoes PNG's filters at full depth and only then unpacks to 8 bits. Unpacked once as big-endian and
    once as little-endian, the same stream gives the high and the low bytes.
    """

    def unpack(mode: str, raw: str) -> NDArray[Any]:
        with Image.open(path, formats=("PNG",)) as image:
            handle: Any = image
            handle._mode = mode
            handle.tile = [(*tile[:3], raw) for tile in handle.tile]
            return np.asarray(image).astype(np.uint16)

    if channels == 2:  # grey and alpha, four bytes: the same stride as 8-bit RGBA
        array = unpack("RGBA", "RGBA")
        array = (array[..., 0::2] << 8) | array[..., 1::2]
    else:
        mode = "RGB" if channels == 3 else "RGBA"
        array = (unpack(mode, f"{mode};16B") << 8) | unpack(mode, f"{mode};16L")
    with Image.open(path, formats=("PNG",)) as image:
        return _orient(array, _exif_orientation(image))


def _complete(path: Path, image: Any) -> bool:
    """Tell whether a file of pillow's formats ends as its format says; False also where that is not known."""
    length = path.stat().st_size
    if image.format == "PNG":
        return _tail(path, len(_PNG_END)) == _PNG_END
    if image.format == "JPEG":
        return _tail(path, 2) == b"\xff\xd9"
    if image.format == "WEBP":
        return int.from_bytes(_head(path)[4:8], "little") + 8 <= length
    if image.format == "BMP":
        codec, _, offset, arguments = image.tile[0]
        return bool(codec == "raw" and offset + arguments[1] * image.height <= length)  # [1]: bytes per row
    return False


def _tiff_complete(path: Path, page: Any) -> bool:
    """Tell whether all data of a TIFF lie inside the file, in a form that is decoded without a doubt."""
    plain = page.compression in (1, 8, 32946) and page.predictor == 1 and page.photometric in _TIFF_COLOURS
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return plain and page.dtype in (np.uint8, np.uint16, np.bool_) and 0 < max(ends) <= path.stat().st_size


def _refuse_stacks(path: Path, file: tifffile.TiffFile) -> None:
    """Refuse stacks, and what only a damaged header can ask for."""
    series, page = file.series[0], file.pages.first
    _refuse_huge(path, (page.imagewidth, page.imagelength))
    if series.axes not in ("YX", "YXS", "SYX"):
        raise HrbenchError(
            f"{path}: holds an array with axes {series.axes} and shape {series.shape}, expected one image"
        )


def _refuse_huge(path: Path, size: tuple[int, int]) -> None:
    """Refuse what only a damaged header can ask for; pillow itself does so at twice its limit and warns below."""
    if size[0] * size[1] > MAX_PIXELS:
        raise HrbenchError(f"{path}: {size[0]} x {size[1]} pixels, expected at most {MAX_PIXELS} in all")


def _refuse_narrowing(path: Path, image: Image.Image) -> None:
    """Refuse a colour PPM with more than 8 bits, which pillow would cut to 8."""
    if image.format != "PPM" or image.mode != "RGB":
        return
    tokens = re.sub(rb"#[^\n]*", b"", _head(path, 512)).split()
    if len(tokens) > 3 and tokens[0] in (b"P3", b"P6") and tokens[3].isdigit() and int(tokens[3]) > 255:
        raise HrbenchError(f"{path}: PPM with maximum {int(tokens[3])}, expected 255: convert it to 16-bit PNG or TIFF")


def _tiff_by_pillow(path: Path, page: Any, reason: Exception | str) -> NDArray[Any]:
    """Decode what tifffile cannot without imagecodecs (LZW, predictors), where pillow keeps all bits."""
    one_channel = page.samplesperpixel == 1
    readable = page.dtype == np.uint8 or (one_channel and page.dtype in (np.uint16, np.float32, np.bool_))
    if readable:
        try:
            with Image.open(path, formats=("TIFF",)) as image:
                image.load()  # this applies the orientation tag
                return _to_array(path, image)
        except _DECODER_ERRORS as error:
            reason = error
    raise HrbenchError(
        f"{path}: TIFF ({page.dtype}, {page.samplesperpixel} channels, compression {page.compression!s}) cannot "
        f"be decoded: {reason}; expected an undamaged file, uncompressed or deflate without predictor"
    )


def _exif_orientation(image: Image.Image) -> int:
    try:
        # The base class's method: PngImageFile.getexif decodes the whole image first.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1  # damaged metadata; viewers show such an image as it is stored
    return value if value in range(1, 9) else 1


def _tiff_orientation(page: Any) -> int:
    tag = page.tags.get(274)
    value = 1 if tag is None else int(tag.value)
    return value if value in range(1, 9) else 1


def _orient(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored rows and columns (H, W[, C]) into displayed ones, by EXIF's code 1 to 8."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _lossy(path: Path) -> bool:
    head = _head(path)
    return head.startswith(b"\xff\xd8") or head[8:12] == b"WEBP"


def _head(path: Path, length: int = 32) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _tail(path: Path, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(length, path.stat().st_size), os.SEEK_END)
        return file.read()


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one error that names the file, what was found and expected."""
    refuse_no_file(path)
    if path.stat().st_size == 0:
        raise HrbenchError(f"{path}: the file is empty (0 bytes), {_EXPECTED}")
    try:
        yield
    except HrbenchError:
        raise
    except UnidentifiedImageError:
        start = _head(path, 8).hex(" ")
        raise HrbenchError(f"{path}: not a readable image (it starts with {start}), {_EXPECTED}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HrbenchError(f"{path}: {error}, expected at most {MAX_PIXELS} pixels") from None
    except _DECODER_ERRORS as error:
        size = path.stat().st_size
        reason = (
            "too little memory to decode it" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        )
        raise HrbenchError(
            f"{path}: damaged or truncated ({size} bytes): {reason}; expected a complete image"
        ) from None
