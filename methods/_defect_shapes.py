"""Shapes of drawn defects: Perlin noise to be thresholded, large simple shapes, irregular blobs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["blob", "perlin_noise", "simple_shape"]


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return gradient noise.

    Parameters
    ----------
    size : (int, int)
        Height and width in pixels; any, where DRAEM's needs multiples of the lattice.
    cells : (int, int)
        Cells of the lattice along each side.
    rng : numpy.random.Generator

    Returns
    -------
    Tensor
        (h, w) float32 in [-1, 1], zero at the corners of cells.
    """
    angles = 2 * math.pi * torch.from_numpy(rng.random((cells[0] + 1, cells[1] + 1), dtype=np.float32))
    gradients = angles.cos(), angles.sin()
    rows, columns = (torch.arange(n) * (c / n) for n, c in zip(size, cells, strict=True))
    row, column = rows.long(), columns.long()
    y, x = (rows - row)[:, None], (columns - column)[None]

    def slope(down: int, right: int) -> Tensor:
        along = [g[row + down][:, column + right] for g in gradients]
        return along[0] * (y - down) + along[1] * (x - right)

    def fade(t: Tensor) -> Tensor:
        return t**3 * (t * (6 * t - 15) + 10)

    upper = torch.lerp(slope(0, 0), slope(0, 1), fade(x))
    lower = torch.lerp(slope(1, 0), slope(1, 1), fade(x))
    return math.sqrt(2) * torch.lerp(upper, lower, fade(y))


def simple_shape(size: tuple[int, int], rng: np.random.Generator, *, unit: float = 1.0) -> Tensor:
    """Return a rectangle, an ellipse or a polygon of 3 to 8 corners (even-odd), (h, w) bool.

    Parameters
    ----------
    size : (int, int)
        Height and width in pixels.
    rng : numpy.random.Generator
    unit : float
        Pixels of `size` that a pixel of the published margin and least side is.
    """
    height, width = size
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    kind = rng.integers(3)
    if kind == 2:
        corners = rng.uniform((0, 0), (height, width), (rng.integers(3, 9), 2)).tolist()
        inside = torch.zeros(size, dtype=torch.bool)
        for (y0, x0), (y1, x1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if y0 == y1:
                continue
            crossed = (rows > min(y0, y1)) & (rows <= max(y0, y1))
            inside ^= crossed & (columns < x0 + (rows - y0) * ((x1 - x0) / (y1 - y0)))
        return inside
    # The published margin of 50 px and least side of 10 px, within reason for small tiles.
    least = 10 * unit
    margin = [min(50 * unit, n // 2) for n in size]
    top, left = (rng.uniform(0, n - m) for n, m in zip(size, margin, strict=True))
    tall, wide = (rng.uniform(least, max(least, n - start)) for n, start in zip(size, (top, left), strict=True))
    if kind == 0:
        return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    y, x = (rows - top - tall / 2) / (tall / 2), (columns - left - wide / 2) / (wide / 2)
    return y**2 + x**2 < 1


def blob(size: tuple[int, int], diameter: float, rng: np.random.Generator) -> tuple[int, int, Tensor]:
    """Return top, left and the (h, w) cover in [0, 1] of an irregular ellipse, clipped to the image."""
    stretch = math.exp(rng.uniform(0, math.log(2)))
    longer, shorter = diameter / 2 * stretch, diameter / 2 / stretch
    reach = 1.3 * longer + 1
    middle = rng.uniform((0, 0), size)
    (top, bottom), (left, right) = (
        (max(0, int(m - reach)), min(n, int(m + reach) + 1)) for m, n in zip(middle, size, strict=True)
    )
    y = torch.arange(top, bottom)[:, None] + 0.5 - float(middle[0])
    x = torch.arange(left, right)[None] + 0.5 - float(middle[1])
    turn = rng.uniform(0, math.pi)
    along = (math.cos(turn) * x + math.sin(turn) * y) / longer
    across = (math.cos(turn) * y - math.sin(turn) * x) / shorter
    angle = torch.atan2(across, along)
    outline = 1 + sum(rng.uniform(0, 0.2) / k * torch.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 5))
    distance = (outline - torch.hypot(along, across)) * shorter  # about pixels, inwards
    return top, left, (distance + 0.5).clamp(0, 1)
