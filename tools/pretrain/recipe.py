"""What a pretraining is: every choice that the weights depend on, in one frozen place."""

from __future__ import annotations

import dataclasses

__all__ = ["Distillation", "Recipe", "Training"]


@dataclasses.dataclass(frozen=True)
class Training:
    """Choices of any training here: its network, its crops and its optimiser.

    Attributes
    ----------
    model : str
        timm architecture.
    canvases, canvas : int
        Number of pictures, and their height and width in px.
    crop, batch, steps : int
        Height and width of a training crop in px, crops per step, steps.
    spread : float
        Weight of a second loss: how little of the space the directions of the features fill (`pretext.crowding`).
    jitter : float
        Strength of the change of contrast, brightness and colour, 0 to 1. Never a blur: fine detail must count.
    faintest : float
        Least factor of that change of contrast.
    light : float
        Strength of the uneven light.
    rate, decay : float
        Peak learning rate of AdamW (one cycle) and its weight decay.
    seed : int
    stem : str
        First filters before the training: by formula (``bank`` or ``cosines`` of `pretrain.stem`), or ``random``.
    start : str
        Digest of the file that the first weights come from; empty for random ones.
    """

    model: str
    canvases: int = 3000
    canvas: int = 256
    crop: int = 48
    batch: int = 32
    steps: int = 100
    spread: float = 0.1
    jitter: float = 0.5
    faintest: float = 0.3
    light: float = 0.6
    rate: float = 1.5e-3
    decay: float = 0.05
    seed: int = 0
    stem: str = "random"
    start: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe(Training):
    """Choices of the trunk's task: to say from which canvas a piece is. Canvases are its classes.

    Attributes
    ----------
    levels : tuple of int
        ``out_indices`` of the feature maps; each is supervised by a classifier of its own.
    dense : float
        Share of the loss that single positions of the maps carry; the rest is the pooled deepest map's.
    places : int
        Positions drawn per crop and level for the dense loss.
    scale : float
        Of the cosines that the classifiers' logits are.
    """

    model: str = "resnet18"
    batch: int = 192
    steps: int = 120
    spread: float = 0.3
    stem: str = "bank"
    levels: tuple[int, ...] = (1, 2, 3)
    dense: float = 0.8
    places: int = 8
    scale: float = 16.0


@dataclasses.dataclass(frozen=True)
class Distillation(Training):
    """Choices of the transformer's training: to say in one token what the trunk says in many places.

    Attributes
    ----------
    depth : int
        Its blocks.
    """

    model: str = "vit_tiny_patch16_224"
    crop: int = 96
    steps: int = 700
    stem: str = "cosines"
    depth: int = 6
