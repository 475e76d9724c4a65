"""The pretext task: say from which canvas a piece is, in directions that fill the space of the features."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .loop import run
from .recipe import Recipe, Training
from .stem import bank

__all__ = [
    "MEAN",
    "STD",
    "Trunk",
    "augment",
    "crowding",
    "cut",
    "draw_batch",
    "illuminate",
    "loss_of",
    "normalised",
    "train",
]

_STEM_NORM = 1.4  # of a filter, about that of a random one

MEAN, STD = 0.5, 0.25
"""Input normalisation of all bundled backbones, the same for every channel."""


class Trunk(nn.Module):
    """A feature pyramid with one cosine classifier per level, on the very features that methods will compare."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        network: Any = timm.create_model(recipe.model, features_only=True, out_indices=recipe.levels)
        if recipe.stem == "bank":
            # From random filters a short training arrives at ones that answer to shading, not to fine grain.
            first: nn.Conv2d = network.conv1
            first.weight.data.copy_(bank(first.out_channels, first.kernel_size[0], recipe.seed) * _STEM_NORM)
        self.network = network.to(memory_format=torch.channels_last)
        self.classes = nn.ParameterList(
            nn.Parameter(functional.normalize(torch.randn(recipe.canvases, c), dim=1))
            for c in network.feature_info.channels()
        )
        self.scale = recipe.scale

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the (B, C, h, w) maps of (B, 3, H, W) images in [0, 1]."""
        maps: list[Tensor] = self.network(normalised(images).contiguous(memory_format=torch.channels_last))
        return maps

    def logits(self, level: int, directions: Tensor) -> Tensor:
        """Return (N, classes) of (N, C) unit vectors of a level."""
        return self.scale * directions @ functional.normalize(self.classes[level], dim=1).T


def normalised(images: Tensor) -> Tensor:
    """Return images in [0, 1] as the networks get them."""
    return (images - MEAN) / STD


def cut(pictures: NDArray[np.uint8], chosen: NDArray[np.int64], crop: int, rng: np.random.Generator) -> Tensor:
    """Return one random crop (B, 3, crop, crop) uint8 of each chosen picture, flipped and turned by quarters."""
    room = pictures.shape[1] - crop + 1
    pieces = np.empty((len(chosen), crop, crop, 3), np.uint8)
    tops, lefts = rng.integers(0, room, (2, len(chosen))).tolist()
    turns = rng.integers(0, 8, len(chosen)).tolist()
    for row, (number, top, left, turn) in enumerate(zip(chosen.tolist(), tops, lefts, turns, strict=True)):
        piece = pictures[number, top : top + crop, left : left + crop]
        piece = piece[:, ::-1] if turn & 1 else piece
        piece = piece[::-1] if turn & 2 else piece
        pieces[row] = piece.transpose(1, 0, 2) if turn & 4 else piece
    return torch.from_numpy(pieces).permute(0, 3, 1, 2)


def augment(images: Tensor, strength: float, faintest: float, generator: torch.Generator) -> Tensor:
    """Change contrast, brightness and tint of (B, 3, H, W) images in [0, 1].

    The contrast varies most, by a factor from `faintest` to 1.5: what is faint on a smooth surface must count as much
    as what is strong at an edge.
    """

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    batch = len(images)
    low, high = strength * math.log(faintest), strength * math.log(1.5)
    gain = torch.exp(low + (high - low) * torch.rand((batch, 1, 1, 1), generator=generator))
    gain = gain * torch.exp(strength * 0.12 * draw(batch, 3, 1, 1))
    offset = strength * 0.15 * draw(batch, 1, 1, 1) + strength * 0.05 * draw(batch, 3, 1, 1)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - middle) * gain + middle + offset
    grey = torch.rand((batch, 1, 1, 1), generator=generator) < 0.3 * strength
    images = torch.where(grey, images.mean(dim=1, keepdim=True), images)
    return images.clamp(0, 1)


def illuminate(images: Tensor, strength: float, light: float, generator: torch.Generator) -> Tensor:
    """Light (B, 3, H, W) images in [0, 1] unevenly and add a little noise.

    The light's logarithm has a standard deviation of about three quarters of `light`: smooth shading, and
    in every other image a soft or sharp border. Neither names a canvas.
    """
    batch, height, width = len(images), *images.shape[-2:]
    shade = torch.zeros(batch, 1, height, width)
    for cells in (2, 4):
        noise = torch.randn((batch, 1, cells, cells), generator=generator)
        shade += functional.interpolate(noise, (height, width), mode="bicubic", align_corners=True) / cells
    angle, place, amount = torch.randn((3, batch, 1, 1, 1), generator=generator)
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    softness = torch.exp(torch.rand((batch, 1, 1, 1), generator=generator) * 4 - 4)
    edge = torch.tanh(((math.pi * angle).cos() * x + (math.pi * angle).sin() * y - 0.4 * place) / softness)
    edge = edge * amount * (torch.rand((batch, 1, 1, 1), generator=generator) < 0.5)
    images = (images * torch.exp(light * (shade + edge))).clamp(0, 1)
    level = 0.01 * strength * torch.randn((batch, 1, 1, 1), generator=generator).abs()
    return (images + level * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def draw_batch(pictures: NDArray[np.uint8], recipe: Training, step: int) -> tuple[Tensor, Tensor]:
    """Return a step's crops (B, 3, crop, crop) in [0, 1] and their canvases (B,), by the recipe and the step only."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([recipe.seed, 1, step])))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    chosen = rng.integers(0, len(pictures), recipe.batch)
    images = augment(cut(pictures, chosen, recipe.crop, rng).float() / 255, recipe.jitter, recipe.faintest, generator)
    return illuminate(images, recipe.jitter, recipe.light, generator), torch.from_numpy(chosen)


