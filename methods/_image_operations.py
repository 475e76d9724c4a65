"""Operations on single images, (3, h, w) in [0, 1]: colours, blur, resampling. Results may leave [0, 1] slightly.

Where an operation is random, a generator is the only source of it. What it takes from the host goes to the device
without waiting for it: ``non_blocking``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "OPERATIONS",
    "blurred",
    "colour_jittered",
    "grey",
    "hue_turned",
    "jittered",
    "per_channel",
    "recoloured",
    "resized",
    "rotated",
    "size_of",
]

_LUMA = (0.299, 0.587, 0.114)
_YIQ = np.array([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])  # brightness and two axes of colour
_FROM_YIQ = np.linalg.inv(_YIQ)


def _gamma(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.pow(image, per_channel(rng.uniform(0.5, 2, 3), image))


def _brightness(image: Tensor, rng: np.random.Generator) -> Tensor:
    return image * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30) / 255


def _sharpness(image: Tensor, rng: np.random.Generator) -> Tensor:
    around = functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    neighbours = around[:, 1:-1, :-2] + around[:, 1:-1, 2:] + around[:, :-2, 1:-1] + around[:, 2:, 1:-1]
    return torch.lerp((image + neighbours) / 5, image, rng.uniform(1, 3))


def _colour(image: Tensor, rng: np.random.Generator) -> Tensor:
    return recoloured(image, rng.uniform(-0.2, 0.2), 1 + rng.uniform(-0.5, 0.5))


def _solarise(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.where(image < rng.uniform(0.12, 0.5), image, 1 - image)


def _posterise(image: Tensor, rng: np.random.Generator) -> Tensor:
    levels = 2 ** int(rng.integers(1, 5))
    return torch.div((image * levels).floor().clamp(max=levels - 1), levels - 1)


def _invert(image: Tensor, rng: np.random.Generator) -> Tensor:
    del rng
    return 1 - image


def _autocontrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    del rng
    low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
    return torch.div(image - low, (high - low).clamp(min=1e-6))


OPERATIONS = (_gamma, _brightness, _sharpness, _colour, _solarise, _posterise, _invert, _autocontrast)
"""(image, generator) -> image: random changes of colour and sharpness."""


def jittered(image: Tensor, strength: float, hue: float, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation by factors of 1 +- strength, and the hue by up to `hue` turns."""
    bright, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    brighter = (image * bright).clamp(0, 1)
    contrasted = torch.lerp(grey(brighter).mean(), brighter, float(contrast)).clamp(0, 1)
    return recoloured(contrasted, rng.uniform(-hue, hue), float(saturation)).clamp(0, 1)


def colour_jittered(image: Tensor, strength: float, hue: float, rng: np.random.Generator) -> Tensor:
    """Do what :func:`jittered` does in random order and with the hue of HSV, as torchvision's ``ColorJitter``."""
    bright, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).tolist()
    turns = rng.uniform(-hue, hue)
    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x * bright,
        lambda x: torch.lerp(grey(x).mean(), x, contrast),
        lambda x: torch.lerp(grey(x), x, saturation),
        lambda x: hue_turned(x, turns),
    )
    for chosen in rng.permutation(len(changes)):
        image = changes[chosen](image).clamp(0, 1)
    return image


def hue_turned(image: Tensor, turns: float) -> Tensor:
    """Turn the hue of an image in [0, 1] on the hexagon of HSV."""
    value, chroma = image.amax(dim=0), image.amax(dim=0) - image.amin(dim=0)
    red, green, blue = image / chroma.clamp(min=1e-12)  # differences of channels are in [-1, 1]
    sector = torch.where(value == image[1], 2 + blue - red, 4 + red - green)
    sector = torch.where(value == image[0], green - blue, sector) + 6 * turns
    away = (sector + torch.tensor((5.0, 3.0, 1.0)).to(image, non_blocking=True).view(3, 1, 1)).remainder(6)
    return value - chroma * torch.minimum(away, 4 - away).clamp(0, 1)


def recoloured(image: Tensor, turns: float, saturation: float) -> Tensor:
    """Turn and scale the colours about the grey axis."""
    sine, cosine = math.sin(2 * math.pi * turns), math.cos(2 * math.pi * turns)
    turned = np.array(
        [[1, 0, 0], [0, saturation * cosine, -saturation * sine], [0, saturation * sine, saturation * cosine]]
    )
    matrix = torch.from_numpy(_FROM_YIQ @ turned @ _YIQ).to(image, non_blocking=True)
    return (matrix @ image.flatten(1)).view_as(image)


def grey(image: Tensor) -> Tensor:
    """Return the brightness in all three channels."""
    return (image * per_channel(_LUMA, image)).sum(dim=0, keepdim=True).expand_as(image)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian; a wide one on a coarser grid, where it is the same to the eye and costs little."""
    shrink = max(1, int(sigma / 3))
    size = size_of(image)
    if shrink > 1:
        coarse = (max(1, size[0] // shrink), max(1, size[1] // shrink))
        image = functional.interpolate(image[None], coarse, mode="area")[0]
    down, across = (_gaussian(n, sigma / shrink).to(image, non_blocking=True) for n in size_of(image))
    return resized(down @ image @ across.T, size)


def _gaussian(length: int, sigma: float) -> Tensor:
    """Return the (length, length) matrix that blurs a signal; at the ends the weights that are left count."""
    steps = torch.arange(length) / sigma
    weights = torch.exp(-0.5 * (steps[:, None] - steps[None]) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


def rotated(image: Tensor, degrees: float) -> Tensor:
    """Rotate a (C, h, w) image about its centre; what comes from outside is zero."""
    height, width = size_of(image)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    theta = torch.tensor([[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]])
    grid = functional.affine_grid(theta[None].to(image, non_blocking=True), [1, *image.shape], align_corners=False)
    rotated: Tensor = functional.grid_sample(image[None], grid, align_corners=False)[0]
    return rotated


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample to another height and width, bilinearly."""
    if size_of(image) == size:
        return image
    resized: Tensor = functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    return resized


def size_of(image: Tensor) -> tuple[int, int]:
    """Return height and width."""
    return image.shape[-2], image.shape[-1]


def per_channel(values: tuple[float, ...] | np.ndarray, image: Tensor) -> Tensor:
    """Return three numbers as (3, 1, 1) on the image's device."""
    return torch.as_tensor(values, dtype=image.dtype).view(3, 1, 1).to(image.device, non_blocking=True)
