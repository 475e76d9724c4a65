"""Textures that need no download: crops of given images, or clouds, stripes and checks, in changed colours."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ._image_operations import OPERATIONS, resized

__all__ = ["texture"]


def texture(sources: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return a texture that needs no download.

    Parameters
    ----------
    sources : Tensor
        (B, 3, h, w) float32 in [0, 1]: every other texture is a turned and scaled crop of one of them.
    size : (int, int)
        Height and width in pixels.
    rng : numpy.random.Generator

    Returns
    -------
    Tensor
        (3, *size) float32 in [0, 1], after three of eight random operations (gamma, brightness, sharpness, colour,
        solarise, posterise, invert, autocontrast).
    """
    if rng.random() < 0.5:
        found = _crop(sources, size, rng)
    else:
        found = _PROCEDURAL[rng.integers(len(_PROCEDURAL))](size, rng).to(sources.device, non_blocking=True)
    for chosen in rng.choice(len(OPERATIONS), 3, replace=False):
        found = OPERATIONS[chosen](found, rng).clamp(0, 1)
    return found


def _crop(sources: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    source = sources[rng.integers(len(sources))]
    limit = min(source.shape[1:])
    side = min(limit, max(2, int(max(size) * rng.uniform(0.25, 1))))
    top, left = (int(rng.integers(n - side + 1)) for n in source.shape[1:])
    crop = source[:, top : top + side, left : left + side].rot90(int(rng.integers(4)), (1, 2))
    if rng.random() < 0.5:
        crop = crop.flip(2)
    return resized(crop, size)


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    octaves = [resized(torch.from_numpy(rng.random((3, n, n), dtype=np.float32)), size) / n for n in (4, 8, 16, 32)]
    return _stretched(torch.stack(octaves).sum(dim=0), rng)


def _stripes(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    wave = torch.sin(_ramp(size, rng))
    return _two_colours(wave if rng.random() < 0.5 else wave.sign(), rng)


def _checker(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    return _two_colours((torch.sin(_ramp(size, rng)) * torch.sin(_ramp(size, rng))).sign(), rng)


_PROCEDURAL = (_clouds, _stripes, _checker)


def _ramp(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return a phase in radians that rises in a random direction with a period of 4 to 64 px."""
    turn, step = rng.uniform(0, math.pi), 2 * math.pi / math.exp(rng.uniform(math.log(4), math.log(64)))
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    return step * (math.cos(turn) * columns + math.sin(turn) * rows) + rng.uniform(0, 2 * math.pi)


def _two_colours(wave: Tensor, rng: np.random.Generator) -> Tensor:
    """Map a wave in [-1, 1] between two random colours."""
    first, second = torch.from_numpy(rng.random((2, 3, 1, 1), dtype=np.float32))
    return torch.lerp(first, second, (wave + 1)[None] / 2)


def _stretched(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Stretch each channel to a random part of [0, 1]."""
    low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
    ends = torch.from_numpy(np.sort(rng.random((2, 3, 1, 1), dtype=np.float32), axis=0))
    return torch.lerp(ends[0], ends[1], (image - low) / (high - low).clamp(min=1e-6))
