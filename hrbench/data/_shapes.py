"""Shapes of procedural defects, as heights over a window: its highest pixels become the defect."""

from __future__ import annotations

import numpy as np

from hrbench.data._render import Array, Size, smooth

__all__ = ["Field", "blob", "stain", "stroke"]

Field = tuple[Array, tuple[int, int]]
"""Heights over a window (h, w), and the row and column in it that go to the defect's place."""


def _window(half_height: float, half_width: float) -> tuple[Array, Array, tuple[int, int]]:
    rows, columns = int(half_height) + 2, int(half_width) + 2
    y = np.arange(-rows, rows + 1, dtype=np.float32)[:, None]
    x = np.arange(-columns, columns + 1, dtype=np.float32)[None]
    return y, x, (rows, columns)


def blob(rng: np.random.Generator, area: int, size: Size, *, ragged: float = 0.12, stretch: float = 2.0) -> Field:
    """Return a field that falls from the middle of a rounded, uneven patch outwards."""
    radius = np.sqrt(area / np.pi)
    longer = np.sqrt(rng.uniform(1, stretch))
    reach = min(2.1 * radius * longer + 3, 2 * max(size))
    y, x, origin = _window(reach, reach)
    y, x = y + np.float32(rng.uniform(-0.5, 0.5)), x + np.float32(rng.uniform(-0.5, 0.5))
    turn = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    a, b = (cos * x + sin * y) / np.float32(longer), (cos * y - sin * x) * np.float32(longer)
    distance = np.sqrt(a * a + b * b) / np.float32(radius)
    if area > 24:
        angle = np.arctan2(b, a)
        outline = np.ones_like(angle)
        for k in range(2, 7):
            swing = np.float32(ragged * rng.normal() / np.sqrt(k - 1))
            outline += swing * np.cos(k * angle + np.float32(rng.uniform(0, 2 * np.pi)))
        distance = distance / np.clip(outline, 0.45, 1.8)
    return 1 - distance, origin


def stain(rng: np.random.Generator, area: int, size: Size) -> Field:
    """Return a blob with a ragged, cloudy outline."""
    field, origin = blob(rng, area, size, ragged=0.2)
    if area > 200:
        shape = (field.shape[0], field.shape[1])
        field = field + np.float32(0.10) * smooth(rng, shape, max(3.0, 0.35 * np.sqrt(area)))
        field = field + np.float32(0.03) * smooth(rng, shape, max(2.0, 0.08 * np.sqrt(area)))
    return field, origin


def stroke(rng: np.random.Generator, area: int, size: Size, *, jagged: bool) -> Field:
    """Return a field that falls from curves to both sides.

    A scratch is smooth, a crack jagged and branched; a large one is not a wide one but has more side strokes.
    """
    if area < 14:
        return blob(rng, area, size, stretch=4.0)
    branches = min(10, int(area / 3000)) + (int(rng.integers(1, 3)) if jagged and area > 60 else 0)
    share, aside = (0.45, (0.4, 0.9)) if jagged else (0.6, (0.03, 0.2))
    slender, spread = np.exp(rng.uniform(np.log(12), np.log(70))), 1 + share * branches
    length = min(np.sqrt(area * slender / spread), 0.75 * min(size))
    width = max(area / (length * spread), 1.4)
    length = min(length, area / (width * spread))
    turn = rng.uniform(0, 2 * np.pi)
    side = 0.32 * length + 2 * width + 3
    half = (0.5 * length * abs(np.sin(turn)) + side, 0.5 * length * abs(np.cos(turn)) + side)
    y, x, origin = _window(*half)
    field = np.full((y.size, x.size), -1e6, dtype=np.float32)
    _line(rng, field, origin, (0.0, 0.0), turn, length, width, jagged=jagged)
    for _ in range(branches):
        along = rng.uniform(-0.35, 0.35) * length
        direction = turn + rng.choice([-1, 1]) * rng.uniform(*aside) + np.pi * rng.integers(2)
        short = rng.uniform(0.7, 1.3) * share * length
        reach = short / 2 if jagged else 0.0  # a branch starts at the crack, a scratch crosses the others
        middle = (
            along * np.sin(turn) + reach * np.sin(direction),
            along * np.cos(turn) + reach * np.cos(direction),
        )
        _line(rng, field, origin, middle, direction, short, rng.uniform(0.5, 0.9) * width, jagged=jagged)
    return field, origin


def _line(
    rng: np.random.Generator,
    field: Array,
    origin: tuple[int, int],
    middle: tuple[float, float],
    turn: float,
    length: float,
    width: float,
    *,
    jagged: bool,
) -> None:
    """Raise `field` along a curve about `middle`, which is relative to `origin`, as is everything in px."""
    knots = np.linspace(-0.5 * length, 0.5 * length, max(3, int(length / max(6.0, 1.5 * width))) + 1)
    if jagged:
        bend = np.cumsum(rng.normal(0, 0.5 * (knots[1] - knots[0]), knots.size))
        bend -= np.interp(0, knots, bend)
        bend *= min(1.0, 0.22 * length / max(float(np.abs(bend).max()), 1e-6))
    else:
        t = knots / length
        bend = length * (rng.uniform(-0.25, 0.25) * t * t + 0.02 * np.sin(6 * t + rng.uniform(0, 6)))
    taper = 0.75 + 0.5 * (1 - (2 * knots / length) ** 2)
    thick = 0.5 * width * taper * np.sqrt(1 + np.gradient(bend, knots) ** 2)
    margin = float(np.abs(bend).max() + 2 * thick.max()) + 2
    rows, columns = (
        slice(max(0, int(at + o - half)), max(0, min(n, int(at + o + half) + 2)))
        for at, o, n, half in zip(
            middle,
            origin,
            field.shape,
            (0.5 * length * abs(np.sin(turn)) + margin, 0.5 * length * abs(np.cos(turn)) + margin),
            strict=True,
        )
    )
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(origin[0] + middle[0])
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(origin[1] + middle[1])
    if y.size == 0 or x.size == 0:
        return
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    along, across = cos * x + sin * y, cos * y - sin * x
    at = np.arange(np.floor(along.min()), np.ceil(along.max()) + 2, 0.5)
    index = ((along - np.float32(at[0])) * 2).astype(np.int32)
    curve = np.interp(at, knots, bend).astype(np.float32)[index]
    reach = np.maximum(np.interp(at, knots, thick), 0.6).astype(np.float32)[index]
    overrun = (np.abs(along) - np.float32(0.5 * length)) / np.float32(max(width, 1.0))
    rise = 1 - np.abs(across - curve) / reach - 2 * np.clip(overrun, 0, None)
    field[rows, columns] = np.maximum(field[rows, columns], rise)
