"""Gaussian: how far a feature lies from the mean of normal ones, in units of how they vary.

The idea is PaDiM's: Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
Localization", arXiv 2011.08785. There every position has a Gaussian of its own, which takes images that are aligned and
seen whole. Here one Gaussian for all positions is the default: it suits tiles, and textures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hrbench.errors import HrbenchError
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights
from hrbench.precision import full_precision

from ._image_operations import size_of
from ._patch_features import Join, Padding, PatchFeatures, at_input_size, batched

__all__ = ["Gaussian", "Moments"]

_POSITIONS = 64  # whose covariances are factorised at once, in float64

_PAPER: Mapping[str, Any] = {
    "strides": (4, 8, 16),
    "pool": 1,
    "normalise": False,
    "padding": "zeros",
    "join": "nearest",
    "reduction": "random",
    "per_position": True,
    "shrinkage": 0.0,
    "ridge": 0.01,
    "blur": 4.0,
    "input_size": 256,
}


class Gaussian(Method):
    """Mahalanobis distance to normal features of any timm backbone.

    Parameters
    ----------
    backbone : str
        A timm model: any with ``features_only``, or a vision transformer when `block` says which block.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see :mod:`hrbench.backbones`).
    strides : sequence of int
        Of the feature maps used, in input pixels; ignored for patch tokens.
    block : int, optional
        Zero-based transformer block whose patch tokens are used instead of a pyramid.
    pool : int
        Odd number of places over which features are averaged.
    normalise : bool
        Bring each map's features to unit length first.
    join : str
        How coarser maps come to the finest grid: ``bilinear`` or ``nearest``.
    padding : str
        What the network finds outside an input: ``zeros``, as it was trained, or what continues the input,
        ``replicate`` or ``reflect``. With zeros the map glows along the border of the image.
    reduction : str
        What `channels` are: ``random`` ones, or the ``pca`` directions in which normal features vary most (only where
        one Gaussian serves all positions).
    channels : int, optional
        Fewer than the features have; by default all.
    per_position : bool
        A Gaussian for every position, for aligned images that are seen whole; needs `input_size`.
    shrinkage : float
        Share of the covariance, 0 to 1, that is replaced by its mean variance in all directions.
    ridge : float
        Variance that is added in every direction.
    blur : float
        Standard deviation of a Gaussian blur of the map, in input pixels; 0 for none: it destroys tiny defects.
    input_size : int, optional
        Height and width of the input in pixels, for `per_position`.
    batch_size : int
        Inputs at a time while it is fitted; it does not change what is learnt but for rounding.
    """

    title = "Gaussian"
    paper = "after PaDiM, Defard et al., arXiv 2011.08785"
    weights_licence = "bundled: Apache-2.0; resnet18, wide_resnet50_2 (tv_in1k): BSD-3-Clause; others: see timm"
    image_score = "max"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256:bilinear", {**_PAPER, "channels": 100}),
        "paper-wrn50": Preset("whole:256:bilinear", {**_PAPER, "backbone": "wide_resnet50_2.tv_in1k", "channels": 550}),
        "native": Preset("tiled:512:128"),
        "demo": Preset("tiled:256:64", {"backbone": "resnet18", "weights": "bundled"}),
    }

    mean: Tensor
    whitening: Tensor
    chosen: Tensor

    def __init__(
        self,
        backbone: str = "resnet18.tv_in1k",
        weights: Weights = "pretrained",
        strides: Sequence[int] = (4, 8),
        block: int | None = None,
        pool: int = 3,
        normalise: bool = True,
        join: Join = "bilinear",
        padding: Padding = "replicate",
        reduction: Literal["random", "pca"] = "random",
        channels: int | None = None,
        per_position: bool = False,
        shrinkage: float = 0.001,
        ridge: float = 0.0,
        blur: float = 0.0,
        input_size: int | None = None,
        batch_size: int = 8,
    ) -> None:
        super().__init__()
        self.features = PatchFeatures(
            backbone, weights, strides, block, pool=pool, normalise=normalise, join=join, padding=padding
        )
        width = self.features.width
        kept = width if channels is None else channels
        self.multiple = self.features.multiple
        self._check(kept, width, per_position, reduction, shrinkage, ridge, blur, input_size)
        self.input_size = input_size if per_position else None
        self._reduction, self._per_position = reduction, per_position
        self._shrinkage, self._ridge, self._blur, self._batch_size = shrinkage, ridge, blur, batch_size
        # Of P positions, which are learnt: P is 1 where all share one Gaussian.
        self.register_buffer("mean", torch.zeros(1, kept))
        self.register_buffer("whitening", torch.zeros(1, kept, kept))
        self.register_buffer("chosen", torch.randperm(width)[:kept].sort().values)

    def _check(
        self,
        kept: int,
        width: int,
        per_position: bool,
        reduction: str,
        shrinkage: float,
        ridge: float,
        blur: float,
        input_size: int | None,
    ) -> None:
        def require(ok: bool, option: str, found: object, expected: str) -> None:
            if not ok:
                raise HrbenchError(f"{option} of gaussian is {found!r}, expected {expected}")

        require(1 <= kept <= width, "channels", kept, f"1 to {width}, what the features have")
        require(0 <= shrinkage <= 1, "shrinkage", shrinkage, "a share from 0 to 1")
        require(ridge >= 0, "ridge", ridge, "0 or more")
        require(blur >= 0, "blur", blur, "0 or more pixels")
        if per_position:
            require(reduction == "random", "reduction", reduction, "'random' with per_position")
            side = self.features.multiple
            fits = input_size is not None and input_size > 0 and input_size % side == 0
            require(fits, "input_size", input_size, f"a multiple of {side} with per_position")

    @torch.no_grad()
    def fit(self, normals: Normals, context: FitContext) -> None:
        """Measure mean and covariance in one pass over the normal images."""
        if self._reduction == "pca":
            self._learn(self._vectors(normals, context, torch.arange(self.features.width)), principal=len(self.chosen))
        else:
            self._learn(self._vectors(normals, context, self.chosen))

    def _vectors(self, normals: Normals, context: FitContext, channels: Tensor) -> Iterable[Tensor]:
        """Yield (P, N, C) features of batches of inputs, of P positions or of one that stands for all."""
        shown = context.track(normals, total=len(normals))
        for batch in batched(shown, self._batch_size, context.device):
            found = (
                self.features(batch).index_select(1, channels.to(context.device, non_blocking=True)).flatten(2)
            )  # (B, C, h w)
            yield found.permute(2, 0, 1) if self._per_position else found.transpose(1, 2).flatten(0, 1)[None]

    def _learn(self, vectors: Iterable[Tensor], principal: int | None = None) -> None:
        moments = Moments(torch.float32 if self._per_position else torch.float64)
        for item in vectors:
            moments.update(item)
        self.mean = moments.mean.float()
        found = [
            self._factor(moments.covariance(slice(start, start + _POSITIONS)), principal)
            for start in range(0, len(moments.mean), _POSITIONS)
        ]
        self.whitening = torch.cat(found).float().contiguous()
        if principal is not None:
            self.chosen = torch.arange(self.features.width, device=self.mean.device)

    def _factor(self, covariance: Tensor, principal: int | None) -> Tensor:
        """Return W (P, K, C) with W' W the inverse of the regularised covariances, (P, C, C) in float64."""
        width = covariance.shape[-1]
        eye = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
        mean_variance = covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None]
        regular = (1 - self._shrinkage) * covariance + (self._shrinkage * mean_variance + self._ridge) * eye
        if principal is not None:
            variances, directions = torch.linalg.eigh(regular)
            if bool((variances[:, -principal:] <= 0).any()):
                raise HrbenchError(_SINGULAR)
            scaled: Tensor = directions[..., -principal:] / variances[:, None, -principal:].sqrt()
            return scaled.transpose(1, 2)
        factor, failed = torch.linalg.cholesky_ex(regular)
        if bool(failed.any()):
            raise HrbenchError(_SINGULAR)
        whitening: Tensor = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        return whitening

    def predict(self, batch: Tensor) -> Prediction:
        """Return the distance per place of the finest stride; at the input's size where it is blurred."""
        found = self.features(batch).index_select(1, self.chosen)
        grid = found.shape[-2:]
        with full_precision(batch.device):
            centred = found.flatten(2).permute(2, 0, 1) - self.mean[:, None]  # (h w, B, C)
            if len(self.mean) == 1:
                white = centred @ self.whitening[0].T
            else:
                white = centred @ self.whitening.transpose(1, 2)
            distance = torch.linalg.vector_norm(white, dim=-1).T.reshape(len(batch), *grid)
        if self._blur:
            distance = at_input_size(distance, size_of(batch), self._blur)
        return Prediction({"distance": distance})

    def predict_inputs(self, batch: Tensor, inputs_per_image: Sequence[int]) -> Prediction:
        """Refuse tiles where every position has a Gaussian of its own: those are positions in the image."""
        if self._per_position and max(inputs_per_image) > 1:
            raise HrbenchError("per_position of gaussian: expected images seen whole, for example --view whole:256")
        return super().predict_inputs(batch, inputs_per_image)


