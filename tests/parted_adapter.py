"""A method of two maps at two strides, which it combines on the image's own grid by what it has learnt."""

from typing import ClassVar

import torch
from torch import Tensor

from hrbench.method import FitContext, Method, Normals, Prediction, Preset


class Parted(Method):
    """Distance to the mean colour, fine times coarse."""

    title = "Parted"
    finish_padded = True
    multiple = 8
    presets: ClassVar = {"native": Preset("tiled:16:4")}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("colour", torch.zeros(3))

    def fit(self, normals: Normals, context: FitContext) -> None:
        self.colour = torch.stack(list(normals)).mean(dim=(0, 2, 3))

    def predict(self, batch: Tensor) -> Prediction:
        seen = torch.nn.functional.avg_pool2d(batch, 2)
        fine = (seen - self.colour[:, None, None]).abs().sum(dim=1)
        coarse = torch.nn.functional.avg_pool2d(fine[:, None], 4)[:, 0]
        return Prediction({"fine": fine, "coarse": coarse}, fine > 1)

    def finish(self, maps: dict[str, Tensor]) -> Tensor:
        return maps["fine"] * maps["coarse"] * self.colour.sum() / (1 + maps["fine"].mean())
