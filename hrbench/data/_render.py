"""What the procedural surfaces are drawn with: smooth noise, turned planes, blends, and light."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = [
    "DARKEST",
    "LIGHTEST",
    "Array",
    "Scene",
    "Size",
    "expose",
    "mix",
    "plane",
    "pose",
    "rgb",
    "smooth",
    "split",
    "step",
]

Array = NDArray[Any]  # of float32 throughout
Size = tuple[int, int]

DARKEST, LIGHTEST = 16.0, 239.0
"""Range of defect-free pixels: at every one there is room for a visible change either way, and for noise."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """A defect-free view before sensor noise.

    Attributes
    ----------
    image : ndarray of float32, shape (H, W, 3)
        Grey levels within ``DARKEST`` and ``LIGHTEST``.
    under : ndarray of float32, broadcastable to (H, W, 3)
        What shows where a part of the surface is missing.
    part : ndarray of bool, shape (H, W), or None
        Where the product is; None if it fills the view.
    """

    image: Array
    under: Array
    part: NDArray[np.bool_] | None = None


def smooth(rng: np.random.Generator, size: Size, cell: float | tuple[float, float]) -> Array:
    """Return smooth noise with mean 0 and standard deviation about 1.

    Parameters
    ----------
    rng : Generator
    size : tuple of int
        Height and width.
    cell : float or tuple of float
        Size of its blobs in px, per axis.

    Returns
    -------
    ndarray of float32, shape (H, W)
    """
    cells = cell if isinstance(cell, tuple) else (cell, cell)
    rows, columns = (_spline(length, step) for length, step in zip(size, cells, strict=True))
    knots = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    # Sparse products, not matrix products: their result does not depend on the number of threads.
    half = np.ascontiguousarray((rows @ knots).T)
    field: Array = (columns @ half).T
    return field * np.float32(1 / 0.48)


def _spline(length: int, cell: float) -> sparse.csr_array:
    """Return the cubic B-spline weights (length, knots) of each pixel."""
    at = np.arange(length) / max(cell, 1e-3)
    first = np.floor(at).astype(np.int64)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    index = first[:, None] + np.arange(4)
    pointer = np.arange(0, 4 * length + 1, 4)
    shape = (length, int(first[-1]) + 4)
    return sparse.csr_array((weights.astype(np.float32).ravel(), index.ravel(), pointer), shape=shape)


def plane(size: Size, angle: float, scale: float, shift: tuple[float, float]) -> tuple[Array, Array]:
    """Return coordinates (v, u) in px of a plane turned by `angle` about the centre, scaled and shifted."""
    y = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(size[0] / 2)
    x = np.arange(size[1], dtype=np.float32)[None] - np.float32(size[1] / 2)
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return cos * y + sin * x + np.float32(shift[0]), cos * x - sin * y + np.float32(shift[1])


def rgb(*levels: float) -> Array:
    return np.array(levels, dtype=np.float32)


def mix(a: Array, b: Array, weight: Array) -> Array:
    """Blend colours (3,) or images (H, W, 3) by a weight (H, W)."""
    blend: Array = a + (b - a) * weight[..., None]
    return blend


def step(x: Array, low: float, high: float) -> Array:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    rise: Array = t * t * (3 - 2 * t)
    return rise


def split(x: Array) -> tuple[NDArray[np.int32], Array]:
    """Split a coordinate into the cell's number and the place in it, -0.5 to 0.5."""
    cell = np.floor(x)
    return cell.astype(np.int32), x - cell - np.float32(0.5)


def expose(
    rng: np.random.Generator,
    image: Array,
    under: Array,
    part: NDArray[np.bool_] | None = None,
    *,
    strength: float = 0.05,
) -> Scene:
    """Take the photograph: uneven light, exposure and white balance, within the range of a good exposure.

    Parameters
    ----------
    rng : Generator
    image : ndarray, shape (H, W, 3)
    under, part : see Scene
        An `under` of shape (H, W, 3) is lit by the same lamp; a colour is taken as it is.
    strength : float
        Unevenness of the light.
    """
    size = (image.shape[0], image.shape[1])
    v, u = plane(size, 0.0, max(size) / 2, (0.0, 0.0))
    direction = rng.uniform(0, 2 * np.pi)
    field = np.float32(strength * np.cos(direction)) * u + np.float32(strength * np.sin(direction)) * v
    field = field - np.float32(rng.uniform(0.03, 0.08)) * (u * u + v * v)
    field = 1 + field + np.float32(strength / 4) * smooth(rng, size, min(size) / 3)
    gains = (rng.uniform(0.96, 1.04) * rng.uniform(0.99, 1.01, 3)).astype(np.float32)
    lit = np.empty((*size, 3), dtype=np.float32)
    lit_under = np.empty_like(lit) if under.ndim == 3 else under
    for channel, gain in enumerate(gains):
        lamp = field * gain
        np.clip(image[..., channel] * lamp, DARKEST, LIGHTEST, out=lit[..., channel])
        if under.ndim == 3:
            np.clip(under[..., channel] * lamp, DARKEST, LIGHTEST, out=lit_under[..., channel])
    return Scene(lit, lit_under, part)


def pose(
    rng: np.random.Generator, degrees: float, scale: float, shift: float
) -> tuple[float, float, tuple[float, float]]:
    """Draw a small rotation in rad, a scale near 1 and a shift in px."""
    offset = (rng.uniform(-shift, shift), rng.uniform(-shift, shift))
    return math.radians(rng.uniform(-degrees, degrees)), rng.uniform(1 - scale, 1 + scale), offset
