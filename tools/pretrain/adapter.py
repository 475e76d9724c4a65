"""The least method that uses a backbone, as an adapter: one Gaussian over all positions, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hrbench.backbones import level_indices, load_pyramid
from hrbench.method import FitContext, Method, Normals, Prediction, Preset

from .probe import gaussian, joined, mahalanobis

__all__ = ["Gaussian"]


class Gaussian(Method):
    """Mahalanobis distance to all features of normal images, wherever in the image they were.

    Parameters
    ----------
    backbone, weights : str
        See :func:`hrbench.backbones.load_pyramid`.
    strides : sequence of int
        Of the feature maps used; coarser ones are brought to the size of the finest.
    samples : int
        Positions drawn from the training images.
    """

    title = "Gaussian"
    paper = "none: a probe of the features"
    image_score = "max"
    presets: ClassVar[Mapping[str, Preset]] = {"probe": Preset("tiled:256:64")}

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str = "bundled",
        strides: Sequence[int] = (4, 8),
        samples: int = 200_000,
    ) -> None:
        super().__init__()
        self.backbone = load_pyramid(backbone, weights, level_indices(backbone, strides))
        self.multiple = max(strides)
        self._samples = samples
        width = sum(self.backbone.channels)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whiten", torch.eye(width))

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Measure mean and covariance."""
        generator = torch.Generator().manual_seed(context.seed)
        each, rows = max(1, self._samples // len(normals)), []
        for image in context.track(normals, total=len(normals)):
            found = joined(self.backbone(image[None].to(context.device)))[0].flatten(1).T.cpu()
            rows.append(found[torch.randperm(len(found), generator=generator)[:each]])
        mean, whiten = gaussian(torch.cat(rows))
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("whiten").copy_(whiten)

    def predict(self, batch: Tensor) -> Prediction:
        """Return the squared distance per channel at the finest stride."""
        features = joined(self.backbone(batch))
        return Prediction({"anomaly": mahalanobis(features, self.get_buffer("mean"), self.get_buffer("whiten"))})
