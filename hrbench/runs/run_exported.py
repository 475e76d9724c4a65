"""Run an anomaly detector that hrbench has exported: from an image to its anomaly map, verdict and boxes.

It needs numpy and pillow, and onnxruntime for an ``.onnx`` or torch for a ``.pt2``; nothing of hrbench::

    python run_exported.py bolt.json IMAGE ... [--maps FOLDER]

prints a line of JSON for each image. In a program::

    detector = Detector("bolt.json")
    found = detector.verdict(detector.anomaly_map(read_image("new.png")))

Never load a ``.pt2`` that you did not make: torch may run whatever is in it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

__all__ = ["Detector", "read_image"]

PROVIDERS = ["CPUExecutionProvider"]  # of onnxruntime, the best first; as "CUDAExecutionProvider"
SCHEMA = 1
SPOILT = 0.25  # share of an overlap, at either of its ends, that the tile which ends there has no part in

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[Any]

Image.MAX_IMAGE_PIXELS = 10**9


def read_image(path: Path | str) -> Pixels:
    """Return an image as (H, W, 3) uint8, or uint16 for 16-bit grey; rotated as its EXIF says, without alpha.

    Raises
    ------
    ValueError
        For 16 bits per channel in colour, which pillow would cut to 8, and for floats.
    """
    with Path(path).open("rb") as file:
        head = file.read(26)
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F" or (head[:4] == b"\x89PNG" and head[24] == 16 and head[25] != 0):
            raise ValueError(f"{path}: pixels of another type, expected 8 bits per channel, or 16 bits of grey")
        if image.mode == "I" or image.mode.startswith("I;16"):
            return np.repeat(np.asarray(image).astype(np.uint16)[..., None], 3, axis=2)
        return np.array(image.convert("RGBA" if image.mode in ("P", "PA") else image.mode).convert("RGB"))


class Detector:
    """An exported detector.

    Parameters
    ----------
    path : Path or str
        Its ``.json``; the files that it names lie beside it.

    Attributes
    ----------
    about : dict
        What the file says.
    threshold : float or None
        At or above which a pixel is called a defect.
    """

    def __init__(self, path: Path | str) -> None:
        self.about: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if self.about.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {self.about.get('schema')!r}, expected {SCHEMA}")
        threshold = self.about["threshold"]["value"]
        self.threshold: float | None = threshold
        self._predict = _load(Path(path).parent, self.about["predict"])
        self._finish = _load(Path(path).parent, self.about["finish"]) if self.about["finish"] else None

    def anomaly_map(self, image: Pixels) -> Floats:
        """Return the (H, W) map of an (H, W, 3) image of uint8 or uint16; higher is more anomalous."""
        maps = [self._through(look, image) for look in self.about["looks"]]
        if len(maps) == 1:
            return maps[0]
        fused = np.ones_like(maps[0])  # the geometric mean of softplus((map - centre) / unit)
        for map_, scale in zip(maps, self.about["fusion"], strict=True):
            units = (map_ - np.float32(scale["centre"])) / np.float32(scale["unit"])
            fused *= np.logaddexp(units, np.float32(0)) ** np.float32(1 / len(maps))
        return fused

    def verdict(self, anomaly_map: Floats) -> dict[str, Any]:
        """Return image score, whether the image alarms, and what reaches the threshold; boxes end exclusively."""
        found: dict[str, Any] = {"score": _image_score(anomaly_map, self.about["image_score"])}
        if self.threshold is None:
            return {**found, "alarm": None, "components": []}
        parts = components(anomaly_map, self.threshold, self.about["connectivity"])
        return {**found, "alarm": bool(parts), "components": parts}

    def _through(self, look: dict[str, Any], image: Pixels) -> Floats:
        """Return the map of an image through one look."""
        height, width = image.shape[:2]
        left = top = 0
        if look["square"]:
            side = max(height, width)
            top, left = (side - height) // 2, (side - width) // 2
            pads = ((top, side - height - top), (left, side - width - left), (0, 0))
            image = np.pad(image, pads, mode="edge")
        maps = [_at_size(map_, image.shape[:2]) for map_ in self._merged(look, image)]

        def cropped(map_: Floats) -> Floats:
            return np.ascontiguousarray(map_[top : top + height, left : left + width])

        if self._finish is None:
            return cropped(maps[0])
        if self.about["finish_padded"]:
            return cropped(self._finished(maps))
        return self._finished([cropped(map_) for map_ in maps])

    def _finished(self, maps: list[Floats]) -> Floats:
        assert self._finish is not None
        size = self.about["finish"]["size"]
        if size is not None and list(maps[0].shape) != size:
            raise ValueError(f"maps of {maps[0].shape[0]}x{maps[0].shape[1]}, expected {size[0]}x{size[1]} as exported")
        return self._finish(maps)[0]

    def _merged(self, look: dict[str, Any], image: Pixels) -> list[Floats]:
        """Return the named maps on the grid that tiles are cut from, blended of those of all tiles."""
        tile: list[int] = look["tile"]
        grid = list(tile)
        if look["overlap"] is not None:
            grid = [max(1, round(length * look["scale"])) for length in image.shape[:2]]
        seen = _resized(image, (grid[0], grid[1]), look["filter"])
        single = grid == tile
        missing = [max(0, t - n) for t, n in zip(tile, grid, strict=True)]
        seen = np.pad(seen, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        overlap = look["overlap"] or 0
        starts = [_starts(n, t, overlap) for n, t in zip(grid, tile, strict=True)]
        windows = [_windows(s, t, n) for s, t, n in zip(starts, tile, grid, strict=True)]
        merged: list[Floats] = []
        for row, rows in zip(starts[0], windows[0], strict=True):
            for column, columns in zip(starts[1], windows[1], strict=True):
                under = (slice(row, row + tile[0]), slice(column, column + tile[1]))
                maps = [map_[0] for map_ in self._predict([_unit(seen[under])])]
                if single:
                    return maps
                merged = merged or [np.zeros(seen.shape[:2], np.float32) for _ in maps]
                for whole, map_ in zip(merged, maps, strict=True):
                    whole[under] += _at_size(map_, (tile[0], tile[1])) * rows[:, None] * columns
        return [whole[: grid[0], : grid[1]] for whole in merged]


def components(anomaly_map: Floats, threshold: float, connectivity: int) -> list[dict[str, Any]]:
    """Return the connected parts of a map that reach the threshold, in order of their first pixels row by row."""
    wide = np.zeros((anomaly_map.shape[0], anomaly_map.shape[1] + 2), bool)  # runs do not pass the ends of a row
    wide[:, 1:-1] = anomaly_map >= np.float32(threshold)
    edges = np.flatnonzero(np.diff(wide.ravel().astype(np.int8)))
    starts, ends = edges[::2] + 1, edges[1::2] + 1
    reach = connectivity == 8
    low = np.searchsorted(ends, starts - wide.shape[1] + (not reach), side="left")
    high = np.searchsorted(starts, ends - wide.shape[1] - (not reach), side="right")
    parent = list(range(len(starts)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    for run, (first, last) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        for other in range(first, last):  # runs of the row above that touch this one
            one, two = root(run), root(other)
            parent[max(one, two)] = min(one, two)
    found: dict[int, dict[str, Any]] = {}
    for run, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        row, left = divmod(start, wide.shape[1])
        left, right = left - 1, left - 1 + end - start
        high_ = float(anomaly_map[row, left:right].max())
        own = {"left": left, "top": row, "right": right, "bottom": row + 1, "area": right - left, "score": high_}
        part = found.setdefault(root(run), own)
        if part is not own:
            part["left"], part["right"] = min(part["left"], left), max(part["right"], right)
            part["bottom"], part["area"] = row + 1, part["area"] + right - left
            part["score"] = max(part["score"], high_)
    return list(found.values())


def _load(folder: Path, said: dict[str, Any]) -> Callable[[Sequence[Floats]], list[Floats]]:
    """Return what runs a graph, whose file is as it was written."""
    path = folder / Path(said["file"]).name
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise ValueError(f"{path}: is not the file that was exported")
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=PROVIDERS)
        names = [item.name for item in session.get_inputs()]
        return lambda given: session.run(None, dict(zip(names, given, strict=True)))
    import torch

    module = torch.export.load(io.BytesIO(content)).module()

    @torch.no_grad()
    def run(given: Sequence[Floats]) -> list[Floats]:
        return [item.numpy() for item in module(*map(torch.from_numpy, given))]

    return run


def _unit(tile: Pixels) -> Floats:
    """Return an (h, w, 3) tile as the graph takes it: (1, 3, h, w) float32 in [0, 1]."""
    unit = tile if tile.dtype == np.float32 else tile.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(unit.transpose(2, 0, 1)[None])


def _resized(image: Pixels, size: tuple[int, int], filter_: str) -> Pixels:
    """Return (H, W, 3) uint8, or uint16 as float32 in [0, 1], resized by pillow's filter of that name."""
    if image.dtype == np.uint16:
        image = np.divide(image, np.float32(65535), dtype=np.float32)
    if image.shape[:2] == size:
        return image
    kind = Image.Resampling.BICUBIC if filter_ == "bicubic" else Image.Resampling.BILINEAR
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], kind))
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size[::-1], kind) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], axis=2).clip(0, 1)


