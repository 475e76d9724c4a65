"""U-Flow: one U-shaped normalising flow over all scales of frozen features, and a threshold without data.

Tailanian, Pardo and Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised Threshold",
Journal of Mathematical Imaging and Vision (2024), doi 10.1007/s10851-024-01193-y, arXiv 2211.12353. The flow turns
the features of normal images into white noise, coarse scales feeding finer ones. Because the noise's law is known, a
statistical test says which regions are too energetic to be noise (see ``_nfa.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.backbones import FeaturePyramid, PatchTokens, level_indices, load_pyramid, load_tokens
from hrbench.errors import HrbenchError
from hrbench.method import FitContext, Method, Normals, OnHost, Prediction, Preset, Weights

from ._flow import Clamp, FlowSequence, Norm, energy, feature_norm, fuse, measure_channels, negative_log_likelihood
from ._freia import load_freia
from ._nfa import Interpolation, NfaTest, TreeTest, log10_nfa
from ._schedule import Budget, fused

__all__ = ["TransformerPair", "UFlow", "UShapedFlow"]

_HELD_OUT_INPUTS = 512

# The last blocks used of the paper's two transformers.
_BLOCKS = {"cait_m48_448": 40, "cait_s24_224": 20}

_PAPER: Mapping[str, Any] = {
    "map": "likelihood",
    "test": "tree",
    "interpolation": "bilinear",
    "lr": 1e-4,
    "batch_size": 8,
    "steps": None,
    "epochs": 200,
}
_PAPER_PYRAMID: Mapping[str, Any] = {**_PAPER, "norm": "layer-affine", "input_size": 448}


class UFlow(Method):
    """U-Flow on two CaiTs, or on any timm backbone whose feature strides double.

    Parameters
    ----------
    backbone : str
        A timm model: any with ``features_only``, or with `coarse_backbone` a transformer.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see :mod:`hrbench.backbones`).
    strides : sequence of int
        Of the feature maps used, in input pixels, each twice the one before; ignored for transformers.
    coarse_backbone : str, optional
        A second transformer, for the coarse scale: it sees the input at half its size.
    coarse_weights : str, optional
        Of the second transformer; by default as `weights`, unless that is a file.
    blocks : sequence of two int, optional
        Zero-based blocks of both transformers whose patch tokens are used. By default the paper's, for its two
        (CaiT-M48 40, CaiT-S24 20).
    flow_steps : int
        Steps per stage.
    kernels : sequence of int
        Kernel sizes of the steps' subnets, repeated over the steps.
    clamp : str
        Of the log-scales: ``legacy`` or ``new``.
    norm : str
        Between features and flow: ``layer-affine`` (the paper's for convolutional backbones; needs `input_size`),
        ``layer``, ``channel`` (local, hence seam-free when tiled) or ``none`` (the paper's for its transformers).
    input_size : int, optional
        Height and width of the input in pixels, for ``layer-affine``.
    map : str
        The anomaly map: ``energy``, the mean over scales of E = 1/2 mean_c z^2; the paper's ``likelihood``, the mean of
        -exp(-E), which saturates for strong anomalies; or ``nfa``, -log10 of the number of false alarms, which is
        constant wherever the test finds nothing.
    test : str
        What decides: ``tree`` (the paper's), ``tree-by-size``, ``window`` (the paper's first) or ``none``.
    interpolation : str
        Of the test's result: ``bilinear`` to the input's size as in the paper, or ``nearest``, which does not dilate.
    recalibrate : str
        Divide the latents by their root mean square on held-out normal images: ``none``, per ``scale`` or per
        ``channel``. ``law``: per scale, and let the tests on trees take as many degrees of freedom as the variance of
        the energy on those images says there are, instead of the number of channels, which are not independent.
    checkpoint : str, optional
        File of a flow that the authors' code has trained; replaces training (see ``uflow.md``). It must have been
        trained on this backbone with these weights.
    lr, weight_decay : float
        Of Adam.
    batch_size : int
        Inputs per training step.
    steps : int, optional
        Training steps.
    epochs : int, optional
        Passes over the training inputs, instead of `steps`; an incomplete last batch counts.
    """

    title = "U-Flow"
    paper = "Tailanian et al., JMIV 2024, arXiv 2211.12353"
    weights_licence = (
        "bundled, CaiT, resnet18 (a1_in1k), wide_resnet50_2 (racm_in1k): Apache-2.0; resnet18 (tv_in1k): BSD-3-Clause; "
        "others: see timm"
    )
    image_score = "max"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            "whole:448:bilinear",
            {
                **_PAPER,
                "backbone": "cait_m48_448.fb_dist_in1k",
                "coarse_backbone": "cait_s24_224.fb_dist_in1k",
                "norm": "none",
            },
        ),
        "paper-resnet18": Preset("whole:448:bilinear", {**_PAPER_PYRAMID, "backbone": "resnet18.a1_in1k"}),
        "paper-wrn50": Preset("whole:448:bilinear", {**_PAPER_PYRAMID, "backbone": "wide_resnet50_2.racm_in1k"}),
        "native": Preset("tiled:512:128"),
        "demo": Preset(
            "tiled:256:64",
            {
                "backbone": "resnet18",
                "weights": "bundled",
                "strides": (4, 8),
                "batch_size": 4,
                "steps": 70,
            },
        ),
    }

    def __init__(
        self,
        backbone: str = "resnet18.tv_in1k",
        weights: Weights = "pretrained",
        strides: Sequence[int] = (4, 8, 16),
        coarse_backbone: str | None = None,
        coarse_weights: Weights | None = None,
        blocks: Sequence[int] | None = None,
        flow_steps: int = 4,
        kernels: Sequence[int] = (3, 1),
        clamp: Clamp = "legacy",
        norm: Norm = "channel",
        input_size: int | None = None,
        map: Literal["energy", "likelihood", "nfa"] = "energy",  # noqa: A002 - the option's name for people
        test: Literal[NfaTest, "none"] = "tree-by-size",
        interpolation: Interpolation = "nearest",
        recalibrate: Literal["none", "scale", "channel", "law"] = "none",
        checkpoint: Weights | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        batch_size: int = 16,
        steps: int | None = 5000,
        epochs: int | None = None,
    ) -> None:
        super().__init__()
        if map == "nfa" and test == "none":
            raise HrbenchError("uflow: map 'nfa' needs a test; expected one of " + ", ".join(get_args(NfaTest)))
        self._budget = Budget("uflow", batch_size, steps, epochs)
        self.backbone: FeaturePyramid | TransformerPair
        if coarse_backbone is not None:
            self.backbone = _transformers((backbone, coarse_backbone), weights, coarse_weights, blocks)
        else:
            if blocks is not None or coarse_weights is not None:
                raise HrbenchError("uflow: blocks and coarse_weights belong to a coarse_backbone, and there is none")
            self.backbone = load_pyramid(backbone, weights, level_indices(backbone, sorted(strides)))
        channels, used = self.backbone.channels, self.backbone.strides
        if any(coarse != 2 * fine for fine, coarse in pairwise(used)):
            raise HrbenchError(f"strides {list(used)} of uflow: expected each twice the one before")
        self.multiple = max(used)
        if input_size is not None and input_size % self.multiple:
            raise HrbenchError(f"input_size {input_size} of uflow: expected a multiple of {self.multiple}")
        grids = [(input_size // s, input_size // s) if input_size else None for s in used]
        self.norms = nn.ModuleList(feature_norm(norm, c, grid) for c, grid in zip(channels, grids, strict=True))
        self.flow = UShapedFlow(channels, flow_steps, kernels, clamp=clamp)
        self.spreads = nn.ModuleList(_Spread(c) for c in self.flow.latent_channels)
        self.input_size = input_size if norm == "layer-affine" else None  # its weights have that shape
        self._map, self._test, self._interpolation, self._recalibrate = map, test, interpolation, recalibrate
        self._checkpoint = checkpoint
        self._lr, self._weight_decay, self._batch_size = lr, weight_decay, batch_size

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Maximise the likelihood of the features of normal images (Adam, constant learning rate)."""
        held_out = None if self._recalibrate == "none" else context.held_out  # where there are none, an error now
        features = context.features(normals, self.features)
        measure_channels(features, list(self.norms), context, batch_size=self._batch_size)
        if self._checkpoint is not None:
            extractors = [m for m in self.backbone.modules() if isinstance(m, FeaturePyramid | PatchTokens)]
            load_freia(Path(self._checkpoint), self.flow.steps_in_order(), list(self.norms), extractors)
        else:
            trainable = [p for p in self.parameters() if p.requires_grad]
            optimizer = torch.optim.Adam(
                trainable, lr=self._lr, weight_decay=self._weight_decay, fused=fused(context.device)
            )
            steps = self._budget.of(len(normals), incomplete=True)
            context.train(features, self.loss, optimizer, steps=steps, batch_size=self._batch_size)
        if held_out is not None:
            self.recalibrate(context)

    def features(self, batch: Tensor) -> list[Tensor]:
        """Return the (B, C, h, w) maps of a (B, 3, H, W) batch, finest first."""
        maps: list[Tensor] = self.backbone(batch)
        return maps

    def latents(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return z (B, C, h, w) per scale, finest first, and log|det J| (B,), from what :meth:`features` returns."""
        found: tuple[list[Tensor], Tensor] = self.flow([norm(x) for norm, x in zip(self.norms, features, strict=True)])
        return found

    def loss(self, features: Sequence[Tensor]) -> Tensor:
        """Return the negative log-likelihood, a scalar of the order of the number of features."""
        latents, log_det = self.latents(features)
        # The flow is one: its determinant is counted once.
        return negative_log_likelihood(latents, [log_det] + [torch.zeros_like(log_det)] * (len(latents) - 1))

    def predict(self, batch: Tensor) -> Prediction:
        """Return the chosen map, and where NFA < 1; each input is an image."""
        return self.predict_inputs(batch, [1] * len(batch))

    def predict_inputs(self, batch: Tensor, inputs_per_image: Sequence[int]) -> Prediction:
        """Return the chosen map, and where NFA < 1 for the image that the inputs belong to.

        An image that was cut into n inputs is tested n times: log10 n is added to log10 NFA.
        """
        latents = self._spread_latents(batch)
        if self._test == "none":
            return Prediction({"anomaly": self._energies(latents, batch)})
        inputs = torch.tensor(inputs_per_image).float().log10().to(batch.device, non_blocking=True)[:, None, None]
        grid = (batch.shape[-2], batch.shape[-1]) if self._interpolation == "bilinear" else None
        if self._test == "window" or self._map == "nfa":
            log_nfa = inputs + log10_nfa(
                latents,
                test=self._test,
                grid=grid,
                interpolation=self._interpolation,
                freedoms=self._freedoms(),
            )
            anomaly = -log_nfa if self._map == "nfa" else self._energies(latents, batch)
            return Prediction({"anomaly": anomaly}, log_nfa < 0)
        shapes = tuple((z.shape[-2], z.shape[-1]) for z in latents)
        trees = TreeTest(self._test, shapes, grid or shapes[0], self._interpolation, only_found=True)
        freedoms = torch.stack([spread.freedom for spread in self._typed_spreads()])

        def found(given: list[Tensor]) -> list[Tensor]:
            return trees.on_host(given[:-1], given[-1].tolist())

        decision = OnHost(
            (*trees.energies(latents), freedoms), found, lambda log_nfa: trees.joined(log_nfa) + inputs < 0
        )
        return Prediction({"anomaly": self._energies(latents, batch)}, decision)

    def exported_maps(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the map without the test, which decides on the host."""
        return {"anomaly": self._energies(self._spread_latents(batch), batch)}

    @property
    def not_exported(self) -> str:  # type: ignore[override]
        """The test's own result is made on the host."""
        return "map 'nfa' is the result of a test that no graph can hold; fit it with map=energy" * (self._map == "nfa")

    def _spread_latents(self, batch: Tensor) -> list[Tensor]:
        latents = self.latents(self.features(batch))[0]
        return [spread(z) for spread, z in zip(self.spreads, latents, strict=True)]

    def _energies(self, latents: Sequence[Tensor], batch: Tensor) -> Tensor:
        size = (batch.shape[-2], batch.shape[-1])
        return fuse([energy(z) for z in latents], self._map, size if self._map == "likelihood" else None)

    @torch.no_grad()
    def recalibrate(self, context: FitContext) -> None:
        """Measure the latents of held-out normal images, at most 512 inputs, as the option says."""
        held_out, size = context.features(context.held_out, self.features), self._batch_size
        steps = math.ceil(min(len(held_out), _HELD_OUT_INPUTS) / size)
        batches = held_out.batches(size, steps=steps, seed=context.seed)
        found: list[list[Tensor]] = [[] for _ in self.flow.latent_channels]  # on the device: the host need not wait
        for features in context.track(batches, total=steps, description="recalibration"):
            for of_scale, z in zip(found, self.latents(features)[0], strict=True):
                squared_energy = z.square().mean(dim=1).square().mean()  # mean per cell
                of_scale.append(torch.cat((z.square().mean(dim=(0, 2, 3)), squared_energy[None])))
        for spread, of_scale in zip(self._typed_spreads(), found, strict=True):
            parts = torch.stack(of_scale).cpu().double() / steps
            total = sum(parts, torch.zeros_like(parts[0]))
            square, power = total[:-1], float(total[-1])
            mean = square.mean()
            spread.set_variance(square if self._recalibrate == "channel" else mean.expand_as(square))
            if self._recalibrate == "law":
                # The scaled chi^2 of the same mean and variance; channels can but take away from its freedom.
                variance = max(power - float(mean) ** 2, 1e-12)
                spread.freedom.fill_(min(len(square), max(1.0, 2 * float(mean) ** 2 / variance)))

    def _freedoms(self) -> list[float] | None:
        """Return the degrees of freedom that were measured; None where they are the numbers of channels."""
        if self._recalibrate != "law":  # the host need not wait to know
            return None
        return torch.stack([spread.freedom for spread in self._typed_spreads()]).tolist()

    def _typed_spreads(self) -> list[_Spread]:
        return [spread for spread in self.spreads if isinstance(spread, _Spread)]


class UShapedFlow(nn.Module):
    """One flow over all scales, from coarse to fine: part of each stage's output goes up to the next.

    Parameters
    ----------
    channels : sequence of int
        Of the features, finest first.
    steps : int
        Per stage.
    kernels : sequence of int
        Kernel sizes, repeated over the steps of a stage.
    clamp : str
        See :class:`FlowStep`.

    Attributes
    ----------
    latent_channels : tuple of int
        Of the latents, finest first.
    """

    def __init__(
        self, channels: Sequence[int], steps: int = 4, kernels: Sequence[int] = (3, 1), *, clamp: Clamp = "legacy"
    ) -> None:
        super().__init__()
        self._up: list[int] = []  # channels that go up from each stage, coarsest first
        stages, latent_channels = [], []
        rising = 0
        for level, own in reversed(list(enumerate(channels))):
            here = own + rising // 4
            rising = 4 * (here // 8) if level else 0
            if level and not rising:
                raise HrbenchError(f"a coarse scale of {here} channels cannot feed a finer one, expected at least 8")
            stages.append(FlowSequence(here, steps, kernels, clamp=clamp))
            self._up.append(rising)
            latent_channels.append(here - rising)
        self.stages = nn.ModuleList(stages)
        self.latent_channels = tuple(reversed(latent_channels))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Map (B, C, h, w) features, finest first, to latents of as many numbers; also return log|det J|, (B,)."""
        _check_doubling(features)
        latents: list[Tensor] = []
        total = torch.zeros(len(features[0]), device=features[0].device)
        rising: Tensor | None = None
        for x, stage, up in zip(reversed(features), self.stages, self._up, strict=True):
            # Two by two pixels take four neighbouring channels: a shuffle, without a determinant.
            joined = x if rising is None else torch.cat((x.to(rising), functional.pixel_shuffle(rising, 2)), dim=1)
            out, log_det = stage(joined)
            rising, latent = out[:, :up], out[:, up:]
            latents.append(latent)
            total = total + log_det
        return latents[::-1], total

    def inverse(self, latents: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Map latents back to features, both finest first; also return log|det J| of the inverse, (B,)."""
        features: list[Tensor] = []
        total = torch.zeros(len(latents[0]), device=latents[0].device)
        falling: Tensor | None = None
        came_up = [*self._up[-2::-1], 0]  # finest first
        for z, stage, taken in zip(latents, reversed(self._typed()), came_up, strict=True):
            x, log_det = stage.inverse(z if falling is None else torch.cat((falling, z), dim=1))
            own = x.shape[1] - taken // 4
            features.append(x[:, :own])
            falling = functional.pixel_unshuffle(x[:, own:], 2) if taken else None
            total = total + log_det
        return features, total

    def steps_in_order(self) -> list[nn.Module]:
        """Return all steps in the order in which features pass them."""
        return [step for stage in self._typed() for step in stage.steps]

    def _typed(self) -> list[FlowSequence]:
        return [stage for stage in self.stages if isinstance(stage, FlowSequence)]


class TransformerPair(nn.Module):
    """Patch tokens of two transformers as two scales: the second one sees the input at half its size.

    Attributes
    ----------
    channels, strides : tuple of int
        Of both maps, finest first; strides are in pixels of the input.
    """

    def __init__(self, fine: PatchTokens, coarse: PatchTokens) -> None:
        super().__init__()
        self.fine, self.coarse = fine, coarse
        self.channels = (fine.width, coarse.width)
        self.strides = (fine.patch, 2 * coarse.patch)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return both (B, C, h, w) maps of (B, 3, H, W) images in [0, 1]."""
        half = (images.shape[-2] // 2, images.shape[-1] // 2)
        small = functional.interpolate(images, half, mode="bicubic", align_corners=True)
        maps = []
        for transformer, seen in ((self.fine, images), (self.coarse, small)):
            (tokens,) = transformer(seen)
            maps.append(tokens.transpose(1, 2).reshape(len(tokens), -1, *transformer.grid(seen)))
        return maps


class _Spread(nn.Module):
    """Divide each channel of a latent by a root mean square; by one until it is set.

    Attributes
    ----------
    freedom : Tensor
        Degrees of freedom of the energy per cell; the number of channels until it is set.
    """

    variance: Tensor
    freedom: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(channels, 1, 1))
        self.register_buffer("freedom", torch.tensor(float(channels)))

    def forward(self, z: Tensor) -> Tensor:
        return z / self.variance.sqrt()

    def set_variance(self, variance: Tensor) -> None:
        self.variance.copy_(variance.view(-1, 1, 1).clamp_min(1e-6), non_blocking=True)


def _transformers(
    models: tuple[str, str], weights: str, coarse_weights: str | None, blocks: Sequence[int] | None
) -> TransformerPair:
    if coarse_weights is None:
        if weights not in ("pretrained", "random"):
            raise HrbenchError(
                f"uflow: weights {weights!r} are of {models[0]}; expected coarse_weights for {models[1]}"
            )
        coarse_weights = weights
    if blocks is None:
        unknown = [model for model in models if model.partition(".")[0] not in _BLOCKS]
        if unknown:
            raise HrbenchError(f"uflow: no block is known for {unknown[0]}; expected blocks, one of each transformer")
        blocks = [_BLOCKS[model.partition(".")[0]] for model in models]
    if len(blocks) != 2:
        raise HrbenchError(f"blocks {list(blocks)} of uflow: expected two, one of each transformer")
    fine, coarse = (
        load_tokens(model, source, (block,))
        for model, source, block in zip(models, (weights, coarse_weights), blocks, strict=True)
    )
    return TransformerPair(fine, coarse)


def _check_doubling(features: Sequence[Tensor]) -> None:
    sizes = [tuple(x.shape[-2:]) for x in features]
    for fine, coarse in pairwise(sizes):
        if fine != (2 * coarse[0], 2 * coarse[1]):
            shown = ", ".join(f"{h}x{w}" for h, w in sizes)
            raise HrbenchError(f"features of uflow are {shown}: expected each half the size of the one before")
