"""The flow step that FastFlow and U-Flow share, and what surrounds it: feature norms, likelihood.

One step is a coupling, a per-channel affine and a fixed channel permutation (Glow: arXiv 1807.03039; the
affine and the clamp in the form that both papers' experiments used). Everything is convolutional and
size-agnostic, and runs in at least float32: the sum of z^2 over a feature map leaves float16's range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.errors import HrbenchError
from hrbench.method import Batches, FitContext
from hrbench.precision import full_precision

__all__ = [
    "ChannelNorm",
    "Clamp",
    "FlowSequence",
    "FlowStep",
    "Norm",
    "energy",
    "feature_norm",
    "fuse",
    "measure_channels",
    "negative_log_likelihood",
]

Clamp = Literal["legacy", "new"]
Norm = Literal["layer-affine", "layer", "channel", "none"]

_ALPHA = 2.0  # log-scales stay within +-2
_DAMPING = 0.1  # of the subnet's output, so that a fresh step is close to the identity
_SOFTPLUS_BETA = 0.5
_SCALE_0 = 2 * math.log(math.exp(5) - 1)  # 0.1 * softplus(_SCALE_0) = 1
_STD_FLOOR = 0.05  # of the mean std: a channel that is silent on normals must not drown the others
_MOMENT_INPUTS = 512


class FlowStep(nn.Module):
    """One invertible step on (B, C, H, W): affine coupling, global affine, permutation.

    Parameters
    ----------
    channels : int
        C, at least 2. The first C - C // 2 channels condition the others.
    kernel : int
        1 or 3, of both convolutions of the subnet.
    hidden_ratio : float
        Hidden channels of the subnet per conditioning channel.
    clamp : str
        ``legacy``, alpha * tanh(s), as in the published results; or ``new``, alpha * tanh(s / alpha).
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, channels: int, kernel: int = 3, *, hidden_ratio: float = 1.0, clamp: Clamp = "legacy") -> None:
        super().__init__()
        if kernel not in (1, 3):
            raise HrbenchError(f"kernel {kernel} of a flow step: expected 1 or 3")
        self._active = channels // 2
        self._passive = channels - self._active
        self._clamp_scale = 1.0 if clamp == "legacy" else _ALPHA
        hidden = max(1, int(self._passive * hidden_ratio))
        self.subnet = nn.Sequential(
            nn.Conv2d(self._passive, hidden, kernel, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv2d(hidden, 2 * self._active, kernel, padding=kernel // 2),
        )
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), _SCALE_0))
        self.offset = nn.Parameter(torch.zeros(1, channels, 1, 1))
        permutation = torch.randperm(channels)
        self.register_buffer("permutation", permutation)
        self.register_buffer("inverse_permutation", torch.argsort(permutation), persistent=False)
        self.register_load_state_dict_post_hook(_restore_inverse)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) features to latents; also return log|det J| per sample, (B,)."""
        with full_precision(x.device):
            x = _at_least_float32(x)
            passive, active = x[:, : self._passive], x[:, self._passive :]
            log_scale, shift = self._coupling(passive)
            gain = self._gain()
            y = torch.cat((passive, active * log_scale.exp() + shift), dim=1) * gain + self.offset
            y = _Permute.apply(y, self.permutation, self.inverse_permutation)
            return y, log_scale.sum(dim=(1, 2, 3)) + self._affine_log_det(gain, x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents back to features; also return log|det J| of the inverse per sample, (B,)."""
        with full_precision(y.device):
            gain = self._gain()
            x = _Permute.apply(_at_least_float32(y), self.inverse_permutation, self.permutation)
            x = (x - self.offset) / gain
            passive, active = x[:, : self._passive], x[:, self._passive :]
            log_scale, shift = self._coupling(passive)
            x = torch.cat((passive, (active - shift) * (-log_scale).exp()), dim=1)
            return x, -log_scale.sum(dim=(1, 2, 3)) - self._affine_log_det(gain, y)

    def set_permutation(self, permutation: Tensor) -> None:
        """Take a (C,) permutation: output channel i is channel permutation[i]."""
        self.permutation.copy_(permutation)
        self.inverse_permutation.copy_(torch.argsort(permutation))

    def _coupling(self, passive: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = (_DAMPING * self.subnet(passive)).chunk(2, dim=1)
        return _ALPHA * torch.tanh(raw / self._clamp_scale), shift

    def _gain(self) -> Tensor:
        return 0.1 * functional.softplus(self.scale, beta=_SOFTPLUS_BETA)

    @staticmethod
    def _affine_log_det(gain: Tensor, x: Tensor) -> Tensor:
        return gain.log().sum() * (x.shape[-2] * x.shape[-1])


class FlowSequence(nn.Module):
    """Steps one after another at one scale.

    Parameters
    ----------
    channels : int
        Of the features.
    steps : int
        Number of steps.
    kernels : sequence of int
        Kernel sizes, repeated over the steps: ``(3,)``, or ``(3, 1)`` for alternating ones.
    hidden_ratio, clamp
        See :class:`FlowStep`.
    """

    def __init__(
        self,
        channels: int,
        steps: int,
        kernels: Sequence[int] = (3,),
        *,
        hidden_ratio: float = 1.0,
        clamp: Clamp = "legacy",
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            FlowStep(channels, kernels[i % len(kernels)], hidden_ratio=hidden_ratio, clamp=clamp) for i in range(steps)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) features to latents of the same shape; also return log|det J|, (B,)."""
        return _chain([step.forward for step in self._typed()], x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents back to features; also return log|det J| of the inverse, (B,)."""
        return _chain([step.inverse for step in reversed(self._typed())], z)

    def _typed(self) -> list[FlowStep]:
        return [step for step in self.steps if isinstance(step, FlowStep)]


class ChannelNorm(nn.Module):
    """Standardise each channel with moments measured once on normal images.

    Unlike a layer norm it is local: a pixel's features do not depend on what else is in the tile, so that
    overlapping tiles agree and a large defect does not lower its own contrast.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (B, C, H, W)."""
        return (_at_least_float32(x) - self.mean) / self.std

    def set_moments(self, mean: Tensor, variance: Tensor) -> None:
        """Take the (C,) moments of the features of normal images."""
        std = variance.clamp_min(0).sqrt()
        std = std.clamp_min(_STD_FLOOR * float(std.mean())).clamp_min(1e-6)
        self.mean.copy_(mean.view(-1, 1, 1), non_blocking=True)
        self.std.copy_(std.view(-1, 1, 1), non_blocking=True)


class _LayerNorm(nn.Module):
    """Layer norm over (C, H, W) without affine, hence for any input size."""

    def forward(self, x: Tensor) -> Tensor:
        x = _at_least_float32(x)
        return functional.layer_norm(x, x.shape[1:])


class _AffineLayerNorm(nn.LayerNorm):
    """Layer norm over (C, H, W) with one weight and bias per channel and position: tied to the input size."""

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.normalized_shape:
            got, expected = tuple(x.shape[2:]), tuple(self.normalized_shape[1:])
            raise HrbenchError(
                f"norm 'layer-affine' is tied to input_size: features are {got[0]}x{got[1]}, expected "
                f"{expected[0]}x{expected[1]}; choose a view of that size, or norm 'layer' or 'channel'"
            )
        return super().forward(_at_least_float32(x))


class _AtLeastFloat32(nn.Module):
    """No norm, for features that their backbone has normalised."""

    def forward(self, x: Tensor) -> Tensor:
        return _at_least_float32(x)


def feature_norm(kind: Norm, channels: int, grid: tuple[int, int] | None = None) -> nn.Module:
    """Return the norm between a backbone's features and a flow.

    Parameters
    ----------
    kind : str
        ``layer-affine`` (trainable, over [C, H, W], as in the papers' experiments; needs `grid`), ``layer``
        (the same without affine), ``channel`` (see :class:`ChannelNorm`) or ``none``.
    channels : int
        C of the features.
    grid : tuple of int, optional
        H, W of the features.
    """
    if kind == "layer-affine":
        if grid is None:
            raise HrbenchError("norm 'layer-affine' needs input_size")
        return _AffineLayerNorm((channels, *grid))
    return {"layer": _LayerNorm, "none": _AtLeastFloat32}[kind]() if kind != "channel" else ChannelNorm(channels)


@torch.no_grad()
def measure_channels(
    features: Batches[list[Tensor]], norms: Sequence[nn.Module], context: FitContext, *, batch_size: int
) -> None:
    """Give every :class:`ChannelNorm` among `norms` the moments of the features of normal images.

    Parameters
    ----------
    features : Batches
        Lists of (B, C, h', w') features, one per norm; at most 512 random inputs are looked at.
    norms : sequence of Module
        As made by :func:`feature_norm`.
    context : FitContext
    batch_size : int
        Inputs at a time.
    """
    chosen = [(i, norm) for i, norm in enumerate(norms) if isinstance(norm, ChannelNorm)]
    if not chosen:
        return
    steps = math.ceil(min(len(features), _MOMENT_INPUTS) / batch_size)
    batches = features.batches(batch_size, steps=steps, seed=context.seed)
    found: list[list[Tensor]] = [[] for _ in chosen]  # on the device: the host need not wait
    sizes = []
    for maps in context.track(batches, total=steps, description="feature moments"):
        for moments, (i, _) in zip(found, chosen, strict=True):
            # Mean over pixels first: on every device that has no float64, float32 holds it well.
            x = maps[i].float()
            moments.append(torch.stack((x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3)))))
        sizes.append(len(maps[0]))
    for moments, (_, norm) in zip(found, chosen, strict=True):
        parts = torch.stack(moments).cpu().double()
        weighted = (part * size for part, size in zip(parts, sizes, strict=True))
        mean, mean_square = (sum(weighted, torch.zeros_like(parts[0])) / sum(sizes)).unbind()
        norm.set_moments(mean.to(norm.mean.dtype), (mean_square - mean.square()).to(norm.mean.dtype))


