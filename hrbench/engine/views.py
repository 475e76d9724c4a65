"""Views: how a method looks at an image, and how its maps come back to the image's own grid.

========================  ==================================================================================
``whole:1036``            the whole image stretched to 1036 x 1036
``whole:448x1120``        ... to height 448, width 1120
``whole:1036:square``     centred in a square by repeating its borders, then resized
``tiled:518:112``         tiles of 518 pixels that overlap by at least 112, at camera pitch
``tiled:518:112@0.5``     the same on the image shrunk to half its size
``whole:256:bilinear``    any of these that resizes, by the filter named last
``VIEW+VIEW``             several of one input size, fused (see :mod:`hrbench.engine.fusion`): whole:512+tiled:512:128
========================  ==================================================================================

A view is a tuple of looks, most often of one. A look is one geometry: pad, resize, cut into a grid of tiles; where it
takes the whole image, there is a single tile.

Images are resized by an antialiased bicubic filter unless a look names another, to repeat what others have done.
``bilinear`` is antialiased too: Pillow's filter of that name. ``bilinear-aliased`` reads the four nearest pixels
however far it shrinks, and so may miss what is small: what torchvision did with tensors before its version 0.17. Both
are within one grey level of those.

Merging weighs each tile by a product of two one-dimensional windows that sum to one over the tiles of an axis, so the
weights form a partition of unity by construction. What a network says near the border of a tile is spoilt by the
padding of its layers: the outer quarter of an overlap is left to the neighbour. Where a quarter of the overlap is no
less than the network's receptive radius, the merged map is that of the whole image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import ClassVar, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from hrbench.errors import HrbenchError

__all__ = [
    "DecisionCanvas",
    "Filter",
    "Look",
    "MapCanvas",
    "Placement",
    "View",
    "image_tensor",
    "stack_tiles",
    "tile_starts",
    "to_unit",
]

SPOILT = 0.25  # share of an overlap, at either of its ends, that the tile which ends there has no part in

Filter = Literal["bicubic", "bilinear", "bilinear-aliased"]

_PATTERN = re.compile(
    r"(whole:(?P<height>\d+)(x(?P<width>\d+))?(?P<square>:square)?"
    r"|tiled:(?P<tile>\d+):(?P<overlap>\d+)(@(?P<scale>[0-9.]+))?)(:(?P<filter>[a-z-]+))?"
)
_FORMS = (
    "whole:SIZE, whole:HEIGHTxWIDTH, whole:SIZE:square, tiled:TILE:OVERLAP or tiled:TILE:OVERLAP@SCALE, with :FILTER "
    "after any that resizes"
)
_FILTERS = tuple(name for name in get_args(Filter) if name != "bicubic")  # that a look may name: a view has one text


@dataclass(frozen=True)
class Look:
    """One geometry in which an image is looked at.

    Attributes
    ----------
    text : str
        As the user wrote it.
    tile : (int, int)
        Height and width of a model input.
    overlap : int or None
        Least overlap of neighbouring tiles in pixels; None for the whole image.
    scale : float
        Of the image before tiling.
    square : bool
        Pad to a square first.
    filter : str
        By which the image is resized: ``bicubic``, ``bilinear`` or ``bilinear-aliased`` (see the module).
    """

    text: str
    tile: tuple[int, int]
    overlap: int | None = None
    scale: float = 1.0
    square: bool = False
    filter: Filter = "bicubic"

    @staticmethod
    def parse(text: str) -> Look:
        """Read one look from its text; anything else is an error that shows the forms."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise HrbenchError(f"view {text!r}: expected {_FORMS}, sizes in pixels")
        named = match["filter"]
        if named == "bicubic":
            raise HrbenchError(f"view {text!r}: bicubic is the filter where none is named, expected none")
        if named and named not in _FILTERS:
            raise HrbenchError(
                f"view {text!r}: filter {named!r}, expected {' or '.join(_FILTERS)}, or none for bicubic"
            )
        filter_ = cast("Filter", named or "bicubic")
        if match["height"]:
            height, width = int(match["height"]), int(match["width"] or match["height"])
            look = Look(text, (height, width), square=bool(match["square"]), filter=filter_)
        else:
            tile, overlap = int(match["tile"]), int(match["overlap"])
            scale = _number(match["scale"] or "1")
            if not (overlap < tile and 0 < scale <= 1):
                raise HrbenchError(f"view {text!r}: expected an overlap below the tile and a scale in (0, 1]")
            if named and scale == 1:
                raise HrbenchError(f"view {text!r}: nothing is resized at camera pitch, expected no filter")
            look = Look(text, (tile, tile), overlap, scale, filter=filter_)
        if min(look.tile) < 1 or (look.square and look.tile[0] != look.tile[1]):
            raise HrbenchError(f"view {text!r}: expected {_FORMS}, sizes of at least one pixel")
        return look

    def place(self, size: tuple[int, int]) -> Placement:
        """Return where the tiles of an image of `size` (H, W) lie."""
        height, width = size
        pad = (0, 0, 0, 0)
        if self.square:
            side = max(size)
            top, left = (side - height) // 2, (side - width) // 2
            pad = (left, side - width - left, top, side - height - top)
        if self.overlap is None:
            grid = self.tile
        else:
            grid = (max(1, round(height * self.scale)), max(1, round(width * self.scale)))
        overlap = self.overlap or 0
        return Placement(
            size, pad, grid, self.tile, *(tile_starts(n, t, overlap) for n, t in zip(grid, self.tile, strict=True))
        )

    def prepare(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> tuple[Tensor, Placement]:
        """Pad and resize an (H, W, 3) image to the grid that tiles are cut from.

        Returns
        -------
        Tensor
            (3, h, w) uint8, or float32 in [0, 1] for 16-bit images; where nothing is padded or resized, a view of the
            image.
        Placement
        """
        height, width = image.shape[:2]
        placement = self.place((height, width))
        tensor = image_tensor(image)
        if any(placement.pad):
            tensor = _edge_pad(tensor, placement.pad)
        if tensor.shape[1:] != placement.grid and placement.grid == (1, 1):  # torch fails on one pixel of 8 bits
            tensor = tensor.double().mean(dim=(1, 2), keepdim=True).to(tensor.dtype)
        elif tensor.shape[1:] != placement.grid:
            mode = "bicubic" if self.filter == "bicubic" else "bilinear"
            antialias = self.filter != "bilinear-aliased"
            tensor = F.interpolate(tensor[None], placement.grid, mode=mode, antialias=antialias)[0]
            if tensor.is_floating_point():
                tensor = tensor.clamp(0, 1)
        missing = [max(0, t - n) for t, n in zip(placement.tile, placement.grid, strict=True)]
        if any(missing):
            tensor = _edge_pad(tensor, (0, missing[1], 0, missing[0]))
        return tensor, placement

    def split(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> tuple[Tensor, Placement]:
        """Return all tiles of an image, (T, 3, h, w) uint8 or float32 in [0, 1], and their placement."""
        prepared, placement = self.prepare(image)
        return stack_tiles([placement.cut(prepared, index) for index in range(len(placement))]), placement

    def merge(self, tiles: Tensor, placement: Placement) -> Tensor:
        """Blend the maps of all tiles, (T, h', w') at any stride, into the native (H, W) float32 map."""
        canvas = MapCanvas(placement, tiles.device)
        for index, tile in enumerate(tiles):
            canvas.add(index, tile)
        return canvas.result()


@dataclass(frozen=True)
class View:
    """How an image is looked at: in one way, or in several whose maps are fused.

    Attributes
    ----------
    text : str
        As the user wrote it.
    looks : tuple of Look
        At least one, all different and with inputs of one size.
    """

    text: str
    looks: tuple[Look, ...]

    @staticmethod
    def parse(text: str) -> View:
        """Read a look, or several joined by ``+``.

        Raises
        ------
        HrbenchError
            For a malformed look, one that is there twice, or looks whose inputs differ in size: a method is fitted on
            the inputs of all looks together, which must fit into one batch.
        """
        texts = text.split("+")
        if len(texts) == 1:
            return View(text, (Look.parse(text),))
        try:
            looks = tuple(Look.parse(part) for part in texts)
        except HrbenchError as error:
            raise HrbenchError(f"fused view {text!r}: {error}") from None
        if len(set(texts)) < len(texts):
            raise HrbenchError(f"fused view {text!r}: a view is there twice, expected different ones")
        sizes = list(dict.fromkeys(f"{height}x{width}" for height, width in (look.tile for look in looks)))
        if len(sizes) > 1:
            raise HrbenchError(
                f"fused view {text!r}: inputs of {' and '.join(sizes)} pixels, expected one size for all"
            )
        return View(text, looks)

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a model input."""
        return self.looks[0].tile

    def check_multiple(self, multiple: int, method: str) -> None:
        """Raise an error unless the tile is a multiple of what the method needs; it names the nearest sizes."""
        for size in self.tile:
            if size % multiple:
                low = size // multiple * multiple
                near = " or ".join(str(x) for x in (low, low + multiple) if x)
                raise HrbenchError(
                    f"view {self.looks[0].text!r}: {method} needs sizes that are multiples of {multiple}, "
                    f"{size} is not; use {near}"
                )

    def prepare(self, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> list[tuple[Tensor, Placement]]:
        """Return an image as each look prepares it, see :meth:`Look.prepare`."""
        return [look.prepare(image) for look in self.looks]


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
    tile : (int, int)
    rows, columns : tuple of int
        Starts of the tiles on each axis of the grid.
    """

    native: tuple[int, int]
    pad: tuple[int, int, int, int]
    grid: tuple[int, int]
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the image after padding, in native pixels."""
        left, right, top, bottom = self.pad
        return self.native[0] + top + bottom, self.native[1] + left + right

    def cut(self, prepared: Tensor, index: int) -> Tensor:
        """Return what lies under tile `index`, row by row, of a prepared (3, h, w) image or an (h, w) canvas."""
        row, column = divmod(index, len(self.columns))
        top, left = self.rows[row], self.columns[column]
        return prepared[..., top : top + self.tile[0], left : left + self.tile[1]]

    @cached_property
    def windows(self) -> tuple[Tensor, Tensor]:
        """Weights (tiles of the axis, tile length) of both axes; over each pixel they sum to one."""
        return (
            _windows(self.rows, self.tile[0], self.grid[0]),
            _windows(self.columns, self.tile[1], self.grid[1]),
        )


class _Canvas:
    """What grows from the tiles of one image to its native size; holds one map, however many tiles there are.

    Parameters
    ----------
    placement : Placement
    device : torch.device
    """

    _dtype: ClassVar[torch.dtype]
    _resampling: ClassVar[str]

    def __init__(self, placement: Placement, device: torch.device) -> None:
        self.placement = placement
        self._device = device
        self._merged: Tensor | None = None
        self._windows = tuple(window.to(device, non_blocking=True) for window in placement.windows)

    def _at(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the part of the canvas that lies under a tile, and the weights of the tile's rows and columns."""
        placement = self.placement
        if self._merged is None:
            height, width = (max(n, t) for n, t in zip(placement.grid, placement.tile, strict=True))
            self._merged = torch.zeros((height, width), dtype=self._dtype, device=self._device)
        row, column = divmod(index, len(placement.columns))
        return placement.cut(self._merged, index), self._windows[0][row, :, None], self._windows[1][column, None, :]

    def _grid(self) -> Tensor:
        """Return the part of the canvas that is the image, without what pads it to a tile."""
        assert self._merged is not None, "no tile was added"
        return self._merged[: self.placement.grid[0], : self.placement.grid[1]]

    def _native(self, merged: Tensor, *, keep_padding: bool = False) -> Tensor:
        """Bring what was merged to the native size, with or without padding; no copy is made of what has it already."""
        placement = self.placement
        padded = placement.padded
        if keep_padding or not any(placement.pad):
            return self._resize(merged, padded).contiguous()
        left, _, top, bottom = placement.pad
        # The padded axis first: what lies in the padding is then never made at full size.
        for axis in (0, 1) if top + bottom else (1, 0):
            size = (padded[0], merged.shape[1]) if axis == 0 else (merged.shape[0], padded[1])
            merged = self._resize(merged, size).narrow(axis, (top, left)[axis], placement.native[axis])
        return merged.contiguous()

    def _resize(self, single: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(single.shape) == size:
            return single
        return F.interpolate(single[None, None], size, mode=self._resampling)[0, 0]


class MapCanvas(_Canvas):
    """The growing merged map of one image: a mean of its tiles by their windows."""

    _dtype = torch.float32
    _resampling = "bilinear"
    _single: Tensor | None = None

    def add(self, index: int, tile: Tensor) -> None:
        """Blend in the (h', w') map of tile `index`, upsampled bilinearly to the tile's size."""
        if len(self.placement) == 1 and self.placement.grid == self.placement.tile:
            self._single = tile.float()  # brought to the native size in one step
            return
        full = self._resize(tile.float(), self.placement.tile)
        under, rows, columns = self._at(index)
        under.add_(full * rows * columns)

    def result(self, *, padded: bool = False) -> Tensor:
        """Return the native map, (H, W) float32; a canvas that is as large as the image is itself handed out.

        With `padded` the map is as large as the padded image, in native pixels too.
        """
        return self._native(self._grid() if self._single is None else self._single, keep_padding=padded)


class DecisionCanvas(_Canvas):
    """What was decided of one image: a pixel is predicted as a defect if any tile with a part in it predicts so."""

    _dtype = torch.uint8
    _resampling = "nearest-exact"

    def add(self, index: int, tile: Tensor) -> None:
        """Mark what tile `index` decided, (h', w') bool."""
        full = self._resize(tile.to(torch.uint8), self.placement.tile)
        under, rows, columns = self._at(index)
        under.bitwise_or_(full & ((rows > 0) & (columns > 0)))

    def result(self) -> Tensor:
        """Return the native decision, (H, W) bool; a canvas that is as large as the image is itself handed out."""
        return self._native(self._grid()).view(torch.bool)


def tile_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Return where tiles start on an axis: a regular step, the last one shifted inward to the border."""
    last = max(0, length - tile)
    return (*range(0, last, tile - overlap), last)


def image_tensor(image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Tensor:
    """Return an (H, W, 3) image as (3, H, W): uint8 as a view of it, uint16 as float32 in [0, 1]."""
    if image.dtype == np.uint16:
        image = np.divide(image, np.float32(65535), dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def stack_tiles(tiles: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """Copy tiles of one size into a contiguous batch; where 8-bit and 16-bit images meet, all become float32 in [0, 1].

    With `pinned`, the batch lies in memory from which a GPU can fetch it while the host goes on.
    """
    if len({tile.dtype for tile in tiles}) > 1:
        tiles = [to_unit(tile, tile.device) for tile in tiles]
    batch = torch.empty((len(tiles), *tiles[0].shape), dtype=tiles[0].dtype, pin_memory=pinned)
    for row, tile in zip(batch, tiles, strict=True):
        row.copy_(tile)
    return batch


def to_unit(batch: Tensor, device: torch.device) -> Tensor:
    """Return a batch on the device as float32 in [0, 1]; uint8 travels and is divided there."""
    moved = batch.to(device, non_blocking=True)
    return moved if moved.is_floating_point() else moved.float() / 255


@lru_cache(maxsize=64)
def _windows(starts: tuple[int, ...], tile: int, length: int) -> Tensor:
    """Return windows that fade from tile to tile over the inner part of each overlap and sum to one at every pixel."""
    position = torch.arange(tile, dtype=torch.float64) + 0.5
    overlaps = [a + tile - b for a, b in pairwise(starts)]
    rises = [torch.ones_like(position), *(_rise(position, overlap) for overlap in overlaps)]
    falls = [*(_rise(tile - position, overlap) for overlap in overlaps), torch.ones_like(position)]
    windows = [rise * fall for rise, fall in zip(rises, falls, strict=True)]
    total = torch.zeros(max(length, tile), dtype=torch.float64)
    for start, window in zip(starts, windows, strict=True):
        total[start : start + tile] += window
    return torch.stack([w / total[start : start + tile] for start, w in zip(starts, windows, strict=True)]).float()


def _rise(distance: Tensor, overlap: int) -> Tensor:
    """Return weights by the distance from a border that a neighbour overlaps: zero at first, then a ramp to one."""
    return ((distance - SPOILT * overlap) / max(1.0, (1 - 2 * SPOILT) * overlap)).clamp(0, 1)


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
