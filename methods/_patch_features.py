"""What methods without a gradient look at: one feature vector per place, made of a frozen network's feature maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.backbones import FeaturePyramid, PatchTokens, level_indices, load_pyramid, load_tokens
from hrbench.errors import HrbenchError
from hrbench.precision import full_precision

from ._image_operations import blurred, resized, size_of

__all__ = ["Join", "Padding", "PatchFeatures", "at_input_size", "batched"]

Join = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "reflect", "replicate"]


class PatchFeatures(nn.Module):
    """Feature vectors of places at the finest stride.

    Each map of the backbone is made of unit length per place (if `normalise`), averaged over `pool` x `pool` places,
    and brought to the grid of the finest; then the channels of all maps stand one after another.

    Parameters
    ----------
    backbone : str
        A timm model: any with ``features_only``, or a vision transformer when `block` says which block.
    weights : str
        See :mod:`hrbench.backbones`.
    strides : sequence of int
        Of the feature maps, in input pixels; ignored for patch tokens.
    block : int or None
        Zero-based transformer block whose patch tokens are used instead.
    pool : int
        Odd number of places; 1 for none.
    normalise : bool
    join : str
        How coarser maps come to the finest grid: ``bilinear`` or ``nearest``.
    padding : str
        What convolutions and `pool` find outside the input: ``zeros``, as networks were trained, which makes features
        at the border of another kind, and rare; or what continues the input, ``replicate`` or ``reflect``.
    """

    def __init__(
        self,
        backbone: str,
        weights: str,
        strides: Sequence[int],
        block: int | None,
        *,
        pool: int,
        normalise: bool,
        join: Join,
        padding: Padding,
    ) -> None:
        super().__init__()
        if pool < 1 or pool % 2 == 0:
            raise HrbenchError(f"pool is {pool}, expected an odd number of places")
        self.backbone: FeaturePyramid | PatchTokens
        if block is None:
            self.backbone = load_pyramid(backbone, weights, level_indices(backbone, sorted(strides)))
            self.width, self.multiple = sum(self.backbone.channels), max(self.backbone.strides)
        else:
            self.backbone = load_tokens(backbone, weights, (block,))
            self.width, self.multiple = self.backbone.width, self.backbone.patch
        self._pool, self._normalise, self._join, self._zeros = pool, normalise, join, padding == "zeros"
        if padding != "zeros":
            for module in self.backbone.modules():
                if isinstance(module, nn.Conv2d):
                    module.padding_mode = padding

    def forward(self, batch: Tensor) -> Tensor:
        """Return (B, C, h, w) float32 features of (B, 3, H, W) images in [0, 1].

        Also in a run in bfloat16: what is compared with features of the fit must not differ from them by rounding.
        """
        with full_precision(batch.device):
            maps: list[Tensor] = self.backbone(batch)
        if isinstance(self.backbone, PatchTokens):
            cells = self.backbone.grid(batch)
            maps = [item.transpose(1, 2).reshape(len(item), -1, *cells) for item in maps]
        if self._normalise:
            maps = [functional.normalize(item, dim=1) for item in maps]
        if self._pool > 1:
            mean = nn.AvgPool2d(self._pool, stride=1, padding=self._pool // 2, count_include_pad=self._zeros)
            maps = [mean(item) for item in maps]
        grid = size_of(maps[0])
        options = {"align_corners": False} if self._join == "bilinear" else {}
        joined = [functional.interpolate(item, grid, mode=self._join, **options) for item in maps[1:]]
        return torch.cat([maps[0], *joined], dim=1)


def batched(inputs: Iterable[Tensor], size: int, device: torch.device) -> Iterator[Tensor]:
    """Stack inputs, each (3, h, w), to batches on the device; the last one may be smaller."""
    inputs = iter(inputs)
    while batch := list(islice(inputs, size)):
        yield torch.stack(batch).to(device, non_blocking=True)


def at_input_size(maps: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Return (B, h, w) maps bilinearly at the input's size, blurred with a Gaussian of `sigma` input pixels.

    In float32 also in a run in bfloat16: the blur is a product of matrices.
    """
    with full_precision(maps.device):
        return blurred(resized(maps, size), sigma)
