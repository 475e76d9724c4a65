"""RSTPM with a discriminator: two student-teacher pairs whose summed maps a U-Net judges again.

Yamada, Kamiya, Hotta, "Reconstructed Student-Teacher and Discriminative Networks for Anomaly Detection",
arXiv 2210.07548 (IROS 2022); without the discriminator arXiv 2111.15376. The first student imitates its teacher
(STPM, arXiv 2103.04257). The second does not see the image: from the first teacher's deepest features it
reconstructs the features of a second teacher, which tells it by one attention plane per level where to look. What
both pairs miss or invent, a discriminator learns to correct from pseudo-anomalies.

There is no official code, and the paper's figures leave much open; the page beside this file says what is ours. What
the plain pair is trained with is that of STPM's code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.backbones import level_indices, load_pyramid
from hrbench.errors import HrbenchError
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights
from hrbench.precision import full_precision

from ._pseudo_anomalies import Generator, corrupt
from ._schedule import fused

__all__ = ["RSTPM"]

Combination = Literal["prod", "geomean", "sum"]

_FLOOR = 1e-3  # of the discriminator's gate: what it does not see keeps its rank among the unseen
_LOGIT = "logit"


class RSTPM(Method):
    """RSTPM with a discriminator on any two timm pyramids.

    Parameters
    ----------
    teacher, second_teacher : str
        timm models with ``features_only``: of the plain pair, whose deepest level feeds the reconstruction; and
        of the reconstructing pair. Better two different ones, so that the pairs fail at different places.
    weights : str
        Of `teacher`: ``pretrained``, ``bundled``, ``random`` or a path (see :mod:`hrbench.backbones`).
    second_weights : str, optional
        Of `second_teacher`; by default as `weights`, unless that is a path.
    strides : sequence of int
        Of the compared features in input pixels, finest first, each twice the one before. The first teacher also
        needs the next one.
    combine : str
        How the summed maps of the levels become one: ``prod`` (the paper's), ``geomean`` or ``sum``.
    discriminator : str
        Its probability multiplies that map (``mul``), its logit replaces it (``only``), or there is none (``off``).
    anomalies : str
        Generator of the pseudo-anomalies that the discriminator learns from: ``perlin``, ``polygon``, ``patches``,
        ``tiny``, ``sized`` or ``mixture``.
    probability : float
        That a training input of the discriminator is corrupted.
    width : int
        Channels of the discriminator at its finest level.
    gamma : float
        Of the focal loss.
    l1 : float
        Weight of an additional mean absolute error of the discriminator's probability.
    loss_factor : float
        Of the squared distances in the students' loss: 1/2 in STPM's paper, 1 in its code.
    lr, momentum, weight_decay : float
        Of the students' SGD.
    batch_size : int
        Inputs per step of the students.
    steps : int
        Least number of the students' steps.
    epochs : int
        Least number of passes over the training inputs by the students, an incomplete last batch counted as a step.
    discriminator_lr : float
        Of the discriminator's Adam.
    discriminator_batch_size, discriminator_steps : int
        Inputs per step of the discriminator, and its steps.
    """

    title = "RSTPM+D"
    paper = "Yamada et al., arXiv 2210.07548"
    weights_licence = "bundled: Apache-2.0; resnet18, resnet50 (tv_in1k): BSD-3-Clause; others: see timm"
    image_score = "max"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            "whole:256:bilinear",
            {"anomalies": "perlin", "probability": 0.5, "loss_factor": 1.0, "epochs": 100, "steps": 3000},
        ),
        "native": Preset("tiled:512:128", {"batch_size": 16, "discriminator_batch_size": 8}),
        "demo": Preset(
            "tiled:256:64",
            {
                "teacher": "resnet18",
                "second_teacher": "resnet18",
                "weights": "bundled",
                "strides": (4,),
                "anomalies": "tiny",
                "width": 4,
                "batch_size": 2,
                "steps": 50,
                "discriminator_lr": 3e-3,
                "discriminator_batch_size": 1,
                "discriminator_steps": 50,
            },
        ),
    }

    def __init__(
        self,
        teacher: str = "resnet18.tv_in1k",
        weights: Weights = "pretrained",
        second_teacher: str = "resnet50.tv_in1k",
        second_weights: Weights | None = None,
        strides: Sequence[int] = (4, 8, 16),
        combine: Combination = "prod",
        discriminator: Literal["mul", "only", "off"] = "mul",
        anomalies: Generator = "mixture",
        probability: float = 2 / 3,
        width: int = 32,
        gamma: float = 2.0,
        l1: float = 0.0,
        loss_factor: float = 0.5,
        lr: float = 0.4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        batch_size: int = 32,
        steps: int = 5000,
        epochs: int = 0,
        discriminator_lr: float = 1e-4,
        discriminator_batch_size: int = 8,
        discriminator_steps: int = 5000,
    ) -> None:
        super().__init__()
        if not strides or any(b != 2 * a for a, b in pairwise(strides)):
            raise HrbenchError(f"strides {list(strides)} of rstpm: expected each twice the one before, as 4, 8, 16")
        if not 0 < probability <= 1:
            raise HrbenchError(f"probability of rstpm is {probability}, expected above 0 and at most 1")
        if second_weights is None:
            if weights not in ("pretrained", "bundled", "random"):
                raise HrbenchError(
                    f"weights {weights!r} of rstpm are a file for {teacher}: expected second_weights for "
                    f"{second_teacher} as well, a file, 'pretrained', 'bundled' or 'random'"
                )
            second_weights = weights

        indices = level_indices(teacher, (*strides, 2 * strides[-1]))
        self.teacher = load_pyramid(teacher, weights, indices)
        self.second_teacher = load_pyramid(second_teacher, second_weights, level_indices(second_teacher, strides))
        self.student = Imitation(teacher, indices[:-1])
        self.second_student = Reconstruction(self.teacher.channels[-1], self.second_teacher.channels)
        self.discriminator = UNet(len(strides), width) if discriminator != "off" else None
        self.multiple = 2 * strides[-1]

        self._combine, self._mode = combine, discriminator
        self._anomalies, self._probability, self._gamma, self._l1 = anomalies, probability, gamma, l1
        self._loss_factor = loss_factor
        self._lr, self._momentum, self._weight_decay = lr, momentum, weight_decay
        self._batch_size, self._steps, self._epochs = batch_size, steps, epochs
        self._discriminator_lr, self._discriminator_steps = discriminator_lr, discriminator_steps
        self._discriminator_batch_size = discriminator_batch_size

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Train both students on normal images, then the discriminator on pseudo-anomalies."""
        self.fit_students(normals, context)
        if self.discriminator is not None:
            self.fit_discriminator(normals, context)

    def fit_students(self, normals: Normals, context: FitContext) -> None:
        """Train both students on normal images (SGD, constant learning rate)."""
        students = [*self.student.parameters(), *self.second_student.parameters()]
        optimizer = torch.optim.SGD(
            students, self._lr, self._momentum, weight_decay=self._weight_decay, fused=fused(context.device)
        )
        steps = max(self._steps, self._epochs * math.ceil(len(normals) / max(1, self._batch_size)))
        context.train(
            normals, self.student_loss, optimizer, steps=steps, batch_size=self._batch_size, description="students"
        )

    def fit_discriminator(self, normals: Normals, context: FitContext) -> None:
        """Train the discriminator on pseudo-anomalies (Adam, constant learning rate); the students stay as they are."""
        assert self.discriminator is not None
        # Their maps must be those of test time: statistics of a batch with anomalies would be others.
        self.student.eval()
        self.second_student.eval()
        context.train(
            normals,
            self.discriminator_loss,
            torch.optim.Adam(self.discriminator.parameters(), self._discriminator_lr, fused=fused(context.device)),
            steps=self._discriminator_steps,
            batch_size=self._discriminator_batch_size,
            description="discriminator",
        )

    def distances(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return both pairs' (B, h, w) maps per level, finest first, of a (B, 3, H, W) batch."""
        *levels, deepest = self.teacher(batch)
        imitated = self.student((batch - self.teacher.mean) / self.teacher.std)
        first = [distance(t, s) for t, s in zip(levels, imitated, strict=True)]
        second_levels = self.second_teacher(batch)
        rebuilt = self.second_student(deepest, second_levels)
        return first, [distance(t, s) for t, s in zip(second_levels, rebuilt, strict=True)]

    def summed_maps(self, batch: Tensor) -> Tensor:
        """Return the sum of both pairs' maps per level, (B, levels, H, W) in [0, 4], at the input's size."""
        size = batch.shape[-2:]
        sums = [(a + b)[:, None] for a, b in zip(*self.distances(batch), strict=True)]
        return torch.cat([functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in sums], dim=1)

    def student_loss(self, batch: Tensor) -> Tensor:
        """Return the sum over pairs and levels of the mean squared distance, times its factor."""
        first, second = self.distances(batch)
        return 2 * self._loss_factor * torch.stack([m.mean() for m in (*first, *second)]).sum()

    def discriminator_loss(self, batch: Tensor) -> Tensor:
        """Draw pseudo-anomalies into the batch and return the focal loss of finding them."""
        assert self.discriminator is not None
        rng = np.random.default_rng(int(torch.randint(2**62, ())))  # the fit loop seeds torch at every step
        corrupted = corrupt(batch, rng, generator=self._anomalies, probability=self._probability)
        with torch.no_grad():
            maps = self.summed_maps(corrupted.images)
        logits = self.discriminator(maps)
        labels = corrupted.labels.float()
        loss = focal_loss(logits, labels, self._gamma)
        return loss + self._l1 * (logits.sigmoid() - labels).abs().mean() if self._l1 else loss

    def predict(self, batch: Tensor) -> Prediction:
        """Return the summed map of each level, and the discriminator's logit: what `finish` needs of them."""
        maps = self.summed_maps(batch)
        named = {f"level{index}": level for index, level in enumerate(maps.unbind(dim=1), 1)}
        if self.discriminator is None:
            return Prediction(named)
        logit = {_LOGIT: self.discriminator(maps)}
        return Prediction(logit if self._mode == "only" else {**named, **logit})

    def finish(self, maps: dict[str, Tensor]) -> Tensor:
        """Combine the levels and gate them by the discriminator's probability, after tiles are merged."""
        if self._mode == "only":
            return maps[_LOGIT]  # ranks as its probability does, but never saturates
        fused = combine_levels([level for name, level in maps.items() if name != _LOGIT], self._combine)
        return gate(fused, maps[_LOGIT]) if self._mode == "mul" else fused


class Imitation(nn.Module):
    """The plain student: the teacher's architecture up to the levels compared, from random weights.

    Some families (EfficientNet's) timm builds beyond them; those layers get no gradient and stay random.

    Parameters
    ----------
    model : str
        timm model of the teacher.
    indices : sequence of int
        Its levels.
    """

    def __init__(self, model: str, indices: Sequence[int]) -> None:
        super().__init__()
        self.network = load_pyramid(model, "random", indices).network.requires_grad_(True)
        self._channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the (B, C, h, w) features per level of normalised (B, 3, H, W) images."""
        maps: list[Tensor] = list(self.network(images))
        return [m.permute(0, 3, 1, 2) for m in maps] if self._channels_last else maps


class Reconstruction(nn.Module):
    """The reconstruction student: a decoder from the first teacher's deepest level to the second teacher's levels.

    Parameters
    ----------
    deepest : int
        Channels of its input.
    targets : sequence of int
        Channels of the features to reconstruct, finest first.
    """

    def __init__(self, deepest: int, targets: Sequence[int]) -> None:
        super().__init__()
        widths = [max(8, deepest >> level) for level in range(len(targets))]
        inputs = [deepest, *widths[:-1]]
        self.stages = nn.ModuleList(Stage(*sizes) for sizes in zip(inputs, widths, reversed(targets), strict=True))

    def forward(self, deepest: Tensor, targets: Sequence[Tensor]) -> list[Tensor]:
        """Return the reconstruction of `targets`, finest first; they only say where to look."""
        found, x = [], deepest
        for stage, target in zip(self.stages, reversed(targets), strict=True):
            x, rebuilt = stage(x, target)
            found.append(rebuilt)
        return found[::-1]


class Stage(nn.Module):
    """One level of the reconstruction: upsample, two residual blocks, attention, mix, project.

    The attention is one plane. Multiplied into the very feature that is compared it would cancel when directions
    are compared, so a convolution mixes positions after it.

    Parameters
    ----------
    channels, width, target : int
        Channels of the input, of the stage, and of the teacher's feature.
    """

    def __init__(self, channels: int, width: int, target: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Residual(channels, width), Residual(width, width))
        hidden = max(1, target // 4)
        self.attention = nn.Sequential(*_conv(target, hidden), nn.Conv2d(hidden, 1, 1), nn.Sigmoid())
        self.mix = nn.Sequential(*_conv(width, width))
        self.project = nn.Conv2d(width, target, 1)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed features for the next stage, and the reconstruction of `target`, at its size."""
        x = functional.interpolate(x, target.shape[-2:], mode="bilinear", align_corners=False)
        mixed = self.mix(self.blocks(x) * self.attention(target))
        return mixed, self.project(mixed)


class Residual(nn.Module):
    """The basic block of ResNet without stride.

    Parameters
    ----------
    channels, width : int
        Of input and output.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(channels, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.skip: nn.Module = nn.Identity()
        if channels != width:
            self.skip = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, h, w)."""
        return functional.relu(self.body(x) + self.skip(x))


class UNet(nn.Module):
    """The discriminator: three levels down, a bottleneck, three up, with concatenated skips.

    Parameters
    ----------
    channels : int
        Maps that come in. They are of the order of 0.01 on normal images, hence the norm in front.
    width : int
        Channels of the finest level; they double with each level.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.norm = nn.BatchNorm2d(channels)
        self.down = nn.ModuleList(_double(a, b) for a, b in pairwise([channels, *widths]))
        self.up = nn.ModuleList(_double(a + b, b) for a, b in pairwise(reversed(widths)))
        self.logit = nn.Conv2d(width, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, H, W) logits of (B, channels, H, W) maps; any size of at least 8."""
        x = self.norm(maps)
        skips: list[Tensor] = []
        for block in self.down:
            if skips:
                x = functional.max_pool2d(x, 2)
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = functional.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        with full_precision(x.device):  # eight bits of mantissa would tie the scores
            logits: Tensor = self.logit(x.float()).squeeze(1)
        return logits


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Return half the squared distance of the directions of (B, C, h, w) features, (B, h, w) float32 in [0, 2].

    It is 1 - cos; the difference keeps its precision where the cosine is close to one.
    """
    difference = functional.normalize(teacher.float(), dim=1) - functional.normalize(student.float(), dim=1)
    return difference.square().sum(dim=1) / 2


def combine_levels(levels: Sequence[Tensor], how: Combination) -> Tensor:
    """Fuse maps of one size: ``prod`` (of the order of 1e-5 on normals), ``geomean`` or ``sum``."""
    stacked = torch.stack(list(levels))
    if how == "sum":
        return stacked.sum(dim=0)
    product = stacked.prod(dim=0)
    return product ** (1 / len(levels)) if how == "geomean" else product


def gate(fused: Tensor, logit: Tensor) -> Tensor:
    """Multiply a map by the probability that the discriminator gives, which never falls below 0.001."""
    return fused * logit.sigmoid().clamp(min=_FLOOR)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return the mean of (1 - p)^gamma * -ln p, p the probability given to the true class (arXiv 1708.02002).

    Parameters
    ----------
    logits, labels : Tensor
        Of one shape; labels are 0 or 1.
    gamma : float
        0 gives the cross-entropy.
    """
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (-torch.expm1(-cross_entropy)).pow(gamma).mul(cross_entropy).mean()


def _conv(channels: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()


def _double(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(*_conv(channels, width), *_conv(width, width))
