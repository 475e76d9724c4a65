"""Scalar fields made by formulas: the structure of a canvas, before it has colours.

Every formula is a function ``(rng, size) -> (size, size) float32`` with values in [0, 1]. Scales are drawn
log-uniformly: nothing here may assume at which pitch a camera sees a surface.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

__all__ = ["FORMULAS", "Field", "noise", "unit"]

Field = NDArray[np.float32]
Generator = np.random.Generator


def unit(field: NDArray[np.floating], tail: float = 0.5) -> Field:
    """Bring a field to [0, 1] between its `tail` and 100 - `tail` percentiles."""
    low, high = np.percentile(field, (tail, 100 - tail))
    scaled: Field = np.clip((field - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return scaled


def _log(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _plane(rng: Generator, size: int) -> tuple[Field, Field]:
    """Return pixel coordinates turned by any angle and shifted by any amount."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    shift = rng.uniform(0, 1000, 2).astype(np.float32)
    return cos * y + sin * x + shift[0], cos * x - sin * y + shift[1]


def _warped(rng: Generator, size: int, share: float = 0.5) -> tuple[Field, Field]:
    """Return turned coordinates that, in `share` of all cases, smooth noise has bent."""
    v, u = _plane(rng, size)
    if rng.random() < share:
        scale, amount = _log(rng, 12, 150), _log(rng, 0.02, 0.25)
        v = v + np.float32(scale * amount) * _smooth(rng, size, scale)
        u = u + np.float32(scale * amount) * _smooth(rng, size, scale)
    return v, u


def _spectrum(rng: Generator, size: int, gain: NDArray[np.floating]) -> Field:
    """Return white noise whose Fourier amplitudes (size, size // 2 + 1) were multiplied by `gain`."""
    white = np.fft.rfft2(rng.standard_normal((size, size)))
    field = np.fft.irfft2(white * gain, s=(size, size))
    return ((field - field.mean()) / max(float(field.std()), 1e-9)).astype(np.float32)


def _frequencies(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]


def _smooth(rng: Generator, size: int, scale: float) -> Field:
    fy, fx = _frequencies(size)
    return _spectrum(rng, size, np.exp(-(fy * fy + fx * fx) * (2 * scale) ** 2))


def noise(rng: Generator, size: int) -> Field:
    """Coloured noise, 1 / f^b in amplitude, often stretched along a direction."""
    fy, fx = _frequencies(size)
    angle, stretch = rng.uniform(0, math.pi), _log(rng, 1, 12) if rng.random() < 0.5 else 1.0
    a = math.cos(angle) * fy + math.sin(angle) * fx
    b = (math.cos(angle) * fx - math.sin(angle) * fy) * stretch
    f = np.sqrt(a * a + b * b) + 1 / (4 * size)
    return unit(_spectrum(rng, size, f ** -rng.uniform(0.0, 2.2)))


def brushed(rng: Generator, size: int) -> Field:
    """Streaks: several octaves of noise, each far longer than wide."""
    fy, fx = _frequencies(size)
    angle = rng.uniform(0, math.pi)
    a = math.cos(angle) * fy + math.sin(angle) * fx
    b = math.cos(angle) * fx - math.sin(angle) * fy
    total = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 4)):
        wide, long = _log(rng, 0.4, 4), _log(rng, 15, 120)
        gain = np.exp(-((a * wide) ** 2 + (b * long) ** 2) * 8)
        total += np.float32(rng.uniform(0.3, 1)) * _spectrum(rng, size, gain)
    return unit(total)


def bands(rng: Generator, size: int) -> Field:
    """Band-pass noise: a Gabor field with one or a few orientations, a labyrinth without; linear or two-valued."""
    fy, fx = _frequencies(size)
    radius, width = _log(rng, 0.015, 0.25), rng.uniform(0.1, 0.5)
    f, direction = np.hypot(fy, fx) + 1e-9, np.arctan2(fy, fx)
    gain = np.exp(-(np.log(f / radius) ** 2) / (2 * width**2))
    if rng.random() < 0.6:
        spread, centre = _log(rng, 0.05, 0.5), rng.uniform(0, math.pi, rng.integers(1, 4))
        gain = gain * sum(np.exp(-(np.sin(direction - c) ** 2) / (2 * spread**2)) for c in centre)
    field = _spectrum(rng, size, gain)
    if rng.random() < 0.5:
        hardness = _log(rng, 1, 20)
        return ((np.tanh(hardness * (field - np.float32(rng.uniform(-1, 1)))) + 1) / 2).astype(np.float32)
    return unit(field)


