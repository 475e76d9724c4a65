"""Pictures for the report: photograph, mask outline and heat map of the worst and best images of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from hrbench._util.files import atomic
from hrbench.data.sample import Category, Sample
from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Scores, key_scores
from hrbench.imaging import read_image, read_mask
from hrbench.imaging.components import find_components
from hrbench.metrics import component_table
from hrbench.protocol import Protocol

__all__ = ["draw_pictures", "panel", "select"]

WIDTH = 560  # of one part of a panel, in pixels
OUTLINE = np.array([64, 255, 120], np.uint8)

Pixels = npt.NDArray[np.uint8]


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
    normal = evidence.images[evidence.images["label"] == 0].sort_values("score", ascending=False, kind="stable")
    rows += [
        ("false alarm", row.id, f"normal image with the highest score, {row.score:.4g}")
        for row in normal.head(alarms).itertuples()
    ]
    return pd.DataFrame(rows, columns=["kind", "image", "caption"])


def draw_pictures(
    folder: Path,
    evidence: Evidence,
    category: Category,
    protocol: Protocol,
    anomaly_map: Callable[[Sample], Scores],
) -> None:
    """Write one JPEG per selected image, and ``pictures.json`` that describes them.

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
    normal = evidence.normal
    levels = normal.ranked((np.array([0.5, 0.9995]) * (normal.total - 1)).astype(np.int64))
    low, high = key_scores(levels, normal.shift).astype(float)
    index = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(select(evidence, protocol).itertuples()):
        sample = samples[row.image]
        image = read_image(sample.image)
        mask = read_mask(sample.mask, image.shape[:2]) if sample.mask else None
        drawn = panel(image, anomaly_map(sample), mask, low, high)
        name = f"{number:02d}-{row.kind.replace(' ', '-')}.jpg"
        with atomic(folder / name) as path:
            Image.fromarray(drawn).save(path, format="JPEG", quality=82)
        index.append({"file": name, "kind": row.kind, "image": row.image, "caption": row.caption})
    with atomic(folder / "pictures.json") as path:
        path.write_text(json.dumps(index, indent=1), encoding="utf-8")


def panel(
    image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    anomaly_map: Scores,
    mask: npt.NDArray[np.bool_] | None,
    low: float,
    high: float,
) -> Pixels:
    """Return photograph, heat map and a close-up of the smallest defect side by side, (h, w, 3) uint8.

    Parameters
    ----------
    image : (H, W, 3) uint8 or uint16
    anomaly_map : (H, W) float
    mask : (H, W) bool or None
    low, high : float
        Scores at which the colour scale begins and at which it reaches two thirds.
    """
    photo: Pixels = (image // 257 if image.dtype == np.uint16 else image).astype(np.uint8)
    span = max(high - low, 1e-12)
    scaled = np.clip((anomaly_map.astype(np.float64) - low) / (1.5 * span), 0, 1)
    heat = (matplotlib.colormaps["inferno"](scaled)[..., :3] * 255).astype(np.uint8)
    heat = (0.25 * photo + 0.75 * heat).astype(np.uint8)
    height, width = photo.shape[:2]
    size = (
        (max(1, round(height * WIDTH / width)), WIDTH)
        if width >= height
        else (WIDTH, max(1, round(width * WIDTH / height)))
    )
    parts = [_outlined(photo, mask, size), _outlined(heat, mask, size)]
    box = _close_up(mask, anomaly_map)
    close = [_outlined(part[box], None if mask is None else mask[box], (size[0], size[0])) for part in (photo, heat)]
    gap = np.full((size[0], 6, 3), 255, np.uint8)
    row: list[Pixels] = []
    for part in (*parts, *close):
        row += [part, gap]
    return np.concatenate(row[:-1], axis=1)


def _close_up(mask: npt.NDArray[np.bool_] | None, anomaly_map: Scores) -> tuple[slice, slice]:
    """Return a square around the smallest defect, or around the highest score of a normal image."""
    height, width = anomaly_map.shape
    if mask is not None and mask.any():
        defects = find_components(mask)
        top, left, bottom, right = defects.boxes[np.argmin(defects.areas)].tolist()
        rows, columns = slice(top, bottom), slice(left, right)
    else:
        row, column = np.unravel_index(int(np.argmax(anomaly_map)), anomaly_map.shape)
        rows, columns = slice(int(row), int(row) + 1), slice(int(column), int(column) + 1)
    extent = max(rows.stop - rows.start, columns.stop - columns.start)
    side = min(max(48, 3 * extent), height, width)

    def around(part: slice, length: int) -> slice:
        start = min(max(0, (part.start + part.stop - side) // 2), length - side)
        return slice(start, start + side)

    return around(rows, height), around(columns, width)


def _outlined(pixels: Pixels, mask: npt.NDArray[np.bool_] | None, size: tuple[int, int]) -> Pixels:
    """Resize to (h, w) and draw the mask's outline, just outside it, one pixel wide at the final size."""
    shrinks = size[0] < pixels.shape[0]
    method = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    drawn = np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize((size[1], size[0]), method))
    if mask is not None and mask.any():
        # any mask pixel inside an output pixel counts, or a tiny defect would lose its outline
        rows = np.minimum(np.arange(mask.shape[0]) * size[0] // mask.shape[0], size[0] - 1)
        columns = np.minimum(np.arange(mask.shape[1]) * size[1] // mask.shape[1], size[1] - 1)
        small = np.zeros(size, bool)
        ys, xs = np.nonzero(mask)
        small[rows[ys], columns[xs]] = True
        if not shrinks:
            small = np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
        inner = ndimage.binary_dilation(small, iterations=1)
        drawn[ndimage.binary_dilation(inner, iterations=1) & ~inner] = OUTLINE
    return drawn
