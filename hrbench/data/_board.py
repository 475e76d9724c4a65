"""A populated printed circuit board."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from hrbench.data._render import Array, Scene, Size, expose, mix, pose, smooth

__all__ = ["circuit_board"]


def circuit_board(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Populate a printed board: one layout for the category, the placement of parts varies a little."""
    margin = 40
    bare, parts = _draw_board(design, rng, (size[0] + 2 * margin, size[1] + 2 * margin))
    angle, scale, (dy, dx) = pose(rng, 0.6, 0.006, 8)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    cy, cx = size[0] / 2, size[1] / 2
    turn = (
        cos,
        -sin,
        margin + cx - cos * cx + sin * cy + dx,
        sin,
        cos,
        margin + cy - sin * cx - cos * cy + dy,
    )

    def view(picture: Image.Image) -> Array:
        turned = picture.transform((size[1], size[0]), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
        return np.asarray(turned, dtype=np.float32)

    below, placed = view(bare), view(parts)
    cover = placed[..., 3] / 255
    shadow = ndimage.shift(ndimage.uniform_filter(cover, 7), (4, 4), order=0)
    mottle = (2.5 * smooth(rng, size, 3) + 3 * smooth(rng, size, 120))[..., None]
    below = below + mottle
    image = mix(below * (1 - np.float32(0.45) * shadow)[..., None], placed[..., :3] + mottle, cover)
    return expose(rng, image, below)


def _draw_board(design: np.random.Generator, rng: np.random.Generator, size: Size) -> tuple[Image.Image, Image.Image]:
    """Draw the bare board (RGB) and the parts on it (RGBA); parts sit a little off their design."""
    height, width = size
    unit = min(size) / 1100
    bare = Image.new("RGB", (width, height), (26, 84, 56))
    parts = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    board, on = ImageDraw.Draw(bare), ImageDraw.Draw(parts)
    step = 22 * unit
    for _ in range(int(70 * width * height / (1100 * unit) ** 2)):
        x = float(design.integers(int(width / step))) * step
        y = float(design.integers(int(height / step))) * step
        points = [(x, y)]
        for k in range(int(design.integers(2, 6))):
            run = float(design.integers(2, 12) * design.choice([-1, 1])) * step
            if k % 2 == 0:
                y += run
            else:
                x += run
                if design.random() < 0.4:
                    y += abs(run) * float(design.choice([-1, 1]))
            points.append((x, y))
        board.line(points, fill=(44, 116, 78), width=max(2, int(design.choice([4, 6, 9]) * unit)), joint="curve")
        for px, py in (points[0], points[-1]):
            r = 8 * unit
            board.ellipse((px - r, py - r, px + r, py + r), fill=(196, 168, 96))
            board.ellipse((px - r / 2, py - r / 2, px + r / 2, py + r / 2), fill=(38, 34, 30))
    cells = [(i, j) for i in range(5) for j in range(5)]
    for i, j in cells:
        x = (j + 0.5) * width / 5 + design.uniform(-18, 18) * unit
        y = (i + 0.5) * height / 5 + design.uniform(-18, 18) * unit
        kind, spread = design.choice(["chip", "row", "can", "row", "chip"]), design.uniform(0.8, 1.2)
        x, y = x + rng.normal(0, 1.0) * unit, y + rng.normal(0, 1.0) * unit
        if kind == "chip":
            _draw_chip(board, on, rng, x, y, 74 * spread * unit, 52 * unit, unit)
        elif kind == "can":
            _draw_can(board, on, rng, x, y, 44 * spread * unit, unit)
        else:
            for k in range(4):
                _draw_resistor(board, on, rng, x + (k - 1.5) * 34 * unit, y, unit, dark=bool((i + j + k) % 2))
    return bare, parts


def _box(x: float, y: float, half_width: float, half_height: float) -> tuple[float, float, float, float]:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _draw_chip(
    board: ImageDraw.ImageDraw,
    on: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    x: float,
    y: float,
    half_width: float,
    half_height: float,
    unit: float,
) -> None:
    pins = max(3, int(half_width / (11 * unit)))
    for k in range(pins):
        px = x - half_width + (2 * k + 1) * half_width / pins
        for side in (-1, 1):
            py = y + side * (half_height + 8 * unit)
            board.rectangle(_box(px, py, 5 * unit, 12 * unit), fill=(188, 176, 150))
            on.rectangle(_box(px, py - 2 * side * unit, 3.2 * unit, 10 * unit), fill=(206, 208, 212, 255))
    board.rectangle(_box(x, y, half_width + 5 * unit, half_height - 2 * unit), outline=(214, 218, 210), width=2)
    grey = int(46 + rng.normal(0, 2))
    on.rounded_rectangle(_box(x, y, half_width, half_height), 5 * unit, fill=(grey, grey, grey + 2, 255))
    on.rectangle(_box(x, y - half_height + 5 * unit, half_width - 3 * unit, 3 * unit), fill=(grey + 16,) * 3 + (255,))
    dot = 5 * unit
    on.ellipse(
        _box(x - half_width + 14 * unit, y + half_height - 14 * unit, dot, dot),
        fill=(grey + 34,) * 3 + (255,),
    )
    for line in range(2):
        for k in range(7):
            tall = 6 * unit * (0.6 + 0.4 * ((k * 5 + line * 3) % 3) / 2)
            box = _box(x - 33 * unit + k * 11 * unit, y - 6 * unit + line * 20 * unit, 2.4 * unit, tall)
            on.rectangle(box, fill=(150, 150, 148, 255))


def _draw_can(
    board: ImageDraw.ImageDraw,
    on: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    x: float,
    y: float,
    radius: float,
    unit: float,
) -> None:
    board.ellipse(_box(x, y, radius + 8 * unit, radius + 8 * unit), outline=(214, 218, 210), width=3)
    for side in (-1, 1):
        board.rectangle(_box(x + side * radius * 0.5, y, 8 * unit, 8 * unit), fill=(188, 176, 150))
    grey = int(176 + rng.normal(0, 4))
    on.ellipse(_box(x, y, radius, radius), fill=(grey - 60, grey - 58, grey - 52, 255))
    on.ellipse(_box(x, y, radius * 0.9, radius * 0.9), fill=(grey, grey, grey + 4, 255))
    turn = rng.uniform(-8, 8)
    on.chord(_box(x, y, radius * 0.9, radius * 0.9), 60 + turn, 120 + turn, fill=(58, 60, 70, 255))
    on.ellipse(_box(x - radius * 0.25, y - radius * 0.3, radius * 0.3, radius * 0.2), fill=(grey + 22,) * 3 + (255,))


def _draw_resistor(
    board: ImageDraw.ImageDraw,
    on: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    x: float,
    y: float,
    unit: float,
    *,
    dark: bool,
) -> None:
    for side in (-1, 1):
        board.rectangle(_box(x, y + side * 24 * unit, 13 * unit, 10 * unit), fill=(188, 176, 150))
    x, y = x + rng.normal(0, 0.8) * unit, y + rng.normal(0, 0.8) * unit
    on.rectangle(_box(x, y, 10 * unit, 28 * unit), fill=(204, 206, 208, 255))
    body = (52, 50, 54, 255) if dark else (158, 122, 84, 255)
    on.rectangle(_box(x, y, 11 * unit, 18 * unit), fill=body)
    if dark:
        for k in (-1, 0, 1):
            on.rectangle(_box(x, y + k * 8 * unit, 4 * unit, 2 * unit), fill=(186, 186, 184, 255))