def _at_size(map_: Floats, size: tuple[int, ...]) -> Floats:
    """Resize an (h, w) map bilinearly, pixel centres on pixel centres, without antialiasing."""
    for axis, length in enumerate(size):
        if map_.shape[axis] == length:
            continue
        position = ((np.arange(length) + 0.5) * map_.shape[axis] / length - 0.5).clip(0, map_.shape[axis] - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, map_.shape[axis] - 1)
        weight = (position - low).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        map_ = map_.take(low, axis) * (1 - weight) + map_.take(high, axis) * weight
    return map_


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, tile - overlap), last]


def _windows(starts: list[int], tile: int, length: int) -> Floats:
    """Return weights (tiles of the axis, tile length) that fade over overlaps and sum to one at every pixel."""
    position = np.arange(tile) + 0.5
    windows = np.ones((len(starts), tile))
    for index, (one, two) in enumerate(pairwise(starts)):
        overlap = one + tile - two
        span = max(1.0, (1 - 2 * SPOILT) * overlap)
        windows[index] *= ((tile - position - SPOILT * overlap) / span).clip(0, 1)
        windows[index + 1] *= ((position - SPOILT * overlap) / span).clip(0, 1)
    total = np.zeros(max(length, tile))
    for start, window in zip(starts, windows, strict=True):
        total[start : start + tile] += window
    return np.stack([w / total[s : s + tile] for s, w in zip(starts, windows, strict=True)]).astype(np.float32)


