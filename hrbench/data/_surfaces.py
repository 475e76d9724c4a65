"""Procedural views of industrial parts, defect-free: what a camera above a line would deliver.

Every surface is a function of two random generators: `design` fixes what all parts of a category share (the
layout of a board, the colour of a tile), `rng` varies one part from the next (position, rotation, tone,
texture, light). Lengths are in pixels; objects scale with the image's shorter side, textures keep their pitch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hrbench.data._board import circuit_board
from hrbench.data._objects import bearing, bolts
from hrbench.data._render import Scene, Size, expose, mix, plane, pose, rgb, smooth, split, step

__all__ = ["SURFACES"]


def _weave(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Plain-woven fabric: two yarns, uneven threads, slight distortion."""
    pitch = design.uniform(15, 17)
    warp, weft = rgb(150, 152, 160) + design.uniform(-8, 8), rgb(108, 116, 132) + design.uniform(-8, 8)
    v, u = plane(size, *pose(rng, 1.5, 0.02, 40))
    v = v / np.float32(pitch) + np.float32(0.10) * smooth(rng, size, 90)
    u = u / np.float32(pitch) + np.float32(0.10) * smooth(rng, size, 90)
    row, y = split(v)
    column, x = split(u)
    over = ((row + column) & 1).astype(bool)
    across, along = np.where(over, x, y), np.where(over, y, x)
    relief = np.cos(np.float32(np.pi * 0.92) * across) * (1 - np.float32(1.3) * along * along)
    tones = rng.normal(1, 0.035, (2, 4096)).astype(np.float32)
    tone = np.where(over, tones[0][column & 4095], tones[1][row & 4095])
    fibre = np.where(over, smooth(rng, size, (9, 1.6)), smooth(rng, size, (1.6, 9)))
    value = (np.float32(0.42) + np.float32(0.62) * relief) * tone + np.float32(0.035) * fibre
    image = np.where(over[..., None], warp, weft) * value[..., None]
    return expose(rng, image, rgb(34, 33, 36))


def _brushed_metal(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Brushed sheet: streaks along the rolling direction under a broad reflection."""
    base = rgb(158, 160, 165) + design.uniform(-10, 10)
    streaks = 7 * smooth(rng, size, (1.3, 90)) + 5 * smooth(rng, size, (2.6, 260)) + 4 * smooth(rng, size, (9, 700))
    u = plane(size, rng.uniform(-0.15, 0.15), 1.0, (0, 0))[1]
    centre, width = rng.uniform(-0.25, 0.25) * size[1], rng.uniform(0.35, 0.5) * size[1]
    glare = np.exp(-(((u - np.float32(centre)) / np.float32(width)) ** 2))
    value = streaks + 30 * glare - 14
    return expose(rng, base + value[..., None], rgb(62, 56, 50))


def _wood_grain(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Planed veneer: wavy growth rings, pores and fibres."""
    light, dark = rgb(204, 164, 116) + design.uniform(-6, 6), rgb(142, 98, 58) + design.uniform(-6, 6)
    v = plane(size, *pose(rng, 2, 0.05, 400))[0]
    bend = 26 * smooth(rng, size, (260, 420)) + 3.5 * smooth(rng, size, (40, 160))
    rings = (v + bend) / np.float32(design.uniform(30, 36))
    rings = rings + np.float32(0.35) * np.sin(rings * np.float32(0.37) + np.float32(rng.uniform(0, 6)))
    phase = rings - np.floor(rings)
    late = phase**3 * (1 - step(phase, 0.9, 1.0))
    fibres = smooth(rng, size, (1.3, 46))
    pores = np.clip(smooth(rng, size, (1.6, 18)) - np.float32(1.5), 0, 2) * (1 - phase)
    weight = np.float32(0.22) + np.float32(0.75) * late + np.float32(0.07) * fibres + np.float32(0.35) * pores
    return expose(rng, mix(light, dark, weight), rgb(222, 198, 158))


def _tiles(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Glazed wall tiles with grout: each tile has its own tone and cloudy glaze."""
    edge = min(size) / 3.6
    glaze = rgb(188, 194, 190) + design.uniform(-12, 12, 3).astype(np.float32)
    cloud = rgb(158, 168, 170)
    v, u = plane(size, *pose(rng, 0.8, 0.01, 0.5 * edge))
    v, u = v / np.float32(edge) + 64, u / np.float32(edge) + 64
    row, y = split(v)
    column, x = split(u)
    y, x = y * np.float32(edge), x * np.float32(edge)
    inset = np.float32(edge / 2) - np.maximum(np.abs(x), np.abs(y)) + np.float32(0.5) * smooth(rng, size, 12)
    joint = max(2.0, 0.018 * edge)
    tile = step(inset, joint - 0.9, joint + 0.9)
    rim = np.exp(-(((inset - np.float32(joint + 3)) / 3) ** 2)) * np.where(np.abs(x) > np.abs(y), -x, -y)
    tone = rng.normal(0, 5, (128, 128)).astype(np.float32)[row & 127, column & 127]
    clouds = np.float32(0.25) * smooth(rng, size, 60) + np.float32(0.13) * smooth(rng, size, 14)
    veins = np.clip(np.float32(0.45) + clouds, 0, 1)
    fired = mix(glaze, cloud, veins) + (tone + np.float32(28 / edge) * rim)[..., None]
    grout = rgb(104, 100, 94) + (5 * smooth(rng, size, 1.6) + 4 * smooth(rng, size, 20))[..., None]
    return expose(rng, mix(grout, fired, tile), rgb(168, 122, 92))


def _perforated_sheet(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Sheet with staggered round holes, burnished rims."""
    pitch = design.uniform(50, 56)
    v, u = plane(size, *pose(rng, 1.2, 0.015, 60))
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
    inside = 34 + 12 * step(radius, 0.2 * float(hole), float(hole)) * -slope
    value = inside + (metal - inside) * step(radius, float(hole) - 1, float(hole) + 1)
    tint = rgb(0.98, 1.0, 1.03)
    return expose(rng, value[..., None] * tint, rgb(40, 40, 42), strength=0.08)


SURFACES: dict[str, Callable[[np.random.Generator, np.random.Generator, Size], Scene]] = {
    "weave": _weave,
    "brushed_metal": _brushed_metal,
    "wood_grain": _wood_grain,
    "tiles": _tiles,
    "perforated_sheet": _perforated_sheet,
    "circuit_board": circuit_board,
    "bearing": bearing,
    "bolts": bolts,
}
"""Category name to its surface: (design, rng, size) -> Scene."""