def negative_log_likelihood(latents: Sequence[Tensor], log_dets: Sequence[Tensor]) -> Tensor:
    """Return the papers' loss: sum over scales of the batch mean of 1/2 sum z^2 - log|det J|.

    The constant D/2 ln(2 pi) is left out and nothing is divided by D. Expect values of the order of D / 2.

    Parameters
    ----------
    latents : sequence of Tensor
        (B, C, h, w) per scale.
    log_dets : sequence of Tensor
        (B,) per scale.
    """
    terms = [
        (0.5 * z.square().sum(dim=(1, 2, 3)) - log_det).mean() for z, log_det in zip(latents, log_dets, strict=True)
    ]
    return torch.stack(terms).sum()


def energy(z: Tensor) -> Tensor:
    """Return E = 1/2 mean over channels of z^2: (B, C, h, w) latents to (B, 1, h, w). Normal is about 1/2."""
    return 0.5 * z.square().mean(dim=1, keepdim=True)


def fuse(energies: Sequence[Tensor], kind: str, grid: tuple[int, int] | None = None) -> Tensor:
    """Average the scales' maps on one grid.

    Parameters
    ----------
    energies : sequence of Tensor
        (B, 1, h, w) per scale, finest first.
    kind : str
        ``energy`` or ``likelihood``. The paper interpolates p = exp(-E), not E, and averages -p.
    grid : (int, int), optional
        By default that of the finest scale. The paper's is that of the input.

    Returns
    -------
    Tensor
        (B, h, w) float32.
    """
    maps = [-torch.exp(-e) if kind == "likelihood" else e for e in energies]
    size = grid or maps[0].shape[-2:]
    maps = [functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps]
    return torch.stack(maps).mean(dim=0).squeeze(1)


class _Permute(torch.autograd.Function):
    """Channel permutation whose backward is a gather too: index_select's own is a slow scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, permutation: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(permutation, inverse)
        return x.index_select(1, permutation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        permutation, inverse = ctx.saved_tensors
        return _Permute.apply(grads[0], inverse, permutation), None, None


def _restore_inverse(module: nn.Module, incompatible: object) -> None:
    del incompatible
    if isinstance(module, FlowStep):
        module.inverse_permutation.copy_(torch.argsort(module.permutation))


def _chain(maps: Sequence[Any], x: Tensor) -> tuple[Tensor, Tensor]:
    x = _at_least_float32(x)
    total = x.new_zeros(len(x))
    for each in maps:
        x, log_det = each(x)
        total = total + log_det
    return x, total


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
