"""Machine parts on a support: a ball bearing and hexagon socket bolts."""

from __future__ import annotations

import numpy as np

from hrbench.data._render import Array, Scene, Size, expose, mix, rgb, smooth, step

__all__ = ["bearing", "bolts"]


def _mat(rng: np.random.Generator, size: Size, base: Array) -> Array:
    """Return the matt support that objects lie on."""
    grain = 3.5 * smooth(rng, size, 2) + 3 * smooth(rng, size, 7) + 4 * smooth(rng, size, 150)
    support: Array = base + grain[..., None]
    return support


def bearing(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Ball bearing seen from above: ground rings, cage, balls at any rotation."""
    balls = int(design.integers(10, 13))
    side = min(size) * rng.uniform(0.98, 1.02)
    cy, cx = (0.5 * length + rng.uniform(-0.015, 0.015) * side for length in size)
    y = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(cy)
    x = np.arange(size[1], dtype=np.float32)[None] - np.float32(cx)
    squared = y * y + x * x
    radius = np.sqrt(squared)
    lamp = 2 * rng.uniform(0.6, 1.0)
    sheen = (np.float32(np.cos(lamp)) * (x * x - y * y) + np.float32(2 * np.sin(lamp)) * x * y) / (squared + 1)

    # What depends on the distance from the axis alone is looked up, sixteen steps per pixel.
    steps = np.arange(int(16 * radius.max()) + 2, dtype=np.float32) / 16
    share = steps / np.float32(side)
    index = (radius * 16).astype(np.int32)
    turning = 5 * np.sin(steps * np.float32(1.9))
    for edge, lift in ((0.462, 38), (0.372, -38), (0.285, 38), (0.182, -38)):
        turning += lift * np.exp(-(((share - np.float32(edge)) * np.float32(side) / 3) ** 2))
    cage = step(np.abs(share - np.float32(0.3285)), 0.017, 0.014)
    rings = np.maximum(
        step(share, 0.3715, 0.3735) * step(share, 0.463, 0.461),
        step(share, 0.1815, 0.1835) * step(share, 0.286, 0.284),
    )
    cover = step(share, 0.1815, 0.1835) * step(share, 0.463, 0.461)
    shade = 1 - 0.35 * np.exp(-np.clip((share - np.float32(0.462)) / np.float32(0.018), 0, None))

    grain = 3 * smooth(rng, size, 2.0)
    ring = 158 + 26 * sheen + grain + turning[index]
    groove, brass = (14 * sheen + grain)[..., None], (10 * sheen)[..., None]
    body = mix(rgb(44, 44, 44) + groove, rgb(150, 116, 64) + brass, cage[index])
    first = rng.uniform(0, 2 * np.pi)
    for angle in first + np.arange(balls) * (2 * np.pi / balls):
        _ball(body, cy + 0.3285 * side * np.sin(angle), cx + 0.3285 * side * np.cos(angle), 0.041 * side)
    body = mix(body, ring[..., None] * rgb(0.99, 1, 1.02), rings[index])
    support = _mat(rng, size, rgb(72, 76, 84)) * shade[index][..., None]
    part = (radius > 0.184 * side) & (radius < 0.461 * side)
    return expose(rng, mix(support, body, cover[index]), support, part)


def _ball(image: Array, cy: float, cx: float, radius: float) -> None:
    """Draw a polished ball into `image`, lit from the upper left."""
    box = _around((cy, cx), int(radius) + 3, (image.shape[0], image.shape[1]))
    y = (np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(cy)) / np.float32(radius)
    x = (np.arange(box[1].start, box[1].stop, dtype=np.float32)[None] - np.float32(cx)) / np.float32(radius)
    squared = y * y + x * x
    lobe = np.exp(-10 * ((x + np.float32(0.28)) ** 2 + (y + np.float32(0.34)) ** 2))
    steel = 84 + 76 * np.sqrt(np.clip(1 - squared, 0, 1)) + 64 * lobe
    edge = step(np.sqrt(squared), 1 + 1 / radius, 1 - 1 / radius)
    image[box] = mix(image[box], steel[..., None] * rgb(0.98, 1, 1.03), edge)


def _around(centre: tuple[float, float], reach: int, size: Size) -> tuple[slice, slice]:
    """Return the window of `reach` px about a point, within the image."""
    rows, columns = (
        slice(max(0, int(c) - reach), max(0, min(length, int(c) + reach + 1)))
        for c, length in zip(centre, size, strict=True)
    )
    return rows, columns


def bolts(design: np.random.Generator, rng: np.random.Generator, size: Size) -> Scene:
    """Four hexagon socket heads on washers, each turned and shifted by itself."""
    side = min(size)
    outer = design.uniform(0.205, 0.215) * side
    support = _mat(rng, size, rgb(58, 62, 60))
    image = support.copy()
    part = np.zeros(size, dtype=bool)
    for i, j in ((0.26, 0.26), (0.26, 0.74), (0.74, 0.26), (0.74, 0.74)):
        cy = i * size[0] + rng.uniform(-0.02, 0.02) * side
        cx = j * size[1] + rng.uniform(-0.02, 0.02) * side
        reach = int(outer * 1.15)
        box = _around((cy, cx), reach, size)
        y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(cy)
        x = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None] - np.float32(cx)
        view, radius = _bolt(rng, y, x, outer)
        shade = np.exp(-np.clip((radius - np.float32(outer)) / np.float32(0.04 * outer), 0, None))
        ground = image[box] * (1 - np.float32(0.5) * shade)[..., None]
        image[box] = mix(ground, view, step(radius, outer + 1, outer - 1))
        part[box] |= radius < outer - 1
    return expose(rng, image, support, part)


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
    contact = np.exp(-np.clip(flat - np.float32(head), 0, None) / np.float32(0.05 * outer))
    value = washer * (1 - np.float32(0.45) * contact)
    value = value + (side_face - value) * step(flat, head + 1, head - 1)
    value = value + (top - value) * step(radius, chamfer + 1, chamfer - 1)
    rim = np.exp(-(((radius - np.float32(chamfer)) / 2.5) ** 2))
    value = value + 22 * rim
    depth = 40 + 26 * np.clip(y / np.float32(socket), -1, 1) + rough * np.float32(0.4)
    value = value + (depth - value) * step(flat, socket + 1, socket - 1)
    return value[..., None] * rgb(1.0, 0.995, 0.97), radius
