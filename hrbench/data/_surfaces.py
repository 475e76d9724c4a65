"""Procedural views of industrial parts, defect-free: what a camera above a line would deliver.

Every surface is a function of two random generators: `design` fixes what all parts of a category share (a board's
layout, a tile's colour), `rng` varies one part from the next (position, rotation, tone, texture, light).
Lengths are in pixels of the image; objects scale with its shorter side, textures keep their pitch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage, sparse

__all__ = ["DARKEST", "LIGHTEST", "SURFACES", "Scene", "smooth"]

Array = NDArray[np.float32]
Size = tuple[int, int]

DARKEST, LIGHTEST = 16.0, 239.0
"""Range of defect-free pixels: leaves room for a visible change in either direction, and for noise, at every pixel."""


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


def _plane(size: Size, angle: float, scale: float, shift: tuple[float, float]) -> tuple[Array, Array]:
    """Return coordinates (v, u) in px of a plane turned by `angle` about the image's centre, scaled and shifted."""
    y = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(size[0] / 2)
    x = np.arange(size[1], dtype=np.float32)[None] - np.float32(size[1] / 2)
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return cos * y + sin * x + np.float32(shift[0]), cos * x - sin * y + np.float32(shift[1])


def _rgb(*levels: float) -> Array:
    return np.array(levels, dtype=np.float32)


def _mix(a: Array, b: Array, weight: Array) -> Array:
    """Blend colours (3,) or images (H, W, 3) by a weight (H, W)."""
    return a + (b - a) * weight[..., None]


def _step(x: Array, low: float, high: float) -> Array:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _split(x: Array) -> tuple[NDArray[np.int32], Array]:
    """Split a coordinate into the cell's number and the place in it, -0.5 to 0.5."""
    cell = np.floor(x)
    return cell.astype(np.int32), x - cell - np.float32(0.5)


def _light(rng: np.random.Generator, *images: Array, strength: float = 0.05) -> list[Array]:
    """Apply one uneven illumination, exposure and white balance, and keep within the range of a good exposure."""
    size = (images[0].shape[0], images[0].shape[1])
    v, u = _plane(size, 0.0, max(size) / 2, (0.0, 0.0))
    direction = rng.uniform(0, 2 * np.pi)
    field = np.float32(strength * np.cos(direction)) * u + np.float32(strength * np.sin(direction)) * v
    field = field - np.float32(rng.uniform(0.03, 0.08)) * (u * u + v * v)
    field = 1 + field + np.float32(strength / 4) * smooth(rng, size, min(size) / 3)
    gains = (rng.uniform(0.96, 1.04) * rng.uniform(0.99, 1.01, 3)).astype(np.float32)
    lit = [np.empty((*size, 3), dtype=np.float32) for _ in images]
    for channel, gain in enumerate(gains):
        lamp = field * gain
        for image, out in zip(images, lit, strict=True):
            np.clip(image[..., channel] * lamp, DARKEST, LIGHTEST, out=out[..., channel])
    return lit


def _pose(
    rng: np.random.Generator, degrees: float, scale: float, shift: float
) -> tuple[float, float, tuple[float, float]]:
    """Draw a small rotation in rad, a scale near 1 and a shift in px."""
    offset = (rng.uniform(-shift, shift), rng.uniform(-shift, shift))
    return math.radians(rng.uniform(-degrees, degrees)), rng.uniform(1 - scale, 1 + scale), offset


