"""Pictures for the report: photograph, mask outline and heat map of the worst and best images of a run.

At native size there is one array at a time, map, mask or photograph, and no copy of it: each is reduced to what is
shown before the next is read, and coloured only then. So a picture takes no more memory than predicting its image did.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from hrbench._util.files import atomic
from hrbench.data.sample import Category, Sample, sample_mask
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence
from hrbench.evidence.histograms import NormalScores, Scores, key_scores, ranked
from hrbench.imaging import image_size, read_image
from hrbench.metrics import component_table
from hrbench.protocol import Protocol

__all__ = ["draw_pictures", "overlay", "select"]

log = logging.getLogger("hrbench")

WIDTH = 560  # of one part of a panel, in pixels
LONGEST = 2048  # side of an overlay, in pixels
GLOW = 0.45  # of the heat's colour, where an overlay glows most: the defect below stays visible
OUTLINE = np.array([64, 255, 120], np.uint8)
NORMAL = 2 / 3  # of the colour scale: as far as nearly all normal pixels reach
_ROWS = 256  # of a photograph that are reduced at once

Box = tuple[slice, slice]
Image8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Size = tuple[int, int]


def select(evidence: Evidence, protocol: Protocol, *, worst: int = 3, best: int = 1, alarms: int = 1) -> pd.DataFrame:
    """Return which images to show, with columns kind, image, caption.

    Defective images are ranked by the mean AUPRO of their components at the protocol's headline limit,
    normal ones by their image score.
    """
    components = component_table(evidence, protocol)
    column = f"aupro@{protocol.headline_fpr:g}"
    by_image = components.groupby("image").agg(
        overlap=(column, "mean"), components=("area", "size"), smallest=("area", "min")
    )
    by_image = by_image.sort_values("overlap", kind="stable")
    rows = []
    for kind, part in (("worst", by_image.head(worst)), ("best", by_image.iloc[worst:].tail(best)[::-1])):
        for image, row in part.iterrows():
            number = int(row["components"])
            plural = "s" if number > 1 else ""
            size = f"smallest {int(row['smallest'])} px" if number > 1 else f"{int(row['smallest'])} px"
            text = f"AUPRO@{protocol.headline_fpr:g} {row['overlap']:.3f}; {number} defect{plural}, {size}"
            rows.append((kind, image, text))
    if by_image.empty:
        rows += _unmasked(evidence, worst, best)
    normal = evidence.images[evidence.images["label"] == 0].sort_values("score", ascending=False, kind="stable")
    rows += [
        ("false alarm", row.id, f"normal image with the highest score, {row.score:.4g}")
        for row in normal.head(alarms).itertuples()
    ]
    return pd.DataFrame(rows, columns=["kind", "image", "caption"])


def _unmasked(evidence: Evidence, worst: int, best: int) -> list[tuple[str, str, str]]:
    """Return kind, image and caption of the defective images with the lowest scores and with the highest ones."""
    defective = evidence.images[evidence.images["label"] == 1].sort_values("score", kind="stable")
    parts = (("worst", "lowest", defective.head(worst)), ("best", "highest", defective.iloc[worst:].tail(best)))
    return [
        (kind, row.id, f"defective image with the {which} score, {row.score:.4g}; its mask is not known")
        for kind, which, part in parts
        for row in part.itertuples()
    ]


def draw_pictures(
    folder: Path,
    evidence: Evidence,
    category: Category,
    protocol: Protocol,
    anomaly_map: Callable[[Sample], Scores],
) -> None:
    """Write one JPEG per selected image, and ``pictures.json`` that describes them.

    A picture that cannot be drawn, for want of memory for example, is left out with a warning; a full disk is an error.

    Parameters
    ----------
    folder : Path
    evidence : Evidence
    category : Category
    protocol : Protocol
    anomaly_map : callable
        Gives the native (H, W) map of a test sample: a few images are predicted again, so that a run need not
        keep the maps of all.
    """
    samples = {sample.id: sample for sample in category.test}
    scale = _scale(evidence.normals if evidence.normal_pixels else evidence.pixels)
    index: list[dict[str, str]] = []
    failures: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    chosen = select(evidence, protocol)
    for number, row in enumerate(chosen.itertuples()):
        name = f"{number:02d}-{row.kind.replace(' ', '-')}.jpg"
        try:
            panel = _panel(samples[row.image], _smallest(evidence, row.image), anomaly_map, *scale)
            with atomic(folder / name) as path:
                Image.fromarray(panel).save(path, format="JPEG", quality=82)
        except (HrbenchError, MemoryError, OSError, RuntimeError) as error:  # torch's own lack of memory is the last
            failures.append(f"{row.image}: {str(error) or type(error).__name__}")
            continue
        index.append({"file": name, "kind": row.kind, "image": row.image, "caption": row.caption})
    if failures:
        log.warning("%s: %d of %d pictures left out, %s", folder, len(failures), len(chosen), failures[0])
    with atomic(folder / "pictures.json") as path:
        path.write_text(json.dumps(index, indent=1), encoding="utf-8")


def overlay(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], scores: Scores, called: Mask, low: float, high: float
) -> Image8:
    """Return a photograph on which high scores glow and what is called has an outline, (h, w, 3).

    Parameters
    ----------
    image : (H, W, 3) uint8 or uint16
    scores : (H, W) float
    called : (H, W) bool
    low, high : float
        Scores below which nothing glows, and from which on it glows most: the threshold, if there is one.
    """
    height, width = scores.shape
    reduced = max(1.0, max(height, width) / LONGEST)
    size = max(1, round(height / reduced)), max(1, round(width / reduced))
    level = _levels(scores, size, low, high)
    share = GLOW * np.clip(level / NORMAL, 0, 1)[..., None] ** 2
    heat = matplotlib.colormaps["inferno"](level)[..., :3] * 255
    pixels: Image8 = ((1 - share) * _photo(image, size) + share * heat).astype(np.uint8)
    pixels[_outline(called, size)] = OUTLINE
    return pixels


def _scale(normals: Sequence[NormalScores]) -> tuple[float, float]:
    """Return the median score of all normal pixels, and the one that all but 1 in 2000 lie below."""
    last = sum(part.total for part in normals) - 1
    low, high = key_scores(ranked(normals, [last // 2, int(0.9995 * last)]), normals[0].shift).astype(float)
    return low, high


def _smallest(evidence: Evidence, image: str) -> tuple[float, float, float, float] | None:
    """Return the box of an image's smallest defect, if any: top, left, bottom and right in shares of its sides."""
    components = evidence.components[evidence.components["image"] == image]
    if components.empty:
        return None
    smallest = components.loc[components["area"].idxmin()]
    height, width = evidence.images.loc[evidence.images["id"] == image, ["height", "width"]].iloc[0]
    return smallest["top"] / height, smallest["left"] / width, smallest["bottom"] / height, smallest["right"] / width


