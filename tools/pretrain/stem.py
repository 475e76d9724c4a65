"""First filters by formula: what a camera's fine grain, lines and spots look like to a bank of band-passes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["bank", "cosines"]

_LOWEST, _HIGHEST = 0.1, 0.38  # cycles per px
_EIGHTH = ("line", "line", "line", "line", "line", "spot", "tint", "mean")  # kinds in every eight filters


def bank(filters: int, size: int, seed: int) -> Tensor:
    """Return (filters, 3, size, size) filters: Gabor pairs, spots, Gabor filters between two colours, and means.

    Of eight filters five are lines or edges in grey, one a spot, one a line or edge between colours: none of these
    answers to an even surface, however bright. The eighth is a mean, of grey and of a colour in turn. Frequencies are
    log-uniform, angles uniform. Learnt filters look like this in the end; random ones answer mostly to shading.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 3])))
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    found = []
    for number in range(filters):
        kind = _EIGHTH[number % 8]
        frequency = math.exp(rng.uniform(math.log(_LOWEST), math.log(_HIGHEST)))
        angle, phase = rng.uniform(0, math.pi), rng.choice([0, math.pi / 2])
        width = min(max(0.45 / frequency, 0.8), 0.37 * size)
        window = np.exp(-(x * x + y * y) / (2 * width * width))
        if kind == "mean":
            shape = window
        else:
            wave = np.cos(2 * math.pi * frequency * (math.cos(angle) * x + math.sin(angle) * y) + phase)
            shape = np.exp(-(x * x + y * y) / (0.72 * width * width)) if kind == "spot" else window * wave
            shape = shape - window * shape.sum() / window.sum()
        colour = rng.normal(size=3)
        colour = colour - colour.mean() if kind == "tint" or number % 16 == 7 else np.ones(3)
        weight = colour[:, None, None] * shape
        found.append(weight / np.sqrt((weight * weight).sum()))
    return torch.from_numpy(np.stack(found)).float()


def cosines(filters: int, size: int) -> Tensor:
    """Return (filters, 3, size, size): the lowest cosines of a patch; three quarters in grey, the rest in two colours.

    Their length rises with the frequency as the amplitudes of pictures fall, so that all outputs vary alike: of random
    filters each output says mostly how bright the patch is. The mean has length 0.05, a cosine 0.1 per half wave more.
    """
    number, x = np.arange(size), (np.arange(size) + 0.5) / size
    waves = np.cos(math.pi * number[:, None] * x)
    order = sorted((a * a + b * b, a, b) for a in range(size) for b in range(size))
    eighth = filters // 8
    found = []
    for colour, count in (((1, 1, 1), filters - 2 * eighth), ((1, -1, 0), eighth), ((1, 1, -2), eighth)):
        across = np.array(colour) / np.linalg.norm(colour)
        for square, a, b in order[:count]:
            shape = np.outer(waves[a], waves[b])
            shape *= 0.1 * (0.5 + math.sqrt(square)) / np.linalg.norm(shape)
            found.append(across[:, None, None] * shape)
    return torch.from_numpy(np.stack(found)).float()