def leaves(rng: Generator, size: int) -> Field:
    """Dead leaves: opaque discs, ellipses, boxes and polygons with a power law of sizes, each of one tone or shaded."""
    field = np.full((size, size), rng.random(), np.float32)
    smallest, largest = _log(rng, 2, 10), _log(rng, 15, 90)
    kind, shaded, texture = rng.integers(4), rng.random() < 0.4, 0.3 * rng.random() * (rng.random() < 0.4)
    inner = noise(rng, size) - np.float32(0.5)
    covered, number = 0.0, 0
    while covered < 2.5 * size * size and number < 1500:
        t = rng.random()
        radius = (smallest**-1.5 + t * (largest**-1.5 - smallest**-1.5)) ** (-1 / 1.5)
        covered, number = covered + 3 * radius * radius, number + 1
        cy, cx = rng.uniform(-radius, size + radius, 2)
        y0, y1 = max(0, int(cy - radius)), min(size, int(cy + radius) + 2)
        x0, x1 = max(0, int(cx - radius)), min(size, int(cx + radius) + 2)
        if y0 >= y1 or x0 >= x1:
            continue
        y = (np.arange(y0, y1, dtype=np.float32) - np.float32(cy))[:, None] / np.float32(radius)
        x = (np.arange(x0, x1, dtype=np.float32) - np.float32(cx))[None] / np.float32(radius)
        angle, squash = rng.uniform(0, math.pi), 1.0 if kind == 0 else rng.uniform(0.3, 1)
        a = (math.cos(angle) * y + math.sin(angle) * x) / np.float32(squash)
        b = math.cos(angle) * x - math.sin(angle) * y
        if kind <= 1:
            inside = a * a + b * b < 1
        elif kind == 2:
            inside = np.maximum(np.abs(a), np.abs(b)) < 0.7
        else:
            corners = np.arange(int(rng.integers(3, 7)))
            turn = 2 * math.pi / len(corners)
            inside = np.ones(a.shape, bool)
            for corner in corners:
                inside &= a * np.float32(math.cos(corner * turn)) + b * np.float32(math.sin(corner * turn)) < 0.6
        tone = np.float32(rng.random()) + (np.float32(0.25) * a if shaded else np.float32(0))
        window = field[y0:y1, x0:x1]
        window[inside] = np.broadcast_to(tone + np.float32(texture) * inner[y0:y1, x0:x1], window.shape)[inside]
    return np.clip(field, 0, 1)


def voronoi(rng: Generator, size: int) -> Field:
    """Voronoi cells: their tones, the distance to the nearest seed, or the walls between them; jittered or regular."""
    v, u = _warped(rng, size, 0.4)
    pitch = _log(rng, 5, 60)
    margin, side = 3 * pitch, size * 1.5
    v, u = v - v.mean() + size / 2, u - u.mean() + size / 2
    count = max(8, int(((side + 2 * margin) / pitch) ** 2))
    count = min(count, 20000)
    seeds = rng.uniform(-margin - side / 4, side + margin, (count, 2))
    if rng.random() < 0.4:
        seeds = np.round(seeds / pitch) * pitch + rng.normal(0, pitch * rng.uniform(0.02, 0.25), seeds.shape)
    distance, index = cKDTree(seeds).query(np.stack([v.ravel(), u.ravel()], axis=1), k=2)
    gap = (distance[:, 1] - distance[:, 0]).reshape(size, size) / pitch
    tone = rng.random(count)[index[:, 0]].reshape(size, size)
    wall = np.clip(gap / rng.uniform(0.05, 0.4), 0, 1)
    mode = rng.integers(4)
    if mode == 0:
        return tone.astype(np.float32)
    if mode == 1:
        return unit(distance[:, 0].reshape(size, size))
    if mode == 2:
        return wall.astype(np.float32)
    return (wall * (0.4 + 0.6 * tone)).astype(np.float32)