def _weave(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Plain-woven fabric: two yarns, uneven threads, slight distortion."""
    pitch = design.uniform(15, 17)
    warp, weft = _rgb(150, 152, 160) + design.uniform(-8, 8), _rgb(108, 116, 132) + design.uniform(-8, 8)
    v, u = _plane(size, *_pose(rng, 1.5, 0.02, 40))
    v = v / np.float32(pitch) + np.float32(0.10) * smooth(rng, size, 90)
    u = u / np.float32(pitch) + np.float32(0.10) * smooth(rng, size, 90)
    row, y = _split(v)
    column, x = _split(u)
    over = ((row + column) & 1).astype(bool)
    across, along = np.where(over, x, y), np.where(over, y, x)
    relief = np.cos(np.float32(np.pi * 0.92) * across) * (1 - np.float32(1.3) * along * along)
    tones = rng.normal(1, 0.035, (2, 4096)).astype(np.float32)
    tone = np.where(over, tones[0][column & 4095], tones[1][row & 4095])
    fibre = np.where(over, smooth(rng, size, (9, 1.6)), smooth(rng, size, (1.6, 9)))
    value = (np.float32(0.42) + np.float32(0.62) * relief) * tone + np.float32(0.035) * fibre
    image = np.where(over[..., None], warp, weft) * value[..., None]
    return Scene(*_light(rng, image), _rgb(34, 33, 36))


def _brushed_metal(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Brushed sheet: streaks along the rolling direction under a broad reflection."""
    base = _rgb(158, 160, 165) + design.uniform(-10, 10)
    streaks = (
        7 * smooth(rng, size, (1.3, 90)) + 5 * smooth(rng, size, (2.6, 260)) + 4 * smooth(rng, size, (9, 700))
    )
    v, u = _plane(size, rng.uniform(-0.15, 0.15), 1.0, (0, 0))
    centre, width = rng.uniform(-0.25, 0.25) * size[1], rng.uniform(0.35, 0.5) * size[1]
    glare = np.exp(-(((u - np.float32(centre)) / np.float32(width)) ** 2))
    value = streaks + 30 * glare - 14
    return Scene(*_light(rng, base + value[..., None]), _rgb(62, 56, 50))


def _wood_grain(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Planed veneer: wavy growth rings, pores and fibres."""
    light, dark = _rgb(204, 164, 116) + design.uniform(-6, 6), _rgb(142, 98, 58) + design.uniform(-6, 6)
    v, u = _plane(size, *_pose(rng, 2, 0.05, 400))
    bend = 26 * smooth(rng, size, (260, 420)) + 3.5 * smooth(rng, size, (40, 160))
    rings = (v + bend) / np.float32(design.uniform(30, 36))
    rings = rings + np.float32(0.35) * np.sin(rings * np.float32(0.37) + np.float32(rng.uniform(0, 6)))
    phase = rings - np.floor(rings)
    late = phase**3 * (1 - _step(phase, 0.9, 1.0))
    fibres = smooth(rng, size, (1.3, 46))
    pores = np.clip(smooth(rng, size, (1.6, 18)) - np.float32(1.5), 0, 2) * (1 - phase)
    weight = np.float32(0.22) + np.float32(0.75) * late + np.float32(0.07) * fibres + np.float32(0.35) * pores
    return Scene(*_light(rng, _mix(light, dark, weight)), _rgb(222, 198, 158))


def _tiles(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Glazed wall tiles with grout: each tile has its own tone and cloudy glaze."""
    edge = min(size) / 3.6
    glaze = _rgb(188, 194, 190) + design.uniform(-12, 12, 3).astype(np.float32)
    cloud = _rgb(158, 168, 170)
    v, u = _plane(size, *_pose(rng, 0.8, 0.01, 0.5 * edge))
    v, u = v / np.float32(edge) + 64, u / np.float32(edge) + 64
    row, y = _split(v)
    column, x = _split(u)
    y, x = y * np.float32(edge), x * np.float32(edge)
    inset = np.float32(edge / 2) - np.maximum(np.abs(x), np.abs(y)) + np.float32(0.5) * smooth(rng, size, 12)
    joint = max(2.0, 0.018 * edge)
    tile = _step(inset, joint - 0.9, joint + 0.9)
    rim = np.exp(-(((inset - np.float32(joint + 3)) / 3) ** 2)) * np.where(np.abs(x) > np.abs(y), -x, -y)
    tone = rng.normal(0, 5, (128, 128)).astype(np.float32)[row & 127, column & 127]
    veins = np.clip(np.float32(0.45) + np.float32(0.25) * smooth(rng, size, 60) + np.float32(0.13) * smooth(rng, size, 14), 0, 1)
    fired = _mix(glaze, cloud, veins) + (tone + np.float32(28 / edge) * rim)[..., None]
    grout = _rgb(104, 100, 94) + (5 * smooth(rng, size, 1.6) + 4 * smooth(rng, size, 20))[..., None]
    return Scene(*_light(rng, _mix(grout, fired, tile)), _rgb(168, 122, 92))


def _perforated_sheet(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Sheet with staggered round holes, burnished rims."""
    pitch = design.uniform(50, 56)
    v, u = _plane(size, *_pose(rng, 1.2, 0.015, 60))
    tall = np.float32(pitch * np.sqrt(3) / 2)
    row = np.rint(v / tall)
    y = v - row * tall
    u = u + np.float32(pitch / 2) * (row - 2 * np.floor(row / 2))
    x = u - np.rint(u / np.float32(pitch)) * np.float32(pitch)
    radius = np.sqrt(x * x + y * y)
    hole = np.float32(pitch * 0.31)
    metal = 150 + 5 * smooth(rng, size, (1.4, 24)) + 3.5 * smooth(rng, size, 2.2) + 5 * smooth(rng, size, 180)
    slope = (x * np.float32(-0.6) + y * np.float32(-0.8)) / (radius + 1)
    rim = np.exp(-(((radius - hole - np.float32(2.2)) / 2) ** 2))
    metal = metal + 36 * rim * slope
    inside = 34 + 12 * _step(radius, 0.2 * float(hole), float(hole)) * -slope
    value = inside + (metal - inside) * _step(radius, float(hole) - 1, float(hole) + 1)
    tint = _rgb(0.98, 1.0, 1.03)
    return Scene(*_light(rng, value[..., None] * tint, strength=0.08), _rgb(40, 40, 42))


def _circuit_board(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Populated printed board: one layout for the category, placement and solder vary a little."""
    margin = 40
    bare, parts = _draw_board(design, rng, (size[0] + 2 * margin, size[1] + 2 * margin))
    angle, scale, (dy, dx) = _pose(rng, 0.6, 0.006, 8)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    cy, cx = size[0] / 2, size[1] / 2
    turn = (cos, -sin, margin + cx - cos * cx + sin * cy + dx, sin, cos, margin + cy - sin * cx - cos * cy + dy)

    def view(picture: Image.Image) -> Array:
        turned = picture.transform((size[1], size[0]), Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR)
        return np.asarray(turned, dtype=np.float32)

    below, placed = view(bare), view(parts)
    cover = placed[..., 3] / 255
    shadow = ndimage.shift(ndimage.uniform_filter(cover, 7), (4, 4), order=0)
    mottle = (2.5 * smooth(rng, size, 3) + 3 * smooth(rng, size, 120))[..., None]
    below = below + mottle
    image = _mix(below * (1 - np.float32(0.45) * shadow)[..., None], placed[..., :3] + mottle, cover)
    return Scene(*_light(rng, image, below))


def _draw_board(
    design: np.random.Generator, rng: np.random.Generator, size: Size
) -> tuple[Image.Image, Image.Image]:
    """Draw the bare board (RGB) and the parts on it (RGBA) from the design, with the part's own small deviations."""
    height, width = size
    unit = min(size) / 1100
    bare = Image.new("RGB", (width, height), (26, 84, 56))
    parts = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    board, on = ImageDraw.Draw(bare), ImageDraw.Draw(parts)
    step = 22 * unit
    for _ in range(int(70 * width * height / (1100 * unit) ** 2)):
        x, y = design.integers(0, int(width / step)) * step, design.integers(0, int(height / step)) * step
        points = [(x, y)]
        for k in range(int(design.integers(2, 6))):
            run = design.integers(2, 12) * step * design.choice([-1, 1])
            diagonal = k % 2 and design.random() < 0.4
            x, y = (x + run, y + abs(run) * (1 if design.random() < 0.5 else -1)) if diagonal else (
                (x + run, y) if k % 2 else (x, y + run)
            )
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
    on.ellipse(_box(x - half_width + 14 * unit, y + half_height - 14 * unit, dot, dot), fill=(grey + 34,) * 3 + (255,))
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


def _mat(rng: np.random.Generator, size: Size, base: Array) -> Array:
    """Return the matt support that objects lie on."""
    grain = 3.5 * smooth(rng, size, 2) + 3 * smooth(rng, size, 7) + 4 * smooth(rng, size, 150)
    return base + grain[..., None]


def _bearing(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Ball bearing seen from above: ground rings, cage, balls at any rotation."""
    balls = int(design.integers(10, 13))
    mat = _mat(rng, size, _rgb(72, 76, 84))
    side = min(size)
    shift = rng.uniform(-0.015, 0.015, 2) * side
    y, x = _plane(size, 0.0, rng.uniform(0.98, 1.02), (shift[0], shift[1]))
    radius = np.sqrt(x * x + y * y) / np.float32(side)
    angle = np.arctan2(y, x)
    turned = 6 * smooth(rng, size, 2.0) * np.float32(0.5) + 5 * np.sin(radius * np.float32(side * 1.9))
    sheen = np.cos(2 * (angle - np.float32(rng.uniform(0.6, 1.0))))
    ring = 158 + 26 * sheen + turned
    for edge in (0.462, 0.372, 0.285, 0.182):
        d = (radius - np.float32(edge)) * np.float32(side)
        ring = ring + 38 * np.exp(-((d / 3) ** 2)) * (1 if edge in (0.462, 0.285) else -1)
    track = 44 + 14 * sheen + 4 * smooth(rng, size, 3)
    sector = np.float32(2 * np.pi / balls)
    phase = (angle + np.float32(rng.uniform(0, 2 * np.pi))) / sector
    offset = (phase - np.rint(phase)) * sector
    bx = radius * np.sin(offset) * np.float32(side)
    by = (radius * np.cos(offset) - np.float32(0.3285)) * np.float32(side)
    ball_radius = np.float32(0.041 * side)
    ball = np.sqrt(bx * bx + by * by) / ball_radius
    # One lamp, up left: its reflection sits there on every ball, however far round the ball is.
    turn = angle - offset  # direction of the ball's own centre
    gx, gy = by * np.cos(turn) - bx * np.sin(turn), by * np.sin(turn) + bx * np.cos(turn)
    lobe = np.exp(-((gx / ball_radius + np.float32(0.28)) ** 2 + (gy / ball_radius + np.float32(0.34)) ** 2) * 10)
    steel = 84 + 76 * np.sqrt(np.clip(1 - ball * ball, 0, 1)) + 64 * lobe
    cage = _step(np.abs(radius - np.float32(0.3285)), 0.017, 0.014)
    track_rgb = _mix(_rgb(1, 1, 1) * track[..., None], _rgb(150, 116, 64) + (10 * sheen + turned * 0.4)[..., None], cage)
    track_rgb = _mix(track_rgb, steel[..., None] * _rgb(0.98, 1, 1.03), _step(ball, 1.03, 0.97))
    on_ring = np.maximum(
        _step(radius, 0.3715, 0.3735) * _step(radius, 0.463, 0.461),
        _step(radius, 0.1815, 0.1835) * _step(radius, 0.286, 0.284),
    )
    body = _mix(track_rgb, ring[..., None] * _rgb(0.99, 1, 1.02), on_ring)
    part = (radius > 0.183) & (radius < 0.461)
    cover = _step(radius, 0.1815, 0.1835) * _step(radius, 0.463, 0.461)
    shade = np.float32(0.35) * np.exp(-np.clip((radius - np.float32(0.462)) / np.float32(0.018), 0, None))
    mat = mat * (1 - shade)[..., None]
    return Scene(*_light(rng, _mix(mat, body, cover), mat), part)


def _bolts(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Four hexagon socket heads on washers, each turned and shifted by itself."""
    side = min(size)
    outer = design.uniform(0.205, 0.215) * side
    mat = _mat(rng, size, _rgb(58, 62, 60))
    image = mat.copy()
    part = np.zeros(size, dtype=bool)
    for i, j in ((0.26, 0.26), (0.26, 0.74), (0.74, 0.26), (0.74, 0.74)):
        cy = i * size[0] + rng.uniform(-0.02, 0.02) * side
        cx = j * size[1] + rng.uniform(-0.02, 0.02) * side
        reach = int(outer * 1.15)
        box = tuple(
            slice(max(0, int(c) - reach), min(length, int(c) + reach + 1))
            for c, length in zip((cy, cx), size, strict=True)
        )
        y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(cy)
        x = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None] - np.float32(cx)
        view, radius = _bolt(rng, y, x, outer)
        shade = np.float32(0.5) * np.exp(-np.clip((radius - np.float32(outer)) / np.float32(0.04 * outer), 0, None))
        ground = image[box] * (1 - shade)[..., None]
        image[box] = _mix(ground, view, _step(radius, outer + 1, outer - 1))
        part[box] |= radius < outer - 1
    return Scene(*_light(rng, image, mat), part)


def _bolt(rng: np.random.Generator, y: Array, x: Array, outer: float) -> tuple[Array, Array]:
    """Draw one head: washer, chamfered hexagon, socket; returns the picture and the distance from its axis."""
    radius, angle = np.sqrt(x * x + y * y), np.arctan2(y, x)
    shape = (radius.shape[0], radius.shape[1])
    turn = np.float32(rng.uniform(0, np.pi / 3))
    sector = np.float32(np.pi / 3)
    local = (angle + turn) - np.rint((angle + turn) / sector) * sector
    flat = radius * np.cos(local)  # distance as a hexagon counts it
    sheen = np.cos(2 * angle - np.float32(rng.uniform(1, 2)))
    rough = 3 * smooth(rng, shape, 2) + 3 * smooth(rng, shape, 20)
    washer = 132 + 20 * sheen + rough + 5 * np.sin(radius * np.float32(1.2))
    head, chamfer, socket = 0.70 * outer, 0.60 * outer, 0.33 * outer
    facet = np.rint((angle + turn) / sector) * sector - turn
    side_face = 118 + 58 * np.cos(facet - np.float32(-2.2)) + rough
    top = 172 + 14 * sheen + rough + 4 * np.sin(radius * np.float32(1.7))
    value = washer * (1 - np.float32(0.45) * np.exp(-np.clip(flat - np.float32(head), 0, None) / np.float32(0.05 * outer)))
    value = value + (side_face - value) * _step(flat, head + 1, head - 1)
    value = value + (top - value) * _step(radius, chamfer + 1, chamfer - 1)
    rim = np.exp(-(((radius - np.float32(chamfer)) / 2.5) ** 2))
    value = value + 22 * rim
    inner = radius * np.cos(local - np.float32(0.0))
    depth = 40 + 26 * np.clip(y / np.float32(socket), -1, 1) + rough * np.float32(0.4)
    value = value + (depth - value) * _step(inner, socket + 1, socket - 1)
    return value[..., None] * _rgb(1.0, 0.995, 0.97), radius


SURFACES: dict[str, Callable[[np.random.Generator, np.random.Generator, Size], Scene]] = {
    "weave": _weave,
    "brushed_metal": _brushed_metal,
    "wood_grain": _wood_grain,
    "tiles": _tiles,
    "perforated_sheet": _perforated_sheet,
    "circuit_board": _circuit_board,
    "bearing": _bearing,
    "bolts": _bolts,
}
"""Category name to its surface: (design, rng, size) -> Scene."""