def _image_score(anomaly_map: Floats, rule: str) -> float:
    if rule == "max":
        return float(anomaly_map.max())
    if rule == "mean":
        return float(anomaly_map.mean(dtype=np.float64))
    number = max(1, int(anomaly_map.size * float(rule.removeprefix("top:"))))
    top = np.partition(anomaly_map.ravel(), anomaly_map.size - number)[-number:]
    return float(top.mean(dtype=np.float64))


def main() -> None:
    """Print a line of JSON for each image."""
    parser = argparse.ArgumentParser(description="Run an exported anomaly detector: a line of JSON for each image.")
    parser.add_argument("detector", type=Path, metavar="DETECTOR.json")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    parser.add_argument("--maps", type=Path, metavar="FOLDER", help="write maps there, as NUMBER-NAME.tiff")
    given = parser.parse_args()
    detector = Detector(given.detector)
    for number, path in enumerate(given.images):
        map_ = detector.anomaly_map(read_image(path))
        if given.maps is not None:
            given.maps.mkdir(parents=True, exist_ok=True)
            Image.fromarray(map_).save(given.maps / f"{number:05d}-{path.stem}.tiff")
        print(json.dumps({"image": str(path), **detector.verdict(map_)}), flush=True)


if __name__ == "__main__":
    main()