def loss_of(
    trunk: Trunk, images: Tensor, canvas: Tensor, recipe: Recipe, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, how often the canvas was named rightly, per level and pooled, and how crowded features are."""
    maps = trunk(images)
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    losses, crowded, figures = [], [], {}
    for level, features in enumerate(maps):
        directions = functional.normalize(features.flatten(2).transpose(1, 2), dim=2)
        crowded.append(crowding(directions.flatten(0, 1)))
        count = min(recipe.places, directions.shape[1])
        places = torch.rand(directions.shape[:2], generator=generator).topk(count, dim=1).indices.to(images.device)
        drawn = directions.gather(1, places[..., None].expand(-1, -1, directions.shape[2])).flatten(0, 1)
        loss, figures[f"right_level{level}"] = _named(trunk.logits(level, drawn), canvas.repeat_interleave(count))
        losses.append(loss)
    pooled = functional.normalize(maps[-1].mean(dim=(2, 3)), dim=1)
    whole, figures["right_pooled"] = _named(trunk.logits(len(maps) - 1, pooled), canvas)
    figures["crowding"] = torch.stack(crowded).mean().detach()
    named = recipe.dense * torch.stack(losses).mean() + (1 - recipe.dense) * whole
    return named + recipe.spread * torch.stack(crowded).mean(), figures


def crowding(rows: Tensor, centred: bool = True) -> Tensor:
    """Return how unevenly (N, C) vectors scatter over the C dimensions: 1 where evenly, C where along one line.

    It is C over the participation ratio of the eigenvalues of S, tr(S^2) C / tr(S)^2, S the scatter about the mean or,
    not `centred`, about the origin. Distances between crowded features say little but what the strongest direction
    says, which on photographs is shading.
    """
    rows = rows.float()
    covariance = torch.cov(rows.T) if centred else rows.T @ rows / len(rows)
    return covariance.square().sum() * len(covariance) / covariance.diagonal().sum().square()


def _named(logits: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and how often the right canvas is on top."""
    return functional.cross_entropy(logits.float(), canvas), (logits.argmax(dim=1) == canvas).float().mean().detach()


def train(
    pictures: NDArray[np.uint8],
    recipe: Recipe,
    folder: Path,
    *,
    device: torch.device,
    every: int = 1000,
    probe: Callable[[nn.Module], dict[str, float]] | None = None,
    stop: int | None = None,
    start: Path | None = None,
) -> Trunk:
    """Train a trunk on pictures (N, H, W, 3), or go on where ``folder/checkpoint.pt`` ends (see `loop.run`).

    `start` is the checkpoint of an earlier training on the same pictures, whose weights are the first ones.
    """
    torch.manual_seed(recipe.seed)
    trunk = Trunk(recipe).to(device)
    if start is not None:
        try:
            trunk.load_state_dict(torch.load(start, map_location=device, weights_only=True)["learner"])
        except (KeyError, RuntimeError) as error:
            raise SystemExit(
                f"{start}: expected a trunk's checkpoint of the same model and canvases: {error}"
            ) from None

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, canvas = draw_batch(pictures, recipe, step)
        return loss_of(trunk, images.to(device), canvas.to(device), recipe, step)

    run(trunk, loss, recipe, folder, every=every, probe=(lambda: probe(trunk.network)) if probe else None, stop=stop)
    return trunk