def _panel(
    sample: Sample,
    defect: tuple[float, float, float, float] | None,
    anomaly_map: Callable[[Sample], Scores],
    low: float,
    high: float,
) -> Image8:
    """Return photograph, heat map and a close-up of both side by side, (h, w, 3).

    Parameters
    ----------
    sample : Sample
    defect : tuple of float or None
        Box of what the close-up shows, in shares of the image's sides; else it shows the highest score.
    anomaly_map : callable
    low, high : float
        Scores at which the colour scale begins and at which it reaches two thirds.
    """
    native = height, width = image_size(sample.image)
    whole = (
        (max(1, round(height * WIDTH / width)), WIDTH)
        if width >= height
        else (WIDTH, max(1, round(width * WIDTH / height)))
    )
    scores = anomaly_map(sample)
    if defect is None:
        row, column = np.unravel_index(int(np.argmax(scores)), native)
        box = _around((int(row), int(column), int(row) + 1, int(column) + 1), native)
    else:
        box = _around([round(share * side) for share, side in zip(defect, native * 2, strict=True)], native)
    parts = ((slice(None), slice(None)), whole), (box, (whole[0], whole[0]))
    levels = [_levels(scores[part], size, low, high) for part, size in parts]
    del scores
    outlines: list[Mask | None] = [None, None]
    mask = sample_mask(sample, native)
    if mask is not None:
        outlines = [_outline(mask[part], size) for part, size in parts]
    del mask
    image = read_image(sample.image)
    photos = [_photo(image[part], size) for part, size in parts]
    del image
    gap = np.full((whole[0], 6, 3), 255, np.uint8)
    drawn: list[Image8] = []
    for photo, level, outline in zip(photos, levels, outlines, strict=True):
        heat = (matplotlib.colormaps["inferno"](level)[..., :3] * 255).astype(np.uint8)
        for pixels in (photo, (0.25 * photo + 0.75 * heat).astype(np.uint8)):
            if outline is not None:
                pixels[outline] = OUTLINE
            drawn += [pixels, gap]
    return np.concatenate(drawn[:-1], axis=1)


def _around(defect: Sequence[int], native: Size) -> Box:
    """Return a square around (top, left, bottom, right) that stays within the image."""
    top, left, bottom, right = defect
    side = min(max(48, 3 * max(bottom - top, right - left)), *native)
    starts = (
        min(max(0, (start + stop - side) // 2), length - side)
        for start, stop, length in zip((top, left), (bottom, right), native, strict=True)
    )
    rows, columns = (slice(start, start + side) for start in starts)
    return rows, columns


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


def _outline(mask: Mask, size: Size) -> Mask:
    """Return the outline of a mask, just outside it and one pixel wide at the size of the picture, (h, w)."""
    columns = _starts(mask.shape[1], size[1])
    # Any mask pixel of a block counts, or a tiny defect would lose its outline.
    small = np.stack([np.logical_or.reduceat(strip.any(axis=0), columns) for strip in _strips(mask, size[0])])
    inner = ndimage.binary_dilation(small)
    outline: Mask = ndimage.binary_dilation(inner) & ~inner
    return outline


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
