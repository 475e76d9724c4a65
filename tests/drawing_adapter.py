"""A method whose predictions are random: whether bits are equal shows whether seeds and batches are."""

from typing import ClassVar

import torch
from torch import Tensor

from hrbench.method import FitContext, Method, Normals, Prediction, Preset


class Drawing(Method):
    """The distance to the mean colour, with noise that is drawn at prediction."""

    title = "Drawing"
    paper = "none"
    image_score = "top:0.01"
    presets: ClassVar = {"native": Preset("tiled:16:4")}

    def __init__(self, strides: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        assert isinstance(strides, tuple)  # which records keep as a list
        self.register_buffer("colour", torch.zeros(3))

    def fit(self, normals: Normals, context: FitContext) -> None:
        self.colour = torch.stack([item.mean(dim=(1, 2)) for item in normals]).mean(dim=0)

    def predict(self, batch: Tensor) -> Prediction:
        distance = (batch - self.colour[:, None, None]).square().sum(dim=1)
        return Prediction({"distance": distance + 1e-3 * torch.rand_like(distance)})
