"""L2BT: two students translate between two layers of a frozen vision transformer.

Costanzino et al., "Looking for Tiny Defects via Forward-Backward Feature Transfer", arXiv 2407.04092;
IEEE Access 13, 109624-109637 (2025), doi 10.1109/ACCESS.2025.3582900. Per patch token, a forward student
predicts the last layer's feature from a middle layer's, a backward student the reverse. On normal images both
succeed; the product of their errors is the anomaly map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.backbones import load_tokens, token_depth
from hrbench.errors import HrbenchError
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights

from ._schedule import Budget, fused

__all__ = ["L2BT"]

Padding = Literal["reflect", "zero"]

_BLUR = (5, 5, 5, 5, 5, 7, 7, 7)  # box widths in native pixels: variance 22 per axis, sigma 4.69
_REACH = sum(width // 2 for width in _BLUR)  # rows and columns around a pixel that it takes in
_STRIP = 1 << 20  # pixels that are blurred at a time, or more where rows are long


class L2BT(Method):
    """L2BT with any timm vision transformer as teacher.

    Parameters
    ----------
    teacher : str
        A timm ViT; the paper's is DINOv2 ViT-B/14 with registers.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see :mod:`hrbench.backbones`).
    blocks : sequence of two int, optional
        Zero-based blocks j < k between which the students translate; by default the one at two thirds of the
        depth and the last: 7 and 11 of 12.
    lr : float
        Of Adam; constant.
    batch_size : int
        Inputs per training step.
    steps : int, optional
        Training steps.
    epochs : int, optional
        Passes over the training inputs, instead of `steps`.
    blur_padding : str
        Of the final blur: ``reflect``, or ``zero`` as in the paper, which darkens the map's borders (to 0.28
        at an edge, 0.08 at a corner). Where the view pads images to a square, these are the square's borders.
    """

    title = "L2BT"
    paper = "Costanzino et al., arXiv 2407.04092"
    weights_licence = "bundled: Apache-2.0; DINOv2 (default teacher): Apache-2.0; others: see timm"
    image_score = "top:0.001"
    finish_padded = True  # the blur takes in what lies under the padding, and is cropped after it
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:1036:square", {"steps": None, "epochs": 50, "blur_padding": "zero"}),
        "native": Preset("tiled:518:112"),
        "demo": Preset(
            "tiled:256:64",
            {
                "teacher": "vit_tiny_patch16_224",
                "weights": "bundled",
                "lr": 1e-3,
                "steps": 60,
            },
        ),
    }

    def __init__(
        self,
        teacher: str = "vit_base_patch14_reg4_dinov2.lvd142m",
        weights: Weights = "pretrained",
        blocks: Sequence[int] | None = None,
        lr: float = 1e-4,
        batch_size: int = 4,
        steps: int | None = 10000,
        epochs: int | None = None,
        blur_padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        self._budget = Budget("l2bt", batch_size, steps, epochs)
        if blocks is None:
            depth = token_depth(teacher, weights)
            blocks = (2 * depth // 3 - 1, depth - 1)
        if len(blocks) != 2:
            raise HrbenchError(f"blocks {list(blocks)} of l2bt: expected two")
        self.teacher = load_tokens(teacher, weights, blocks, norm=True)
        self.multiple = self.teacher.patch
        self.forward_student = student(self.teacher.width)
        self.backward_student = student(self.teacher.width)
        self._lr, self._batch_size = lr, batch_size
        self._blur_padding = blur_padding

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Train both students on the tokens of normal images (Adam, constant learning rate)."""
        optimizer = torch.optim.Adam(
            [p for p in self.parameters() if p.requires_grad], lr=self._lr, fused=fused(context.device)
        )
        steps = self._budget.of(len(normals), incomplete=True)
        tokens = context.features(normals, self.teacher)
        context.train(tokens, self.loss, optimizer, steps=steps, batch_size=self._batch_size)

    def translate(self, tokens: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return (predicted, actual) (B, N, C) float32 features of the middle and of the last block.

        `tokens` are the teacher's, (B, N, C) of both blocks.
        """
        middle, last = tokens
        pairs = ((self.backward_student(last), middle), (self.forward_student(middle), last))
        return [(predicted.float(), actual.float()) for predicted, actual in pairs]

    def loss(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return the sum over both directions of 1 - mean cosine: about 2 for fresh students, 0 at best.

        `tokens` are the teacher's, (B, N, C) of both blocks.
        """
        cosines = [functional.cosine_similarity(p, a, dim=-1, eps=1e-6).mean() for p, a in self.translate(tokens)]
        return torch.stack([1 - c for c in cosines]).sum()

    def predict(self, batch: Tensor) -> Prediction:
        """Return the product of both directions' distances per patch, in [0, 4]."""
        backward, forward = (distance(predicted, actual) for predicted, actual in self.translate(self.teacher(batch)))
        return Prediction({"anomaly": (backward * forward).reshape(len(batch), *self.teacher.grid(batch))})

    def finish(self, maps: dict[str, Tensor]) -> Tensor:
        """Blur the merged map, of the square where the view pads to one, in native pixels."""
        return blur(maps["anomaly"], padding=self._blur_padding)


def student(width: int) -> nn.Sequential:
    """Return the per-token network: three linear layers of one width, GELU between."""
    return nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
    )


