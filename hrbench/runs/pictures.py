"""Pictures of a run: photograph, anomaly map and mask of a few defects and good images; and overlays of new images.

At native size there is one array at a time, map, mask or photograph, and no copy of it: what is kept is cut out before
the next is read. So a picture takes no more memory than predicting its image did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from hrbench._util.files import atomic
from hrbench._util.progress import track
from hrbench.data.sample import Category, Sample, sample_mask
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Scores
from hrbench.imaging import image_size, read_image
from hrbench.protocol import Protocol
from hrbench.runs.picture_choice import GOOD, Choice, Scale, choose, native_box, scale_of
from hrbench.runs.picture_files import UNIT, Box, Picture, Pictures, write_pictures

__all__ = ["captioned", "draw_pictures", "keep_pictures", "overlay"]

log = logging.getLogger("hrbench")

WINDOW, STORED = 384, 768  # sides of what is shown of an image, at least, and of what is kept of it, at most; in pixels
LONGEST = 2048  # side of an overlay, in pixels
SHORT = 512  # longer side of an overlay to which smaller images are enlarged, as far as whole factors go
BOXES = 60  # of an overlay, at most: of the largest components
GLOW = 0.25  # of the heat's colour, where an overlay glows most: the defect below stays visible
OUTLINE, EDGE = (64, 255, 120), (0, 0, 0)  # the edge lets the lines be seen on a bright ground, too
NORMAL = 2 / 3  # of the colour scale: as far as nearly all normal pixels reach
_ROWS = 256  # of a photograph that are reduced at once

Image8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]


def keep_pictures(
    folder: Path,
    evidence: Evidence,
    category: Category,
    protocol: Protocol,
    anomaly_map: Callable[[Sample], Scores],
    label: str = "",
) -> None:
    """Write photograph, map and mask of what :func:`hrbench.runs.picture_choice.choose` names, and ``pictures.json``.

    A picture that cannot be had, for want of memory for example, is left out with a warning; a full disk is an error.

    Parameters
    ----------
    folder : Path
    evidence : Evidence
    category : Category
    protocol : Protocol
    anomaly_map : callable
        Gives the native (H, W) map of a test sample: a few images are predicted again, so that a run need not
        keep the maps of all.
    label : str
        Of the job, for the progress.
    """
    for path in folder.glob("[0-9][0-9]-*"):  # of an earlier attempt
        path.unlink()
    scale = scale_of(evidence, protocol)
    chosen = choose(evidence, protocol, scale.threshold)
    items = draw_pictures(folder, enumerate(chosen), category, scale, anomaly_map, label)
    facts = scale.low, scale.unit, scale.threshold, scale.budget, protocol.name, protocol.pod.share
    write_pictures(folder, Pictures(items, *facts))


def draw_pictures(
    folder: Path,
    numbered: Iterable[tuple[int, Choice]],
    category: Category,
    scale: Scale,
    anomaly_map: Callable[[Sample], Scores],
    label: str = "",
) -> tuple[Picture, ...]:
    """Write photograph, map and mask of each choice, and return what ``pictures.json`` will say of it.

    A picture that cannot be had is left out with a warning, see :func:`keep_pictures`.

    Parameters
    ----------
    folder : Path
    numbered : iterable of (int, Choice)
        By the number in the names of its files.
    category : Category
    scale : Scale
    anomaly_map : callable
    label : str
    """
    samples = {sample.id: sample for sample in category.test}
    of_image: dict[str, list[tuple[int, Choice]]] = {}
    for number, choice in numbered:
        of_image.setdefault(choice.image, []).append((number, choice))
    items: dict[int, Picture] = {}
    failures: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    for image, some in track(of_image.items(), f"{label} pictures".strip(), total=len(of_image), unit="img"):
        try:
            items |= _keep(folder, samples[image], some, scale, anomaly_map)
        except (HrbenchError, MemoryError, OSError, RuntimeError) as error:  # torch's own lack of memory is the last
            failures.append(f"{image}: {str(error) or type(error).__name__}")
    if failures:
        log.warning("%s: pictures of %d of %d images left out, %s", folder, len(failures), len(of_image), failures[0])
    return tuple(items[number] for number in sorted(items))


def _keep(
    folder: Path,
    sample: Sample,
    numbered: Sequence[tuple[int, Choice]],
    scale: Scale,
    anomaly_map: Callable[[Sample], Scores],
) -> dict[int, Picture]:
    """Write the pictures of an image; return them by their numbers."""
    native = height, width = image_size(sample.image)
    scores = anomaly_map(sample)
    highest = divmod(int(np.argmax(scores)), width)
    windows, greys, peaks = [], [], []
    for _, choice in numbered:
        # The middle of a good image is the same for all methods, its highest score is not.
        row, column = (height // 2, width // 2) if choice.kinds == (GOOD,) else highest
        box = (row, column, row + 1, column + 1) if choice.defect is None else native_box(choice.defect, native)
        window = choice.window or _window(box, native)
        windows.append(window)
        greys.append(_grey(_largest(scores[_slices(window)], _stored(window)), scale))
        row, column = divmod(int(np.argmax(scores[_slices(window)])), window[3] - window[1])
        peaks.append((window[0] + row, window[1] + column))
    del scores
    whole = sample_mask(sample, native)
    masks = [None if whole is None else _any(whole[_slices(window)], _stored(window)) for window in windows]
    del whole
    image = read_image(sample.image)
    photos = [_photo(image[_slices(window)], _stored(window)) for window in windows]
    del image
    found = {}
    for (number, choice), window, grey, peak, mask, photo in zip(
        numbered, windows, greys, peaks, masks, photos, strict=True
    ):
        files = [folder / f"{number:02d}-{name}" for name in ("photo.jpg", "map.png", "mask.png")]
        with atomic(files[0]) as path:
            Image.fromarray(photo).save(path, format="JPEG", quality=88)
        with atomic(files[1]) as path:
            Image.fromarray(grey).save(path, format="PNG", optimize=True)
        if mask is not None:
            with atomic(files[2]) as path:
                Image.fromarray(mask).save(path, format="PNG", optimize=True)
        defect = None if choice.defect is None else native_box(choice.defect, native)
        facts = sample.id, choice.kinds, int(sample.label), height, width, window, defect
        found[number] = Picture(
            *facts,
            choice.area,
            choice.score,
            peak,
            files[0],
            files[1],
            None if mask is None else files[2],
            choice.reached,
        )
    return found


def _window(box: Box, native: Size) -> Box:
    """Return what a picture shows: it has the box in its middle, and stays within the image."""
    top, left, bottom, right = box
    side = max(WINDOW, 2 * max(bottom - top, right - left))
    sides = [min(side, length) for length in native]
    starts = (
        min(max(0, (start + stop - part) // 2), length - part)
        for start, stop, part, length in zip((top, left), (bottom, right), sides, native, strict=True)
    )
    first, second = starts
    return first, second, first + sides[0], second + sides[1]


def _slices(window: Box) -> tuple[slice, slice]:
    return slice(window[0], window[2]), slice(window[1], window[3])


def _stored(window: Box) -> Size:
    """Return in how many pixels a window is kept: its own, but of a very large defect."""
    height, width = window[2] - window[0], window[3] - window[1]
    reduced = max(1.0, max(height, width) / STORED)
    return max(1, round(height / reduced)), max(1, round(width / reduced))


def _grey(scores: Scores, scale: Scale) -> Image8:
    """Return scores in grey: what reaches `scale.unit` is :data:`UNIT` or more, exactly."""
    relative = (scores.astype(np.float64) - scale.low) / (scale.unit - scale.low)
    grey: Image8 = np.clip(np.floor(UNIT * relative), 0, 255).astype(np.uint8)
    return grey


def _largest(scores: Scores, size: Size) -> Scores:
    """Return the largest score of each block: where a map is reduced, what is predicted stays visible."""
    if scores.shape == size:
        return scores
    columns = _starts(scores.shape[1], size[1])
    blocks: Scores = np.stack([np.maximum.reduceat(strip.max(axis=0), columns) for strip in _strips(scores, size[0])])
    return blocks


def overlay(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    scores: Scores,
    called: Mask,
    low: float,
    high: float,
    boxes: Sequence[Box] = (),
) -> Image8:
    """Return a photograph with the outline of what is called and a numbered box around it, (h, w, 3).

    Nothing covers what is called; other high scores glow weakly.

    Parameters
    ----------
    image : (H, W, 3) uint8 or uint16
    scores : (H, W) float
    called : (H, W) bool
    low, high : float
        Scores below which nothing glows, and from which on it glows most: the threshold, if there is one.
    boxes : sequence of tuple of int
        (top, left, bottom, right) of the components, in native pixels; numbered from 1. Of many only the
        :data:`BOXES` with the largest boxes get one.
    """
    longest = max(scores.shape)
    factor = LONGEST / longest if longest > LONGEST else max(1, SHORT // longest)
    size = max(1, round(scores.shape[0] * factor)), max(1, round(scores.shape[1] * factor))
    width = max(1, round(max(size) / 1000))  # of lines: seen where the whole is shown on a screen
    level = _levels(scores, size, low, high)
    inside = ndimage.binary_dilation(_any(called, size))
    share = np.where(inside, 0, GLOW * np.clip(level / NORMAL, 0, 1) ** 2)[..., None]
    heat = matplotlib.colormaps["inferno"](level)[..., :3] * 255
    pixels: Image8 = ((1 - share) * _photo(image, size) + share * heat).astype(np.uint8)
    pixels[_around(inside, width + 1)] = EDGE
    pixels[_around(inside, width)] = OUTLINE
    return _boxed(pixels, boxes, factor, width)


def _around(inside: Mask, width: int) -> Mask:
    """Return a line of so many pixels just outside a mask."""
    line: Mask = ndimage.binary_dilation(inside, iterations=width) & ~inside
    return line


def _boxed(pixels: Image8, boxes: Sequence[Box], factor: float, width: int) -> Image8:
    """Draw boxes of native pixels on a picture that is `factor` times as large, with their numbers from 1."""
    if not boxes:
        return pixels
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = _font(7 + 6 * width)
    gap, (right_end, bottom_end) = 4 + 3 * width, picture.size  # the outline has room within the box
    largest = sorted(range(len(boxes)), key=lambda index: -_area(boxes[index]))[:BOXES]
    for index in largest:
        top, left, bottom, right = boxes[index]
        x, y = max(0, int(left * factor) - gap), max(0, int(top * factor) - gap)
        end_x, end_y = min(right_end - 1, int(right * factor) + gap), min(bottom_end - 1, int(bottom * factor) + gap)
        draw.rectangle((x - 1, y - 1, end_x + 1, end_y + 1), outline=EDGE)
        draw.rectangle((x, y, end_x, end_y), outline=OUTLINE, width=width)
        across, down = (int(side) + 1 for side in font.getbbox(str(index + 1), stroke_width=width)[2:])
        # Above the box, or below it at the upper border; never beyond the picture.
        place = min(x, right_end - across), y - down if y >= down else min(end_y, bottom_end - down)
        draw.text(place, str(index + 1), OUTLINE, font, stroke_width=width, stroke_fill=EDGE)
    return np.array(picture)


def captioned(pixels: Image8, text: str) -> Image8:
    """Return a picture with a line of text below it, in letters that fit its width."""
    across = pixels.shape[1]
    font = _font(max(13, across // 60))
    if (width := font.getlength(text) + font.size) > across:
        font = _font(max(8, int(font.size * across / width)))
    strip = Image.new("RGB", (across, round(1.7 * font.size)), EDGE)
    ImageDraw.Draw(strip).text((font.size // 2, strip.height // 2), text, (255, 255, 255), font, anchor="lm")
    return np.concatenate([pixels, np.array(strip)])


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", size)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _starts(length: int, parts: int) -> npt.NDArray[np.int64]:
    """Return where the blocks begin that an axis is reduced to; where it is enlarged, they have a pixel and repeat."""
    starts: npt.NDArray[np.int64] = np.arange(parts) * length // parts
    return starts


def _strips(array: npt.NDArray[Any], height: int) -> Iterator[npt.NDArray[Any]]:
    """Yield the rows of an array that each row of the picture stands for."""
    starts = _starts(len(array), height)
    return (array[top : max(top + 1, bottom)] for top, bottom in pairwise([*starts.tolist(), len(array)]))


def _levels(scores: Scores, size: Size, low: float, high: float) -> npt.NDArray[np.float64]:
    """Return a map as places on the colour scale, (h, w) in [0, 1].

    A pixel shows the mean of its block, and its peak instead as far as that passes what normal pixels reach: a defect
    of a few pixels stays visible, and the noise of large blocks does not glow.
    """
    columns = _starts(scores.shape[1], size[1])
    widths = np.diff(columns, append=scores.shape[1]).clip(min=1)
    levels = np.empty(size)
    for row, strip in zip(levels, _strips(scores, size[0]), strict=True):
        scaled = np.clip((strip.astype(np.float64) - low) * (NORMAL / max(high - low, 1e-12)), 0, 1)
        mean = np.add.reduceat(scaled.mean(axis=0), columns) / widths
        peak = np.maximum.reduceat(scaled.max(axis=0), columns)
        row[:] = mean + (peak - mean) * np.clip((peak - NORMAL) / (1 - NORMAL), 0, 1)
    return levels


def _any(mask: Mask, size: Size) -> Mask:
    """Return which blocks hold any pixel of a mask, (h, w): a tiny defect must not lose its outline."""
    columns = _starts(mask.shape[1], size[1])
    return np.stack([np.logical_or.reduceat(strip.any(axis=0), columns) for strip in _strips(mask, size[0])])


def _photo(image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], size: Size) -> Image8:
    """Return an (H, W, 3) image at another size in 8 bits: enlarged as it is, or reduced by bands of rows."""

    def eight_bits(part: npt.NDArray[Any]) -> Image8:
        return (part // 257 if part.dtype == np.uint16 else part).astype(np.uint8)

    height, width = image.shape[:2]
    if height <= size[0]:
        return eight_bits(image[_starts(height, size[0])][:, _starts(width, size[1])])
    across, down = width // (2 * size[1]) or 1, height // (2 * size[0]) or 1
    step = down * max(1, _ROWS // down)
    bands = (Image.fromarray(eight_bits(image[top : top + step])) for top in range(0, height, step))
    half = Image.fromarray(np.concatenate([np.asarray(band.reduce((across, down))) for band in bands]))
    box = (0, 0, width / across, height / down)
    return np.array(half.resize(size[::-1], Image.Resampling.LANCZOS, box))
