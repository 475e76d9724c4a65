"""The least methods that use a backbone, as adapters: no training, only what normal features look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from hrbench.backbones import level_indices, load_pyramid
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights

from .probe import gaussian, joined, mahalanobis, nearest

__all__ = ["Gaussian", "Nearest"]


class _Probe(Method):
    """Features of random positions of normal images, wherever in the image they were.

    Parameters
    ----------
    backbone, weights : str
        See :func:`hrbench.backbones.extractors.load_pyramid`.
    strides : sequence of int
        Of the feature maps used; coarser ones are brought to the size of the finest.
    """

    paper = "none: a probe of the features"
    image_score = "max"
    presets: ClassVar[Mapping[str, Preset]] = {"probe": Preset("tiled:256:64")}

    def __init__(
        self, backbone: str = "resnet18", weights: Weights = "bundled", strides: Sequence[int] = (4, 8)
    ) -> None:
        super().__init__()
        self.backbone = load_pyramid(backbone, weights, level_indices(backbone, strides))
        self.multiple = max(strides)

    def features(self, batch: Tensor) -> Tensor:
        """Return the (B, C, h, w) features at the finest stride of (B, 3, H, W) images."""
        return joined(self.backbone(batch))

    def draw(self, normals: Normals, context: FitContext, samples: int) -> Tensor:
        """Return (N, C) features of about `samples` positions, as many of each image."""
        generator = torch.Generator().manual_seed(context.seed)
        each, rows = max(1, samples // len(normals)), []
        for image in context.track(normals, total=len(normals)):
            found = self.features(image[None].to(context.device))[0].flatten(1).T.cpu()
            rows.append(found[torch.randperm(len(found), generator=generator)[:each]])
        return torch.cat(rows)


class Gaussian(_Probe):
    """Mahalanobis distance to the features of normal images.

    Parameters
    ----------
    backbone, weights, strides :
        As of `_Probe`.
    samples : int
        Positions drawn from the training images.
    """

    title = "Gaussian"

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: Weights = "bundled",
        strides: Sequence[int] = (4, 8),
        samples: int = 200_000,
    ) -> None:
        super().__init__(backbone, weights, strides)
        self._samples = samples
        width = sum(self.backbone.channels)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whiten", torch.eye(width))

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Measure mean and covariance."""
        mean, whiten = gaussian(self.draw(normals, context, self._samples))
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("whiten").copy_(whiten)

    def predict(self, batch: Tensor) -> Prediction:
        """Return the squared distance per channel at the finest stride."""
        features = self.features(batch)
        return Prediction({"anomaly": mahalanobis(features, self.get_buffer("mean"), self.get_buffer("whiten"))})


class Nearest(_Probe):
    """Distance to the nearest of some features of normal images, each map's direction alone.

    Of every position and map only the direction counts (unit length), as of networks whose lengths differ; the mean
    over 3 x 3 positions, as in PatchCore (Roth et al., CVPR 2022, arXiv 2106.08265), but a random memory for its greedy
    coreset.

    Parameters
    ----------
    backbone, weights, strides :
        As of `_Probe`.
    samples : int
        Features in memory.
    """

    title = "Nearest neighbour"

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: Weights = "bundled",
        strides: Sequence[int] = (4, 8),
        samples: int = 1000,
    ) -> None:
        super().__init__(backbone, weights, strides)
        self._samples = samples
        self.register_buffer("memory", torch.zeros(samples, sum(self.backbone.channels)))

    def features(self, batch: Tensor) -> Tensor:
        """Return directions, averaged over neighbours."""
        units = [functional.normalize(level, dim=1) for level in self.backbone(batch)]
        return joined([functional.avg_pool2d(u, 3, 1, 1, count_include_pad=False) for u in units])

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Fill the memory."""
        # A few more than needed of every image: what is left over is dropped at random.
        rows = self.draw(normals, context, self._samples + len(normals))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(context.seed))
        # Fewer positions than places: some are there twice, which changes no distance.
        self.get_buffer("memory").copy_(rows[order.repeat(-(-self._samples // len(rows)))[: self._samples]])

    def predict(self, batch: Tensor) -> Prediction:
        """Return the distance at the finest stride."""
        return Prediction({"anomaly": nearest(self.features(batch), self.get_buffer("memory"))})