def weave(rng: Generator, size: int) -> Field:
    """Woven threads: plain, twill or basket, with uneven tones."""
    v, u = _warped(rng, size, 0.7)
    pitch = _log(rng, 4, 30)
    v, u = v / np.float32(pitch), u / np.float32(pitch * _log(rng, 0.6, 1.6))
    row, column = np.floor(v).astype(np.int64), np.floor(u).astype(np.int64)
    y, x = v - row - np.float32(0.5), u - column - np.float32(0.5)
    step, repeat = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    over = ((row * step + column) % repeat) < rng.integers(1, repeat)
    across, along = np.where(over, x, y), np.where(over, y, x)
    relief = np.cos(np.float32(math.pi * rng.uniform(0.7, 1)) * across)
    relief = relief * (1 - np.float32(rng.uniform(0.2, 1.6)) * along**2)
    tones = 1 + rng.normal(0, rng.uniform(0, 0.15), (2, 512))
    value = relief * np.where(over, tones[0][column % 512], tones[1][row % 512])
    value = np.where(over, value, value * rng.uniform(0.5, 1.0))
    return unit(value)


def waves(rng: Generator, size: int) -> Field:
    """Superposed gratings, sinusoidal to square, straight or bent."""
    total = np.zeros((size, size), np.float32)
    hardness = _log(rng, 0.5, 10)
    for _ in range(rng.integers(1, 4)):
        v, _ = _warped(rng, size, 0.5)
        wave = np.sin(v * np.float32(2 * math.pi / _log(rng, 3.5, 80)))
        total += np.float32(rng.uniform(0.3, 1)) * np.tanh(np.float32(hardness) * wave)
    return unit(total, 0)


def contours(rng: Generator, size: int) -> Field:
    """Rings, wood grain, marble: a periodic function of a smooth field."""
    base = noise_smooth(rng, size) * np.float32(_log(rng, 1, 14))
    if rng.random() < 0.6:
        v, u = _plane(rng, size)
        radius = np.hypot(v - v.mean() + rng.uniform(-200, 200), u - u.mean() + rng.uniform(-200, 200))
        base = base * np.float32(0.3) + (radius if rng.random() < 0.5 else v) / np.float32(_log(rng, 8, 60))
    phase = base - np.floor(base)
    power = _log(rng, 0.5, 4)
    if rng.random() < 0.5:
        return (phase**power).astype(np.float32)
    return (np.abs(2 * phase - 1) ** power).astype(np.float32)


def noise_smooth(rng: Generator, size: int) -> Field:
    """Smooth noise of one scale."""
    return unit(_smooth(rng, size, _log(rng, 6, 60)))


def gradient(rng: Generator, size: int) -> Field:
    """Gradients, straight or round, bent: uneven light, polished metal."""
    v, u = _warped(rng, size, 0.8)
    v, u = v - v.mean(), u - u.mean()
    field = v if rng.random() < 0.5 else np.hypot(v + rng.uniform(-size, size), u + rng.uniform(-size, size))
    bumps = np.float32(rng.uniform(0, 0.5)) * noise_smooth(rng, size)
    return unit(unit(field, 0) + bumps)


def lattice(rng: Generator, size: int) -> Field:
    """Shapes repeated on a grid: holes, dots, rings, studs, crosses; jittered and of uneven tone."""
    v, u = _warped(rng, size, 0.4)
    pitch = _log(rng, 7, 64)
    row = np.floor(v / pitch)
    u = u + np.float32(pitch * rng.choice([0, 0.5])) * (row % 2)
    column = np.floor(u / pitch)
    key = (row.astype(np.int64) % 97) * 97 + column.astype(np.int64) % 97
    y, x = v / np.float32(pitch) - row - np.float32(0.5), u / np.float32(pitch) - column - np.float32(0.5)
    jitter = rng.normal(0, rng.uniform(0, 0.08), (2, 97 * 97)).astype(np.float32)
    y, x = y + jitter[0][key], x + jitter[1][key]
    shape = rng.integers(4)
    if shape == 0:
        distance = np.hypot(y, x)
    elif shape == 1:
        distance = np.maximum(np.abs(y), np.abs(x) * np.float32(rng.uniform(0.5, 1)))
    elif shape == 2:
        distance = np.minimum(np.abs(y), np.abs(x)) + np.float32(0.1)
    else:
        distance = np.abs(np.hypot(y, x) - np.float32(rng.uniform(0.15, 0.35))) + np.float32(0.1)
    radius, edge = rng.uniform(0.15, 0.42), max(0.7 / pitch, rng.uniform(0.01, 0.15))
    inside = np.clip((np.float32(radius) - distance) / np.float32(edge), 0, 1)
    tone = np.float32(1) - np.float32(rng.uniform(0, 0.6)) * rng.random(97 * 97).astype(np.float32)[key]
    field: Field = inside * tone
    if rng.random() < 0.3:
        field = field * np.clip(np.float32(0.5) + y + x, 0, 1)
    return field


