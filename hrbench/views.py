"""Views: how a method looks at an image, and how its maps come back to the image's own grid.

========================  ==================================================================================
``whole:1036``            the whole image stretched to 1036 x 1036
``whole:448x1120``        ... to height 448, width 1120
``whole:1036:square``     centred in a square by repeating its borders, then resized
``tiled:518:112``         tiles of 518 pixels that overlap by at least 112, at camera pitch
``tiled:518:112@0.5``     the same on the image shrunk to half its size
========================  ==================================================================================

Every view is one geometry: pad, resize, cut into a grid of tiles. A whole view has a single tile. Merging
weighs each tile by a product of two one-dimensional windows that sum to one over the tiles of an axis, so the
weights form a partition of unity by construction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from hrbench.errors import HrbenchError

__all__ = ["Canvas", "Placement", "View", "to_unit", "to_uint8_tensor", "tile_starts"]

import os
def MARGIN(o): return o//2 if os.environ.get("MARG","1")=="1" else 0
_PATTERN = re.compile(
    r"whole:(?P<height>\d+)(x(?P<width>\d+))?(?P<square>:square)?"
    r"|tiled:(?P<tile>\d+):(?P<overlap>\d+)(@(?P<scale>[0-9.]+))?"
)


@dataclass(frozen=True)
class View:
    """A parsed view.

    Attributes
    ----------
    text : str
        As the user wrote it.
    tile : (int, int)
        Height and width of a model input.
    overlap : int or None
        Least overlap of neighbouring tiles in pixels; None for a whole view.
    scale : float
        Of the image before tiling.
    square : bool
        Pad to a square first.
    """

    text: str
    tile: tuple[int, int]
    overlap: int | None = None
    scale: float = 1.0
    square: bool = False

    @staticmethod
    def parse(text: str) -> View:
        """Read a view from its text; anything else is an error that shows the forms."""
        match = _PATTERN.fullmatch(text)
        forms = "whole:SIZE, whole:HEIGHTxWIDTH, whole:SIZE:square, tiled:TILE:OVERLAP or tiled:TILE:OVERLAP@SCALE"
        if not match:
            raise HrbenchError(f"view {text!r}: expected {forms}, sizes in pixels")
        if match["height"]:
            height, width = int(match["height"]), int(match["width"] or match["height"])
            view = View(text, (height, width), square=bool(match["square"]))
        else:
            tile, overlap = int(match["tile"]), int(match["overlap"])
            scale = _number(match["scale"] or "1")
            if not (overlap < tile and 0 < scale <= 1):
                raise HrbenchError(f"view {text!r}: expected an overlap below the tile and a scale in (0, 1]")
            view = View(text, (tile, tile), overlap, scale)
        if min(view.tile) < 1 or (view.square and view.tile[0] != view.tile[1]):
            raise HrbenchError(f"view {text!r}: expected {forms}, sizes of at least one pixel")
        return view

    def check_multiple(self, multiple: int, method: str) -> None:
        """Raise an error unless the tile is a multiple of what the method needs; it names the nearest sizes."""
        for size in self.tile:
            if size % multiple:
                low = size // multiple * multiple
                near = " or ".join(str(x) for x in (low, low + multiple) if x)
                raise HrbenchError(
                    f"view {self.text!r}: {method} needs sizes that are multiples of {multiple}, {size} is not; use {near}"
                )

    def place(self, size: tuple[int, int]) -> Placement:
        """Return where the tiles of an image of `size` (H, W) lie."""
        height, width = size
        pad = (0, 0, 0, 0)
        if self.square:
            side = max(size)
            top, left = (side - height) // 2, (side - width) // 2
            pad = (left, side - width - left, top, side - height - top)
        if self.overlap is None:
            return Placement(size, pad, self.tile, 0, self.tile, (0,), (0,))
        grid = (max(1, round(height * self.scale)), max(1, round(width * self.scale)))
        margin = MARGIN(self.overlap)
        rows, columns = (
            tile_starts(n + 2 * margin, t, self.overlap) for n, t in zip(grid, self.tile, strict=True)
        )
        return Placement(size, pad, grid, margin, self.tile, rows, columns)

    def prepare(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> tuple[Tensor, Placement]:
        """Pad and resize an (H, W, 3) image to the grid that tiles are cut from.

        Returns
        -------
        Tensor
            (3, h, w) uint8, or float32 in [0, 1] for 16-bit images.
        Placement
        """
        height, width = image.shape[:2]
        placement = self.place((height, width))
        tensor = to_uint8_tensor(image)
        if any(placement.pad):
            tensor = _edge_pad(tensor, placement.pad)
        if tensor.shape[1:] != placement.grid:
            tensor = F.interpolate(tensor[None], placement.grid, mode="bicubic", antialias=True)[0]
            if tensor.is_floating_point():
                tensor = tensor.clamp(0, 1)
        margin = placement.margin
        bottom, right = (
            canvas - margin - n for canvas, n in zip(placement.canvas, placement.grid, strict=True)
        )
        if margin or bottom or right:
            tensor = _mirror_pad(tensor, (margin, right, margin, bottom))
        return tensor, placement

    def split(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> tuple[Tensor, Placement]:
        """Return all tiles of an image, (T, 3, h, w) uint8 or float32 in [0, 1], and their placement."""
        prepared, placement = self.prepare(image)
        return torch.stack([placement.cut(prepared, index) for index in range(len(placement))]), placement

    def merge(self, tiles: Tensor, placement: Placement) -> Tensor:
        """Blend the maps of all tiles, (T, h', w') at any stride, into the native (H, W) float32 map."""
        canvas = Canvas(placement, tiles.device)
        for index, tile in enumerate(tiles):
            canvas.add(index, tile)
        return canvas.result()


@dataclass(frozen=True)
class Placement:
    """Where the tiles of one image lie.

    Attributes
    ----------
    native : (int, int)
        Height and width of the image.
    pad : (int, int, int, int)
        Left, right, top, bottom padding to a square, in native pixels.
    grid : (int, int)
        Size after padding and resizing.
    margin : int
        Mirrored pixels around the grid.
    tile : (int, int)
    rows, columns : tuple of int
        Starts of the tiles on each axis of the canvas: the grid with its margin, at least one tile large.
    """

    native: tuple[int, int]
    pad: tuple[int, int, int, int]
    grid: tuple[int, int]
    margin: int
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def canvas(self) -> tuple[int, int]:
        """Size of what tiles are cut from."""
        height, width = (
            max(n + 2 * self.margin, t) for n, t in zip(self.grid, self.tile, strict=True)
        )
        return height, width

    def cut(self, prepared: Tensor, index: int) -> Tensor:
        """Return tile `index`, row by row, of a prepared (3, h, w) image."""
        row, column = divmod(index, len(self.columns))
        top, left = self.rows[row], self.columns[column]
        return prepared[:, top : top + self.tile[0], left : left + self.tile[1]]

    @cached_property
    def windows(self) -> tuple[Tensor, Tensor]:
        """Weights (tiles of the axis, tile length) of both axes; over each pixel they sum to one."""
        return (
            _windows(self.rows, self.tile[0], self.canvas[0]),
            _windows(self.columns, self.tile[1], self.canvas[1]),
        )


class Canvas:
    """The growing merged map of one image; holds one map, however many tiles there are.

    Parameters
    ----------
    placement : Placement
    device : torch.device
    """

    def __init__(self, placement: Placement, device: torch.device) -> None:
        self.placement = placement
        self._sum = torch.zeros(placement.canvas, device=device)
        self._windows = tuple(window.to(device) for window in placement.windows)

    def add(self, index: int, tile: Tensor) -> None:
        """Blend in the (h', w') map of tile `index`, upsampled bilinearly to the tile's size."""
        placement = self.placement
        row, column = divmod(index, len(placement.columns))
        full = _resize(tile.float(), placement.tile)
        weighted = full * self._windows[0][row, :, None] * self._windows[1][column, None, :]
        top, left = placement.rows[row], placement.columns[column]
        self._sum[top : top + placement.tile[0], left : left + placement.tile[1]] += weighted

    def add_decision(self, index: int, tile: Tensor) -> None:
        """Mark what tile `index` decided, (h', w') bool: a pixel is called if any tile calls it."""
        placement = self.placement
        row, column = divmod(index, len(placement.columns))
        full = F.interpolate(tile[None, None].float(), placement.tile, mode="nearest-exact")[0, 0]
        top, left = placement.rows[row], placement.columns[column]
        part = self._sum[top : top + placement.tile[0], left : left + placement.tile[1]]
        torch.maximum(part, full, out=part)

    def result(self, *, nearest: bool = False) -> Tensor:
        """Return the (H, W) float32 map on the native grid."""
        placement = self.placement
        left, right, top, bottom = placement.pad
        height, width = placement.native
        margin = placement.margin
        merged = self._sum[margin : margin + placement.grid[0], margin : margin + placement.grid[1]]
        padded = (height + top + bottom, width + left + right)
        if nearest:
            merged = F.interpolate(merged[None, None], padded, mode="nearest-exact")[0, 0]
        else:
            merged = _resize(merged, padded)
        return merged[top : top + height, left : left + width].contiguous()


