"""The pretext task: say from which canvas a piece is, and where in it another one begins."""

from __future__ import annotations

import dataclasses
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
from .recipe import Recipe
from .stem import bank

__all__ = ["MEAN", "STD", "Batch", "Trunk", "augment", "cut", "draw_batch", "loss_of", "normalised", "train"]

_STEM_NORM = 1.4  # of a filter, about that of a random one

MEAN, STD = 0.5, 0.25
"""Input normalisation of all bundled backbones, the same for every channel."""


class Trunk(nn.Module):
    """A feature pyramid with one cosine classifier per level."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        network: Any = timm.create_model(recipe.model, features_only=True, out_indices=recipe.levels)
        if recipe.stem == "bank":
            # Not learnt further: a short training makes them answer to shading.
            stem: nn.Conv2d = network.conv1
            stem.weight.data.copy_(bank(stem.out_channels, stem.kernel_size[0], recipe.seed) * _STEM_NORM)
            stem.requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)
        self.strides: tuple[int, ...] = tuple(network.feature_info.reduction())
        self.classes = nn.ParameterList(
            nn.Parameter(functional.normalize(torch.randn(recipe.canvases, c), dim=1))
            for c in network.feature_info.channels()
        )
        self.project = nn.ModuleList(nn.Linear(c, c) for c in network.feature_info.channels())
        self.foreign = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in network.feature_info.channels())
        for head in self.foreign:
            nn.init.zeros_(head.get_parameter("weight"))
            nn.init.zeros_(head.get_parameter("bias"))
        self.scale = recipe.scale

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the (B, C, h, w) maps of (B, 3, H, W) images in [0, 1]."""
        maps: list[Tensor] = self.network(normalised(images).contiguous(memory_format=torch.channels_last))
        return maps

    def logits(self, level: int, features: Tensor) -> Tensor:
        """Return (N, classes) of (N, C) features of a level."""
        weight = functional.normalize(self.classes[level], dim=1)
        return self.scale * functional.normalize(self.project[level](features), dim=1) @ weight.T


@dataclasses.dataclass(frozen=True)
class Batch:
    """A step's crops.

    Attributes
    ----------
    images : Tensor, (B, 3, H, W) float32 in [0, 1]
    first, second : Tensor, (B,) int64
        Canvases of the ground and of what was cut into it.
    cover : Tensor, (B, 1, H, W) float32
        How much of the second canvas is seen: 0 outside its shapes, and everywhere in a crop that was not mixed.
    """

    images: Tensor
    first: Tensor
    second: Tensor
    cover: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


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


def _cover(batch: int, crop: int, mixed: float, generator: torch.Generator) -> Tensor:
    """Draw shapes (B, 1, crop, crop): level sets of noise (blobs, dots) and their borders (lines), faint or opaque."""
    cover = torch.zeros(batch, 1, crop, crop)
    for cells, kind in ((2, "blob"), (4, "blob"), (8, "blob"), (14, "dot"), (3, "line"), (6, "line")):
        side = max(2, round(cells * crop / 48)) + 2
        noise = torch.randn((batch, 1, side, side), generator=generator)
        field = functional.interpolate(noise, (crop, crop), mode="bicubic", align_corners=True)
        level = torch.rand((batch, 1, 1, 1), generator=generator)
        if kind == "line":
            shape = (field.abs() < 0.03 * cells * (0.3 + level)) & (field.roll(crop // 2, 2) > 0.2)
        else:
            shape = field > (0.2 + 1.6 * level if kind == "blob" else 1.4 + 0.9 * level)
        chosen = torch.rand((batch, 1, 1, 1), generator=generator) < 0.3
        cover = torch.maximum(cover, (shape & chosen).float())
    opacity = (0.25 + 1.5 * torch.rand((batch, 1, 1, 1), generator=generator)).clamp(max=1)
    used = torch.rand((batch, 1, 1, 1), generator=generator) < mixed
    return cover * opacity * used


def draw_batch(pictures: NDArray[np.uint8], recipe: Recipe, step: int) -> Batch:
    """Make the crops of a step; they depend on the recipe and the step only."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([recipe.seed, 1, step])))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    first, second = rng.integers(0, len(pictures), (2, recipe.batch))
    ground, other = (
        augment(cut(pictures, chosen, recipe.crop, rng).float() / 255, recipe.jitter, recipe.faintest, generator)
        for chosen in (first, second)
    )
    cover = _cover(recipe.batch, recipe.crop, recipe.mixed, generator)
    images = illuminate(torch.lerp(ground, other, cover), recipe.jitter, recipe.light, generator)
    return Batch(images, torch.from_numpy(first), torch.from_numpy(second), cover)


def loss_of(trunk: Trunk, batch: Batch, recipe: Recipe, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss, how often the canvas was named rightly per level and pooled, and the loss of the shapes."""
    maps = trunk(batch.images)
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    losses, rights, foreign = [], {}, []
    for level, (features, stride) in enumerate(zip(maps, trunk.strides, strict=True)):
        share = functional.avg_pool2d(batch.cover, stride).flatten(1)
        count = min(recipe.places, share.shape[1])
        places = torch.rand(share.shape, generator=generator).topk(count, dim=1).indices.to(share.device)
        cells = features.flatten(2).transpose(1, 2)
        logits = trunk.logits(level, cells.gather(1, places[..., None].expand(-1, -1, cells.shape[2])).flatten(0, 1))
        first, second = (label.repeat_interleave(count) for label in (batch.first, batch.second))
        loss, rights[f"right_stride{stride}"] = _blend(logits, first, second, share.gather(1, places).flatten())
        losses.append(loss)
        hidden = functional.avg_pool2d((batch.cover > 0).float(), stride)
        foreign.append(functional.binary_cross_entropy_with_logits(trunk.foreign[level](features), hidden))
    logits = trunk.logits(len(maps) - 1, maps[-1].mean(dim=(2, 3)))
    whole, rights["right_pooled"] = _blend(logits, batch.first, batch.second, batch.cover.mean(dim=(1, 2, 3)))
    found = recipe.dense * torch.stack(losses).mean() + (1 - recipe.dense) * whole
    rights["foreign"] = torch.stack(foreign).mean().detach()
    return found + recipe.foreign * torch.stack(foreign).mean(), rights


def _blend(logits: Tensor, first: Tensor, second: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy to two labels by their shares, and how often the larger one is on top."""
    log = functional.log_softmax(logits.float(), dim=1)
    a = log.gather(1, first[:, None]).squeeze(1)
    b = log.gather(1, second[:, None]).squeeze(1)
    right = (logits.argmax(dim=1) == torch.where(share > 0.5, second, first)).float().mean()
    return -((1 - share) * a + share * b).mean(), right.detach()


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
        # Not strict: an earlier training may have had no loss of foreign shapes.
        earlier = torch.load(start, map_location=device, weights_only=True)["learner"]
        lost = trunk.load_state_dict(earlier, strict=False)
        if lost.unexpected_keys or any(not key.startswith("foreign.") for key in lost.missing_keys):
            raise SystemExit(f"{start}: not a checkpoint of this model: {lost}")

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_of(trunk, draw_batch(pictures, recipe, step).to(device), recipe, step)

    run(trunk, loss, recipe, folder, every=every, probe=(lambda: probe(trunk.network)) if probe else None, stop=stop)
    return trunk