def bricks(rng: Generator, size: int) -> Field:
    """Tiles, bricks and planks with joints, each of its own tone and texture."""
    v, u = _warped(rng, size, 0.3)
    tall = _log(rng, 8, 70)
    wide = tall * _log(rng, 1, 5)
    row = np.floor(v / tall)
    u = u + np.float32(wide * rng.choice([0, 0.5, 0.37])) * row
    column = np.floor(u / wide)
    key = (row.astype(np.int64) * 131 + column.astype(np.int64)) % 4096
    y, x = v - row * np.float32(tall), u - column * np.float32(wide)
    inset = np.minimum(np.minimum(y, np.float32(tall) - y), np.minimum(x, np.float32(wide) - x))
    joint = rng.uniform(0.5, 0.08 * tall + 1)
    tone = np.float32(0.45) + np.float32(rng.uniform(0, 0.5)) * rng.random(4096).astype(np.float32)[key]
    tone = tone + np.float32(rng.uniform(0, 0.4)) * (noise(rng, size) - np.float32(0.5))
    return np.clip(tone * np.clip((inset - np.float32(joint)) + np.float32(0.5), 0, 1), 0, 1)


def glyphs(rng: Generator, size: int) -> Field:
    """Letters of a few random strokes in lines, or conductor tracks on a coarse grid."""
    field = np.zeros((size, size), np.float32)
    if rng.random() < 0.5:
        high = int(rng.integers(6, 24))
        wide, thick = max(4, int(high * rng.uniform(0.5, 0.9))), max(1, int(high * rng.uniform(0.08, 0.22)))
        alphabet = []
        for _ in range(12):
            letter = np.zeros((high, wide), np.float32)
            for _ in range(rng.integers(2, 5)):
                if rng.random() < 0.5:
                    at = int(rng.integers(0, high - thick + 1))
                    letter[at : at + thick, : int(rng.integers(wide // 2, wide + 1))] = 1
                else:
                    at = int(rng.integers(0, wide - thick + 1))
                    letter[int(rng.integers(0, high // 2 + 1)) :, at : at + thick] = 1
            alphabet.append(letter)
        leading, spacing, gap = int(high * rng.uniform(1.2, 2.2)), wide + max(1, wide // 4), rng.uniform(0, 0.3)
        for top in range(0, size - high, leading):
            for left in range(0, size - wide, spacing):
                if rng.random() > gap:
                    field[top : top + high, left : left + wide] = alphabet[int(rng.integers(12))]
    else:
        pitch = int(rng.integers(8, 28))
        thick = max(1, int(pitch * rng.uniform(0.1, 0.4)))
        for _ in range(int(2.0 * (size / pitch) ** 1.3)):
            y, x = (int(k) * pitch for k in rng.integers(0, size // pitch, 2))
            length = int(rng.integers(1, 8)) * pitch + thick
            if rng.random() < 0.5:
                field[y : y + thick, x : x + length] = 1
            else:
                field[y : y + length, x : x + thick] = 1
            if rng.random() < 0.4:
                field[max(0, y - thick) : y + 2 * thick, max(0, x - thick) : x + 2 * thick] = 1
    turned = np.rot90(field, int(rng.integers(4))).copy()
    soft: Field = ndimage.gaussian_filter(turned, rng.uniform(0, 0.9))
    return soft


def speckle(rng: Generator, size: int) -> Field:
    """Grains, pits and dust: sparse points of a few sizes."""
    field = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 4)):
        share = _log(rng, 2e-4, 5e-2)
        points = (rng.random((size, size)) < share) * rng.uniform(0.3, 1, (size, size))
        sigma = rng.uniform(0.4, 3)
        spots = ndimage.gaussian_filter(points.astype(np.float32), sigma, mode="wrap")
        field = np.maximum(field, spots * np.float32(2 * math.pi * sigma * sigma))
    return np.clip(field, 0, 1)


def scratches(rng: Generator, size: int) -> Field:
    """Thin lines: straight and parallel, straight and random, or the level lines of smooth noise."""
    total = np.zeros((size, size), np.float32)
    common = rng.uniform(0, math.pi)
    spread = rng.choice([0.05, 3.2])
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for _ in range(int(_log(rng, 3, 60))):
        if rng.random() < 0.3:
            steep = _smooth(rng, size, _log(rng, 20, 80))
            line = np.exp(-((steep / np.float32(_log(rng, 0.01, 0.05))) ** 2)) * (_smooth(rng, size, 30) > 1)
        else:
            angle = common + rng.normal(0, spread)
            cy, cx = rng.uniform(0, size, 2)
            cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
            across = cos * (y - np.float32(cy)) + sin * (x - np.float32(cx))
            along = cos * (x - np.float32(cx)) - sin * (y - np.float32(cy))
            line = np.exp(-((across / np.float32(_log(rng, 0.5, 2))) ** 2)) * (np.abs(along) < _log(rng, 8, size))
        total = np.maximum(total, np.float32(rng.uniform(0.3, 1)) * line)
    return total


def fractal(rng: Generator, size: int) -> Field:
    """Orbits of a random iterated function system: how often they visit a pixel."""
    maps = int(rng.integers(2, 6))
    matrices, shifts = np.empty((maps, 2, 2)), rng.uniform(-1, 1, (maps, 2))
    for index in range(maps):
        left, _, right = np.linalg.svd(rng.standard_normal((2, 2)))
        matrices[index] = left @ np.diag(rng.uniform(0.3, 0.9, 2)) @ right
    points = rng.uniform(-1, 1, (4000, 2))
    counts = np.zeros((size, size))
    orbit = []
    for turn in range(45):
        chosen = rng.integers(maps, size=len(points))
        points = np.einsum("nij,nj->ni", matrices[chosen], points) + shifts[chosen]
        if turn >= 15:
            orbit.append(points)
    cloud = np.concatenate(orbit)
    low, high = np.percentile(cloud, (1, 99), axis=0)
    at = (cloud - low) / np.maximum(high - low, 1e-6) * _log(rng, 1, 2.5) * size
    at = np.mod(at, size).astype(int)
    np.add.at(counts, (at[:, 0], at[:, 1]), 1)
    return unit(np.log1p(ndimage.gaussian_filter(counts, rng.uniform(0.4, 1.2))))


def julia(rng: Generator, size: int) -> Field:
    """Escape times of a Julia set, somewhere near its border."""
    angle = rng.uniform(0, 2 * math.pi)
    c = (0.5 * np.exp(1j * angle) - 0.25 * np.exp(2j * angle)) * rng.uniform(1.0, 1.08)
    v, u = _plane(rng, size)
    zoom, centre = _log(rng, 0.4, 1.5), rng.uniform(-0.7, 0.7, 2)
    z = ((v - v.mean()) + 1j * (u - u.mean())) / size * 2 * zoom + centre[0] + 1j * centre[1]
    times = np.zeros((size, size), np.float32)
    for _ in range(40):
        inside = np.abs(z) < 4
        times += inside
        z = np.where(inside, z * z + c, z)
    value = np.log1p(times) * np.float32(_log(rng, 0.5, 4))
    return (0.5 + 0.5 * np.sin(value * 4)).astype(np.float32) if rng.random() < 0.6 else unit(value, 0)


FORMULAS: dict[str, Callable[[Generator, int], Field]] = {
    f.__name__: f
    for f in (
        noise, brushed, bands, leaves, voronoi, weave, waves, contours, gradient, lattice, bricks, glyphs, speckle,
        scratches, fractal, julia,
    )
}  # fmt: skip
"""Formula name to field: (rng, size) -> (size, size)."""
