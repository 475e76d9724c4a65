"""Connected components of sparse masks, from runs of pixels: as dear as the defects are large, not the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Components", "find_components"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """The connected components of one mask, in the order of their first pixels row by row.

    Attributes
    ----------
    pixels : ndarray of int64, (sum of areas,)
        Flat indices into the mask, component after component, rising within each.
    areas : ndarray of int64, (K,)
        In pixels.
    boxes : ndarray of int64, (K, 4)
        top, left, bottom, right; the last two exclusive.
    """

    pixels: Ints
    areas: Ints
    boxes: Ints


def find_components(mask: npt.NDArray[np.bool_], connectivity: int = 8) -> Components:
    """Label a mask.

    Runs of neighbouring pixels of a row are the nodes of a graph; two runs of adjoining rows are joined if they
    touch. The result is that of :func:`scipy.ndimage.label`, without an array of labels.

    Parameters
    ----------
    mask : (H, W) bool
    connectivity : {4, 8}
    """
    width = mask.shape[1]
    pixels = np.flatnonzero(mask)
    if not pixels.size:
        return Components(pixels, np.zeros(0, np.int64), np.zeros((0, 4), np.int64))
    breaks = (np.diff(pixels) > 1) | (pixels[1:] % width == 0)
    first = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lengths = np.diff(np.append(first, pixels.size))
    rows, lefts = np.divmod(pixels[first], width)
    rights = lefts + lengths

    # In rows that are two wider, a run's end never passes the next row's start: positions rise along the runs.
    touch = 1 if connectivity == 8 else 0
    wide = width + 2
    starts, ends = rows * wide + lefts, rows * wide + rights
    low = np.searchsorted(ends, starts + wide + (1 - touch), side="left")
    high = np.searchsorted(starts, ends + wide - (1 - touch), side="right")
    neighbours = np.maximum(high - low, 0)
    above = np.repeat(np.arange(first.size), neighbours)
    below = np.arange(above.size) - np.repeat(np.cumsum(neighbours) - neighbours - low, neighbours)
    graph = coo_array((np.ones(above.size, np.int8), (above, below)), shape=(first.size, first.size))
    number, labels = connected_components(graph, directed=False)

    order = np.argsort(labels, kind="stable")
    groups = np.searchsorted(labels[order], np.arange(number))
    boxes = np.stack(
        [
            np.minimum.reduceat(rows[order], groups),
            np.minimum.reduceat(lefts[order], groups),
            np.maximum.reduceat(rows[order], groups) + 1,
            np.maximum.reduceat(rights[order], groups),
        ],
        axis=1,
    )
    sizes = lengths[order]
    offsets = np.repeat(pixels[first[order]] - (np.cumsum(sizes) - sizes), sizes)
    return Components(offsets + np.arange(pixels.size), np.add.reduceat(sizes, groups), boxes)
