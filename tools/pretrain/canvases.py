"""Canvases: coloured, lit and noisy pictures composed of fields, each the function of a seed and a number."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .fields import FORMULAS, Field, noise, unit

__all__ = ["VERSION", "canvas", "canvases"]

VERSION = 1
"""Raised whenever the same seed and number give another picture."""

Picture = NDArray[np.float32]

_WEIGHTS = {"scratches": 0.5, "julia": 0.6, "gradient": 0.7}  # of a formula as the base of a canvas; else 1
_OVERLAYS = ("scratches", "speckle", "glyphs", "noise", "lattice")


def canvas(seed: int, number: int, size: int = 256) -> NDArray[np.uint8]:
    """Draw one picture.

    Parameters
    ----------
    seed, number : int
        They alone determine the picture.
    size : int
        Height and width in px.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
    picture = _coloured(rng, _field(rng, size))
    kind = rng.random()
    if kind < 0.35:
        # Two materials: the border between them follows a third field.
        where = _field(rng, size)
        edge = np.float32(rng.choice([0.02, 0.1, 0.4]))
        weight = np.clip((where - np.float32(rng.uniform(0.25, 0.75))) / edge + np.float32(0.5), 0, 1)[..., None]
        picture = picture + (_coloured(rng, _field(rng, size)) - picture) * weight
    elif kind < 0.65:
        overlay = FORMULAS[_OVERLAYS[int(rng.integers(len(_OVERLAYS)))]](rng, size)[..., None]
        colour = rng.random(3).astype(np.float32) if rng.random() < 0.4 else np.full(3, rng.random(), np.float32)
        picture = picture + (colour - picture) * overlay * np.float32(rng.uniform(0.2, 1))
    if rng.random() < 0.5:
        light = unit(ndimage.gaussian_filter(_ramp(rng, size), 1)) - np.float32(0.5)
        picture = picture * (1 + np.float32(rng.uniform(0, 0.6)) * light)[..., None]
    grain = rng.standard_normal((size, size, 1 if rng.random() < 0.5 else 3)).astype(np.float32)
    picture = picture + np.float32(rng.exponential(0.015)) * grain
    bytes_: NDArray[np.uint8] = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)
    return bytes_


def canvases(seed: int, numbers: range, size: int = 256) -> tuple[NDArray[np.uint8], str]:
    """Draw pictures; return them, (N, size, size, 3), and the first 16 hex digits of the SHA-256 of their bytes."""
    drawn = np.stack([canvas(seed, number, size) for number in numbers])
    return drawn, hashlib.sha256(drawn.tobytes()).hexdigest()[:16]


def _field(rng: np.random.Generator, size: int) -> Field:
    """Draw a base field: one formula, or one bent, masked or shaded by another."""
    names = list(FORMULAS)
    weights = np.array([_WEIGHTS.get(name, 1.0) for name in names])
    field = FORMULAS[names[int(rng.choice(len(names), p=weights / weights.sum()))]](rng, size)
    kind = rng.random()
    if kind < 0.2:
        field = unit(field * (np.float32(rng.uniform(0.1, 0.6)) + noise(rng, size)))
    elif kind < 0.4:
        # Relief: the field is a height, seen under a lamp from the side.
        smooth = ndimage.gaussian_filter(field, rng.uniform(0.6, 2.0))
        down, across = np.gradient(smooth)
        angle = rng.uniform(0, 2 * math.pi)
        slope = math.cos(angle) * down + math.sin(angle) * across
        field = unit(slope + np.float32(rng.uniform(0, 0.1)) * field)
    if rng.random() < 0.3:
        field = field ** np.float32(math.exp(rng.normal(0, 0.6)))
    return field


def _ramp(rng: np.random.Generator, size: int) -> Field:
    return FORMULAS["gradient"](rng, size)


def _coloured(rng: np.random.Generator, field: Field) -> Picture:
    """Look the field up in a random palette: grey, two near tones, or a few free colours."""
    kind, stops = rng.random(), int(rng.integers(2, 6))
    if kind < 0.35:
        tones = rng.random((stops, 1)) + rng.normal(0, 0.02, (1, 3))
    elif kind < 0.7:
        tones = rng.random(3) + rng.normal(0, rng.uniform(0.02, 0.3), (stops, 1)) + rng.normal(0, 0.06, (stops, 3))
    else:
        tones = rng.random((stops, 3))
    contrast = math.exp(rng.uniform(math.log(0.15), 0))
    tones = tones.mean(axis=0) + (tones - tones.mean(axis=0)) * contrast
    tones = np.clip(tones, 0.02, 0.98)
    at = np.concatenate([[0], np.sort(rng.random(stops - 2)), [1]]) if stops > 2 else np.array([0.0, 1.0])
    if rng.random() < 0.2:  # few flat tones
        steps = int(rng.integers(2, 6))
        field = np.round(field * steps) / np.float32(steps)
    picture: Picture = np.stack([np.interp(field, at, tones[:, c]) for c in range(3)], axis=-1).astype(np.float32)
    return picture
