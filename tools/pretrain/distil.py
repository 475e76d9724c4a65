"""A small vision transformer that learns to say in one token what the convolutional trunk says of its patch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hrbench.backbones import FeaturePyramid

from .loop import run
from .pretext import crowding, draw_batch, normalised
from .recipe import Distillation
from .stem import cosines

__all__ = ["Student", "distil", "targets"]


def targets(maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the middle and the last block must say of every 16 px cell, each (B, N, C).

    Parameters
    ----------
    maps : list of Tensor
        The trunk's at strides 4, 8, 16. Only directions count: lengths follow the contrast and have heavy tails. Of
        stride 8 all four positions of a cell count, of stride 4 their mean and their spread: where in the cell
        something is must not be lost.
    """
    fine, middle, coarse = (functional.normalize(level, dim=1) for level in maps)
    mean = functional.avg_pool2d(fine, 4)
    spread = (functional.avg_pool2d(fine.square(), 4) - mean.square()).clamp(min=1e-8).sqrt()
    early = torch.cat([mean, spread, functional.pixel_unshuffle(middle, 2)], dim=1)
    late = torch.cat([functional.pixel_unshuffle(middle, 2), coarse], dim=1)
    return early.flatten(2).transpose(1, 2), late.flatten(2).transpose(1, 2)


class Student(nn.Module):
    """The transformer, with a linear reading of two of its blocks."""

    def __init__(self, recipe: Distillation, widths: tuple[int, int]) -> None:
        super().__init__()
        network: Any = timm.create_model(recipe.model, num_classes=0, dynamic_img_size=True, depth=recipe.depth)
        if recipe.stem == "cosines":
            first: nn.Conv2d = network.patch_embed.proj
            first.weight.data.copy_(cosines(first.out_channels, first.kernel_size[0]))
        self.network = network
        self.blocks = (2 * recipe.depth // 3 - 1, recipe.depth - 1)
        self.read = nn.ModuleList(nn.Linear(network.embed_dim, width) for width in widths)

    def forward(self, images: Tensor, corner: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
        """Return both blocks' tokens (B, N, width) and what is read from them (B, N, C).

        `corner` is the image's place in the full field of position embeddings, in patches: small crops thus train
        all of them.
        """
        net = self.network
        x = net.patch_embed(normalised(images))
        height, width = x.shape[1:3]
        prefix, table = net.pos_embed[:, : net.num_prefix_tokens], net.pos_embed[:, net.num_prefix_tokens :]
        table = table.unflatten(1, net.patch_embed.grid_size)
        table = table[:, corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        x = torch.cat([(net.cls_token + prefix).expand(len(x), -1, -1), (x + table).flatten(1, 2)], dim=1)
        tokens, read = [], []
        for index, block in enumerate(net.blocks):
            x = block(x)
            if index in self.blocks:
                tokens.append(net.norm(x)[:, net.num_prefix_tokens :])
                read.append(self.read[len(read)](tokens[-1]))
        return tokens, read


def distil(
    pictures: NDArray[np.uint8],
    teacher: FeaturePyramid,
    recipe: Distillation,
    folder: Path,
    *,
    device: torch.device,
    every: int = 500,
    probe: Callable[[nn.Module], dict[str, float]] | None = None,
    stop: int | None = None,
    start: Path | None = None,
) -> Student:
    """Train a student of `teacher` on pictures (N, H, W, 3), or go on where ``folder/checkpoint.pt`` ends.

    `start` is the file of an earlier student, whose weights are the first ones.
    """
    torch.manual_seed(recipe.seed)
    teacher = teacher.to(device)

    def batch(step: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        images = draw_batch(pictures, recipe, step)[0].to(device)
        return images, targets(teacher(images))

    # Every channel counts alike: moments of the first batches, which no step sees again.
    examples = [batch(recipe.steps + number)[1] for number in range(8)]
    moments = [(t.mean(dim=(0, 1)), t.std(dim=(0, 1)) + 1e-4) for t in map(torch.cat, zip(*examples, strict=True))]
    widths = (len(moments[0][0]), len(moments[1][0]))
    student = Student(recipe, widths).to(device)
    if start is not None:
        student.network.load_state_dict(safetensors.torch.load_file(start))
    grid = student.network.patch_embed.grid_size[0] - recipe.crop // student.network.patch_embed.patch_size[0]

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, wanted = batch(step)
        at = np.random.Generator(np.random.Philox(np.random.SeedSequence([recipe.seed, 2, step]))).integers(
            0, grid + 1, 2
        )
        tokens, read = student(images, (int(at[0]), int(at[1])))
        errors = [
            functional.mse_loss(f, (w - mean) / std) for f, w, (mean, std) in zip(read, wanted, moments, strict=True)
        ]
        # About the origin: else tokens that are all but equal would count as well spread.
        units = [functional.normalize(x.flatten(0, 1), dim=1) for x in tokens]
        crowded = torch.stack([crowding(u, centred=False) for u in units]).mean()
        return torch.stack(errors).mean() + recipe.spread * crowded, {
            "crowding": crowded.detach(),
            "unexplained_middle": errors[0].detach(),
            "unexplained_last": errors[1].detach(),
        }

    run(
        student, loss, recipe, folder, every=every, probe=(lambda: probe(student.network)) if probe else None, stop=stop
    )
    return student
