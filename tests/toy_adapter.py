"""A method small enough for every test: learns a mean colour by gradient descent, scores the distance to it."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights


class Toy(Method):
    """Distance of each 2 x 2 block to the mean colour of normal images."""

    title = "Toy"
    paper = "none"
    multiple = 2
    presets: ClassVar = {
        "native": Preset("tiled:32:8"),
        "demo": Preset("whole:32", {"steps": 3}),
    }

    def __init__(self, steps: int = 20, noise: float = 0.0, decide: bool = False, weights: Weights = "random") -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.rand(3))
        self.steps, self.noise, self.decide = steps, noise, decide

    def fit(self, normals: Normals, context: FitContext) -> None:
        optimizer = torch.optim.Adam([self.colour], lr=0.05)

        def loss(batch: Tensor) -> Tensor:
            noise = self.noise * torch.randn_like(batch)
            return (batch + noise - self.colour[:, None, None]).square().mean()

        for stage in ("first", "second"):
            context.train(normals, loss, optimizer, steps=self.steps // 2 or 1, batch_size=4, description=stage)

    def predict(self, batch: Tensor) -> Prediction:
        distance = (batch - self.colour[:, None, None]).square().sum(dim=1)
        maps = nn.functional.avg_pool2d(distance[:, None], 2)[:, 0]
        return Prediction({"distance": maps}, maps > 0.2 if self.decide else None)