def tile_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Return where tiles start on an axis: a regular step, the last one shifted inward to the border."""
    last = max(0, length - tile)
    return (*range(0, last, tile - overlap), last)


def to_uint8_tensor(image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Tensor:
    """Return an (H, W, 3) image as (3, H, W): uint8 as it is, uint16 as float32 in [0, 1]."""
    if image.dtype == np.uint16:
        return torch.from_numpy(image.astype(np.float32) / 65535).permute(2, 0, 1).contiguous()
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()


def to_unit(batch: Tensor, device: torch.device) -> Tensor:
    """Return a batch on the device as float32 in [0, 1]; uint8 travels and is divided there."""
    moved = batch.to(device, non_blocking=True)
    return moved if moved.is_floating_point() else moved.float() / 255


def _windows(starts: tuple[int, ...], tile: int, length: int) -> Tensor:
    """Return triangular windows, clipped to a plateau, that are normalised to sum to one at every pixel."""
    steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    ramp = max([tile - step for step in steps], default=1)
    position = torch.arange(tile, dtype=torch.float64) + 0.5
    window = torch.minimum(position, tile - position).clamp(max=max(1, ramp)) / max(1, ramp)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + tile] += window
    return torch.stack([window / total[start : start + tile] for start in starts]).float()


def _resize(single: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(single.shape) == size:
        return single
    return F.interpolate(single[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def _mirror_pad(tensor: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Mirror at the borders, the border pixel not repeated; as often as small images need."""

    def indices(before: int, length: int, after: int) -> Tensor:
        period = max(1, 2 * (length - 1))
        folded = torch.arange(-before, length + after) % period
        return torch.minimum(folded, period - folded).clamp(0, length - 1)

    left, right, top, bottom = pad
    rows = indices(top, tensor.shape[1], bottom)
    return tensor[:, rows][:, :, indices(left, tensor.shape[2], right)]


def _edge_pad(tensor: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    left, right, top, bottom = pad
    rows = torch.arange(-top, tensor.shape[1] + bottom).clamp(0, tensor.shape[1] - 1)
    columns = torch.arange(-left, tensor.shape[2] + right).clamp(0, tensor.shape[2] - 1)
    return tensor[:, rows][:, :, columns]




def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
