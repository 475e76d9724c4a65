"""The pixels that a mask gains and loses where it is drawn one pixel wider, or narrower."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from hrbench.imaging.components import Components

__all__ = ["RimPixels", "find_rims"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RimPixels:
    """The rims of the components of one mask, each of one pixel in all eight directions.

    Attributes
    ----------
    outer : ndarray of int64, (sum of counts,)
        Flat indices of the pixels that dilation adds, component after component, rising within each. A pixel beside
        several components is that of the first.
    counts : ndarray of int64, (K,)
        Pixels of each outer rim.
    inner : ndarray of bool, (sum of areas,)
        Which of ``components.pixels`` erosion takes away. What lies beyond the image's border takes none away.
    """

    outer: Ints
    counts: Ints
    inner: Bools


def find_rims(mask: npt.NDArray[np.bool_], components: Components) -> RimPixels:
    """Return what dilation and erosion by a square of 3 x 3 pixels change: as dear as the defects are large.

    The result is that of :func:`scipy.ndimage.binary_dilation`, and of :func:`scipy.ndimage.binary_erosion` with
    ``border_value=1``.

    Parameters
    ----------
    mask : (H, W) bool
    components : Components
        Of the mask.
    """
    if not components.pixels.size:
        return RimPixels(components.pixels, components.areas, np.zeros(0, bool))
    flat = mask.ravel()
    inner = ~_eroded(mask, components)
    owner = np.repeat(np.arange(components.areas.size), components.areas)[inner]
    beside = np.stack([*_neighbours(components.pixels[inner], mask.shape)], axis=1)  # of a component after another
    outside = ~flat[beside]
    outer, first = np.unique(beside[outside], return_index=True)
    owner = np.repeat(owner, outside.sum(axis=1))[first]
    return RimPixels(
        outer[np.argsort(owner, kind="stable")], np.bincount(owner, minlength=components.areas.size), inner
    )


def _eroded(mask: npt.NDArray[np.bool_], components: Components) -> Bools:
    """Return which of the components' pixels have no neighbour that is none of a defect."""
    if components.pixels.size < mask.size // 128:  # few: to look at each one's neighbours is faster
        flat, inside = mask.ravel(), np.ones(components.pixels.size, bool)
        for beside in _neighbours(components.pixels, mask.shape):
            inside &= flat[beside]
        return inside
    first, last = max(int(components.boxes[:, 0].min()) - 1, 0), int(components.boxes[:, 2].max()) + 1
    rows = mask[first:last]
    across = rows.copy()
    across[:, 1:] &= rows[:, :-1]
    across[:, :-1] &= rows[:, 1:]
    whole = across.copy()
    whole[1:] &= across[:-1]
    whole[:-1] &= across[1:]
    kept: Bools = whole.ravel()[components.pixels - first * mask.shape[1]]
    return kept


def _neighbours(pixels: Ints, shape: tuple[int, int]) -> list[Ints]:
    """Return the flat indices of the eight neighbours of pixels; beyond the border, those of pixels at it instead."""
    height, width = shape
    rows, columns = np.divmod(pixels, width)
    lines = [np.maximum(rows - 1, 0) * width, rows * width, np.minimum(rows + 1, height - 1) * width]
    places = [np.maximum(columns - 1, 0), columns, np.minimum(columns + 1, width - 1)]
    return [lines[i] + places[j] for i, j in product(range(3), range(3)) if (i, j) != (1, 1)]
