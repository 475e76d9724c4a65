"""FastFlow: a normalising flow per scale on frozen features.

Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows",
arXiv 2111.07677. A frozen network turns the image into feature maps at a few strides. On each map an
independent, fully convolutional flow learns to turn the features of normal images into white noise; where the
noise is too strong is the anomaly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hrbench.backbones import FeaturePyramid, PatchTokens, level_indices, load_pyramid, load_tokens
from hrbench.errors import HrbenchError
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights

from ._flow import Clamp, FlowSequence, Norm, energy, feature_norm, fuse, measure_channels, negative_log_likelihood
from ._schedule import Budget, fused

__all__ = ["FastFlow"]

# The last block used of the paper's transformers; they give one map, at the patch's stride.
_BLOCKS = {"deit_base_distilled_patch16_384": 7, "cait_m48_448": 40}

_PAPER: Mapping[str, Any] = {
    "norm": "layer-affine",
    "input_size": 256,
    "map": "likelihood",
    "steps": None,
    "epochs": 500,
    "batch_size": 32,
}
_PAPER_TRANSFORMER: Mapping[str, Any] = {
    **_PAPER,
    "norm": "none",
    "input_size": None,
    "flow_steps": 20,
    "kernels": (3, 1),
    "hidden_ratio": 0.16,
}


class FastFlow(Method):
    """FastFlow on any timm backbone.

    Parameters
    ----------
    backbone : str
        A timm model: any with ``features_only``, or a ViT, DeiT or CaiT when `block` says which block.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see :mod:`hrbench.backbones`).
    strides : sequence of int
        Of the feature maps used, in input pixels, finest first; ignored for patch tokens.
    block : int, optional
        Zero-based transformer block whose patch tokens are used instead of a pyramid. By default the paper's,
        for its two transformers (DeiT 7, CaiT 40).
    flow_steps : int
        Steps per scale.
    kernels : sequence of int
        Kernel sizes of the steps' subnets, repeated over the steps: (3,) or (3, 1).
    hidden_ratio : float
        Hidden channels of a subnet per input channel of it.
    clamp : str
        Of the log-scales: ``legacy`` or ``new``.
    norm : str
        Between features and flow: ``layer-affine`` (published results; needs `input_size`), ``layer``,
        ``channel`` (local, hence seam-free when tiled) or ``none``.
    input_size : int, optional
        Height and width of the input in pixels, for ``layer-affine``.
    map : str
        ``energy``, the mean over scales of E = 1/2 mean_c z^2; or the paper's ``likelihood``, the mean of
        -exp(-E), which saturates for strong anomalies.
    lr, weight_decay : float
        Of Adam.
    batch_size : int
        Inputs per training step.
    steps : int, optional
        Training steps.
    epochs : int, optional
        Passes over the training inputs, instead of `steps`; an incomplete last batch does not count.
    """

    title = "FastFlow"
    paper = "Yu et al., arXiv 2111.07677"
    weights_licence = (
        "bundled: Apache-2.0; resnet18 (tv_in1k): BSD-3-Clause; wide_resnet50_2 (racm_in1k), DeiT, CaiT: Apache-2.0; "
        "others: see timm"
    )
    image_score = "max"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256:bilinear", {**_PAPER, "kernels": (3,)}),
        "paper-wrn50": Preset(
            "whole:256:bilinear",
            {**_PAPER, "backbone": "wide_resnet50_2.racm_in1k", "kernels": (3, 1)},
        ),
        "paper-deit": Preset(
            "whole:384:bilinear",
            {**_PAPER_TRANSFORMER, "backbone": "deit_base_distilled_patch16_384.fb_in1k"},
        ),
        "paper-cait": Preset("whole:448:bilinear", {**_PAPER_TRANSFORMER, "backbone": "cait_m48_448.fb_dist_in1k"}),
        "native": Preset("tiled:512:128"),
        "demo": Preset(
            "tiled:256:64",
            {
                "backbone": "resnet18",
                "weights": "bundled",
                "strides": (4, 8),
                "flow_steps": 4,
                "kernels": (3, 1),
                "batch_size": 4,
                "steps": 100,
            },
        ),
    }

    def __init__(
        self,
        backbone: str = "resnet18.tv_in1k",
        weights: Weights = "pretrained",
        strides: Sequence[int] = (4, 8, 16),
        block: int | None = None,
        flow_steps: int = 8,
        kernels: Sequence[int] = (3,),
        hidden_ratio: float = 1.0,
        clamp: Clamp = "legacy",
        norm: Norm = "channel",
        input_size: int | None = None,
        map: Literal["energy", "likelihood"] = "energy",  # noqa: A002 - the option's name for people
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        batch_size: int = 16,
        steps: int | None = 5000,
        epochs: int | None = None,
    ) -> None:
        super().__init__()
        self._budget = Budget("fastflow", batch_size, steps, epochs)
        if block is None:
            block = _BLOCKS.get(backbone.partition(".")[0])
        self.backbone: FeaturePyramid | PatchTokens
        if block is not None:
            self.backbone = load_tokens(backbone, weights, (block,))
            channels: tuple[int, ...] = (self.backbone.width,)
            used: tuple[int, ...] = (self.backbone.patch,)
        else:
            self.backbone = load_pyramid(backbone, weights, level_indices(backbone, sorted(strides)))
            channels, used = self.backbone.channels, self.backbone.strides
        self.multiple = max(used)
        if input_size is not None and input_size % self.multiple:
            raise HrbenchError(f"input_size {input_size} of fastflow: expected a multiple of {self.multiple}")
        grids = [(input_size // s, input_size // s) if input_size else None for s in used]
        self.norms = nn.ModuleList(feature_norm(norm, c, grid) for c, grid in zip(channels, grids, strict=True))
        self.flows = nn.ModuleList(
            FlowSequence(c, flow_steps, kernels, hidden_ratio=hidden_ratio, clamp=clamp) for c in channels
        )
        self.input_size = input_size if norm == "layer-affine" else None  # its weights have that shape
        self._map = map
        self._lr, self._weight_decay, self._batch_size = lr, weight_decay, batch_size

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Maximise the likelihood of the features of normal images (Adam, constant learning rate)."""
        features = context.features(normals, self.features)
        measure_channels(features, list(self.norms), context, batch_size=self._batch_size)
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(
            trainable, lr=self._lr, weight_decay=self._weight_decay, fused=fused(context.device)
        )
        steps = self._budget.of(len(normals))
        context.train(features, self.loss, optimizer, steps=steps, batch_size=self._batch_size)

    def features(self, batch: Tensor) -> list[Tensor]:
        """Return the backbone's (B, C, h, w) maps of a (B, 3, H, W) batch, finest first."""
        maps: list[Tensor] = self.backbone(batch)
        if isinstance(self.backbone, PatchTokens):
            grid = self.backbone.grid(batch)
            maps = [m.transpose(1, 2).reshape(len(m), -1, *grid) for m in maps]
        return maps

    def latents(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return z (B, C, h, w) and log|det J| (B,) per scale, from what :meth:`features` returns."""
        pairs = [flow(norm(x)) for x, norm, flow in zip(features, self.norms, self.flows, strict=True)]
        return [z for z, _ in pairs], [log_det for _, log_det in pairs]

    def loss(self, features: Sequence[Tensor]) -> Tensor:
        """Return the negative log-likelihood, a scalar of the order of the number of features."""
        return negative_log_likelihood(*self.latents(features))

    def predict(self, batch: Tensor) -> Prediction:
        """Return the map: the energy at the finest stride, the paper's likelihood at the input's size."""
        energies = [energy(z) for z in self.latents(self.features(batch))[0]]
        grid = batch.shape[-2:] if self._map == "likelihood" else energies[0].shape[-2:]
        return Prediction({"anomaly": fuse(energies, self._map, (grid[0], grid[1]))})