_SINGULAR = (
    "gaussian: normal features do not vary in every direction, so that distances are not defined; expected a shrinkage "
    "or ridge above 0, or fewer channels"
)


class Moments:
    """Mean and covariance of vectors that come in batches, for P positions side by side (Chan et al. 1979).

    Parameters
    ----------
    dtype : torch.dtype
        Of the sums.
    """

    mean: Tensor
    """(P, C)."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._count = 0

    def update(self, vectors: Tensor) -> None:
        """Add N vectors at each position, (P, N, C) float32."""
        number = vectors.shape[1]
        mean = vectors.mean(dim=1, dtype=self._dtype)
        centred = vectors - mean[:, None].to(vectors.dtype)
        scatter = (centred.transpose(1, 2) @ centred).to(self._dtype)
        if not self._count:
            self._count, self.mean, self._scatter = number, mean, scatter
            return
        total = self._count + number
        apart = mean - self.mean
        self._scatter += scatter
        self._scatter += apart[:, :, None] * apart[:, None] * (self._count * number / total)
        self.mean = self.mean + apart * (number / total)
        self._count = total

    def covariance(self, positions: slice) -> Tensor:
        """Return the unbiased covariance at some positions, (p, C, C) float64."""
        return self._scatter[positions].double() / max(1, self._count - 1)