def distance(predicted: Tensor, actual: Tensor) -> Tensor:
    """Return the distance of the directions of (..., C) vectors, sqrt(2 - 2 cos), in [0, 2].

    Taken as the norm of the difference: near cos = 1 the root of 2 - 2 cos is mostly rounding error.
    """
    difference = functional.normalize(predicted, dim=-1) - functional.normalize(actual, dim=-1)
    length: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return length


def blur(map_: Tensor, *, padding: Padding = "reflect") -> Tensor:
    """Blur an (H, W) map: five passes of a 5x5 box, then three of a 7x7 box.

    Strips of rows are blurred one after another, with the rows around them that they depend on: beside the map and the
    result no memory of their size is taken, and no bit depends on the strips.

    Parameters
    ----------
    map_ : Tensor
        (H, W) float32 on the image's own grid.
    padding : str
        ``reflect`` keeps a constant map constant; ``zero`` is the paper's.
    """
    height, width = map_.shape
    if torch.compiler.is_compiling():  # a graph for maps of any size has no loop over their rows
        return _blurred_rows(map_, (True, True), padding)
    rows = max(_STRIP // width, 8 * _REACH)
    if rows >= height:
        return _blurred_rows(map_, (True, True), padding)
    blurred = torch.empty_like(map_)
    for first in range(0, height, rows):
        start, stop = max(0, first - _REACH), min(height, first + rows + _REACH)
        found = _blurred_rows(map_[start:stop], (start == 0, stop == height), padding)
        strip = blurred[first : first + rows]
        strip.copy_(found[first if start == 0 else 0 :][: len(strip)])
    return blurred


def _blurred_rows(rows: Tensor, at_border: tuple[bool, bool], padding: Padding) -> Tensor:
    """Blur (h, W) rows of a map; where the first or last is not at its border, what reaches beyond them is left out."""
    x: Tensor = rows[None, None]
    for width in _BLUR:
        # One axis at a time: the same box, a third of the additions.
        half = width // 2
        above, below = (half * here for here in at_border)
        for axis, kernel, margin in ((2, (width, 1), (0, 0, above, below)), (3, (1, width), (half, half, 0, 0))):
            # A map thinner than the margin cannot be reflected; its border value is the next best.
            mode = "constant" if padding == "zero" else "reflect" if x.shape[axis] > half else "replicate"
            x = functional.avg_pool2d(functional.pad(x, margin, mode=mode), kernel, stride=1)
    return x[0, 0]
