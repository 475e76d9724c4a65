"""ISSTAD: a masked autoencoder learns the normal image, then to repair corrupted ones and to mark what it repaired.

Jin, Guo, Zhu, "ISSTAD: Incremental Self-Supervised Learning Based on Transformer for Anomaly Detection and
Localization", arXiv 2303.17354; Jin, Guo, Wu, Zhu, Engineering Applications of Artificial Intelligence 160, 111978
(2025). Stage 1: a masked autoencoder is trained on normal images. Stage 2: its encoder is frozen; a deeper decoder
gets images with drawn defects, repairs them, and after each of its blocks one shared linear head says of every pixel
whether it is defective. The anomaly map is the product of that probability and the squared repair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.errors import HrbenchError
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights
from hrbench.precision import full_precision

from ._mae import MaskedAutoencoder, masked_error, random_crops, unpatchify
from ._pseudo_anomalies import Generator, corrupt
from ._schedule import Budget, adamw, clip_gradients, set_rate, set_wave

__all__ = ["ISSTAD", "classification_loss", "gaussian_blur", "ssim"]

_WARMUP = 40 / 305  # share of stage 1's steps
_LEAST_RATE = 1e-3  # of stage 2's highest
_CLASS_WEIGHTS = (3.0, 1.0)  # normal, defective
_REPAIR_WEIGHT, _SSIM_WEIGHT = 0.5, 0.1
_RESIDUAL_QUANTILE = 0.995
_BAND = 256  # rows that a blur computes at a time: its cost stays linear in the number of pixels

_PAPER: Mapping[str, Any] = {
    "corruption": "polygon",
    "lr": 1e-3,
    "lr_period": 30,
    "clip": None,
    "mae_steps": None,
    "mae_epochs": 305,
    "steps": None,
    "epochs": 200,
    "residual": "minmax",
    "blur": 4.0,
    "input_size": 224,
}


class ISSTAD(Method):
    """ISSTAD on any plain timm vision transformer.

    Parameters
    ----------
    backbone : str
        A timm ViT with a class token; the paper's is ``vit_large_patch16_224.mae``.
    weights : str
        Where stage 1 starts: ``pretrained``, ``bundled``, ``random``, or a path to a masked autoencoder's encoder, with
        or without its decoder (see :mod:`hrbench.backbones`).
    patch : int, optional
        Height and width of a patch in pixels; by default the backbone's. Given weights are resampled to another one.
    decoder_width, decoder_heads, decoder_depth : int
        Of the decoder: channels, attention heads, blocks in stage 2.
    mae_depth : int
        Decoder blocks in stage 1, which a file of weights may fill; the others are first used in stage 2.
    mask_ratio : float
        Share of the patches that stage 1 hides.
    crop_area : float
        Least share of an input's area that stage 1 crops and enlarges; 1 does not crop.
    corruption : str
        How defects are drawn: ``polygon`` and ``patches`` are the paper's, ``mixture`` adds tiny ones (see
        :mod:`hrbench.methods._pseudo_anomalies`).
    corruption_share : float
        Share of stage 2's inputs with drawn defects.
    mae_lr, lr : float
        Highest learning rates of the stages, both AdamW.
    lr_period : int, optional
        Passes over the inputs in which stage 2's learning rate falls to a thousandth, and in as many rises again; by
        default it falls once, over the whole stage.
    clip : float, optional
        Greatest length of stage 2's gradients; None does not clip.
    mae_batch_size, batch_size : int
        Inputs per training step.
    mae_steps, steps : int, optional
        Training steps.
    mae_epochs, epochs : int, optional
        Passes over the training inputs, instead of steps; an incomplete last batch counts in stage 2 only.
    map : str
        ``product``, or one factor alone: ``classification`` or ``repair``.
    residual : str
        Scale of the squared repair: ``calibrated`` once on held-out normal images, or ``minmax`` of each image, which
        makes its largest residual 1 even where nothing is wrong.
    blur : float
        Standard deviation of the final Gaussian in input pixels; 0 is none.
    input_size : int, optional
        Input height and width where the view is the whole image: there the blur is as many times wider as the image
        is larger. Without it an input pixel is a native pixel.
    """

    title = "ISSTAD"
    paper = "Jin et al., arXiv 2303.17354"
    weights_licence = "bundled: Apache-2.0; MAE (default backbones): CC-BY-NC-4.0, no commercial use; others: see timm"
    image_score = "mean"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:224:bilinear-aliased", _PAPER),
        "paper-base": Preset("whole:224:bilinear-aliased", {**_PAPER, "backbone": "vit_base_patch16_224.mae"}),
        "native": Preset("tiled:224:56"),
        "demo": Preset(
            "tiled:128:32",
            {
                "backbone": "vit_tiny_patch16_224",
                "weights": "bundled",
                "decoder_width": 128,
                "decoder_heads": 4,
                "decoder_depth": 4,
                "mae_depth": 2,
                "mae_lr": 5e-4,
                "lr": 4e-3,
                "mae_batch_size": 8,
                "batch_size": 4,
                "mae_steps": 30,
                "steps": 240,
            },
        ),
    }

    residual_scale: Tensor

    def __init__(
        self,
        backbone: str = "vit_large_patch16_224.mae",
        weights: Weights = "pretrained",
        patch: int | None = None,
        decoder_width: int = 512,
        decoder_heads: int = 16,
        decoder_depth: int = 12,
        mae_depth: int = 6,
        mask_ratio: float = 0.75,
        crop_area: float = 0.2,
        corruption: Generator = "mixture",
        corruption_share: float = 2 / 3,
        mae_lr: float = 1e-3 * 20 / 256,
        lr: float = 5e-4,
        lr_period: int | None = None,
        clip: float | None = 1.0,
        mae_batch_size: int = 20,
        batch_size: int = 16,
        mae_steps: int | None = 4000,
        mae_epochs: int | None = None,
        steps: int | None = 6000,
        epochs: int | None = None,
        map: Literal["product", "classification", "repair"] = "product",  # noqa: A002 - the option's name for people
        residual: Literal["calibrated", "minmax"] = "calibrated",
        blur: float = 1.0,
        input_size: int | None = None,
    ) -> None:
        super().__init__()
        for option, share in (("mask_ratio", mask_ratio), ("corruption_share", corruption_share)):
            if not 0 < share < 1:
                raise HrbenchError(f"{option} of isstad is {share}, expected more than 0 and less than 1")
        if not 0 < crop_area <= 1:
            raise HrbenchError(f"crop_area of isstad is {crop_area}, expected more than 0 and at most 1")
        if not 0 < mae_depth <= decoder_depth:
            raise HrbenchError(f"mae_depth of isstad is {mae_depth}, expected 1 to decoder_depth, {decoder_depth}")
        if blur < 0:
            raise HrbenchError(f"blur of isstad is {blur}, expected 0 or more")
        self._painting = Budget("isstad", mae_batch_size, mae_steps, mae_epochs, "mae_")
        self._repairing = Budget("isstad", batch_size, steps, epochs)
        self._painting_lr, self._repairing_lr = mae_lr, lr
        self._lr_period, self._clip = lr_period, clip
        self.network = MaskedAutoencoder(
            backbone,
            weights,
            patch=patch,
            width=decoder_width,
            heads=decoder_heads,
            depth=decoder_depth,
            given_depth=mae_depth,
        )
        self.classifier = nn.Linear(decoder_width, 2 * self.network.patch**2)
        self.multiple = self.network.patch
        self.register_buffer("residual_scale", torch.ones(()))
        self._depth, self._mae_depth = decoder_depth, mae_depth
        self._mask_ratio, self._crop_area = mask_ratio, crop_area
        self._corruption, self._corruption_share = corruption, corruption_share
        self._map, self._residual, self._blur, self._input_size = map, residual, blur, input_size

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Train the masked autoencoder, then all of the decoder on corrupted images."""
        decoder = self.network.decoder
        unused = {id(p) for block in list(decoder.blocks)[self._mae_depth :] for p in block.parameters()}
        painting = adamw((p for p in self.network.parameters() if id(p) not in unused), self._painting_lr)
        steps = self._painting.of(len(normals))
        set_rate(painting, steps, warmup=round(steps * _WARMUP))
        context.train(
            normals,
            self.painting_loss,
            painting,
            steps=steps,
            batch_size=self._painting.batch_size,
            description="paint",
        )
        repairing = adamw(self.repairing_parameters(), self._repairing_lr)
        steps = self._repairing.of(len(normals), incomplete=True)
        if self._lr_period is None:
            set_rate(repairing, steps, least=_LEAST_RATE)
        else:
            of_a_pass = self._repairing.of_a_pass(len(normals), incomplete=True)
            set_wave(repairing, of_a_pass, period=self._lr_period, least=_LEAST_RATE)
        if self._clip is not None:
            clip_gradients(repairing, self._clip)
        context.train(
            normals, self.loss, repairing, steps=steps, batch_size=self._repairing.batch_size, description="repair"
        )

    def repairing_parameters(self) -> list[nn.Parameter]:
        """Return what stage 2 trains: the decoder without its mask token, and the head."""
        decoder = self.network.decoder
        return [p for p in (*decoder.parameters(), *self.classifier.parameters()) if p is not decoder.mask_token]

    def painting_loss(self, batch: Tensor) -> Tensor:
        """Return stage 1's loss: the mean squared error over hidden patches, of normalised pixels."""
        images = self.network.normalised(random_crops(batch, self._crop_area))
        painted, hidden = self.network.paint(images, mask_ratio=self._mask_ratio, blocks=self._mae_depth)
        return masked_error(painted, images, hidden, self.network.patch)

    def loss(self, batch: Tensor) -> Tensor:
        """Return stage 2's loss: classification, plus half the squared error and a tenth of 1 - SSIM of the repair.

        The target is the clean image. With the corrupted one as target, as in the released code, the network learns
        to copy.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        drawn = corrupt(batch, rng, generator=self._corruption, probability=self._corruption_share)
        repaired, logits = self.look(self.network.normalised(drawn.images))
        clean = self.network.normalised(batch)
        with full_precision(batch.device):  # the similarity is a ratio of small differences
            return (
                classification_loss(logits, drawn.labels)
                + _REPAIR_WEIGHT * functional.mse_loss(repaired, clean)
                + _SSIM_WEIGHT * (1 - ssim(self.network.denormalised(repaired), batch))
            )

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Repair and classify; the encoder is frozen. Both heads run in float32: half its bits would be ties.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W), normalised.

        Returns
        -------
        Tensor
            (B, 3, H, W) repaired, normalised.
        Tensor
            (B, K, 2, H, W) logits of normal and defective after each of the K decoder blocks.
        """
        grid = self.network.grid(images)
        with torch.no_grad():
            tokens = self.network.encode(images)
        decoded = self.network.decode(tokens, grid, blocks=self._depth)
        with full_precision(images.device):
            logits = [unpatchify(self.classifier(x.float()), grid, self.network.patch) for x in decoded]
        return self.network.pixels(decoded[-1], grid), torch.stack(logits, dim=1)

    def predict(self, batch: Tensor) -> Prediction:
        """Return the probability of a defect, mean over decoder blocks, and the squared repair, mean over channels."""
        images = self.network.normalised(batch)
        repaired, logits = self.look(images)
        classification = (logits[:, :, 1] - logits[:, :, 0]).sigmoid().mean(dim=1)
        return Prediction({"classification": classification, "repair": (repaired - images).square().mean(dim=1)})

    def calibrate(self, maps: Iterable[dict[str, Tensor]]) -> None:
        """Take as unit of the squared repair its 99.5th percentile, mean over the held-out normal images."""
        found = []
        for item in maps:
            values = item["repair"].flatten()
            found.append(values.kthvalue(max(1, math.ceil(_RESIDUAL_QUANTILE * len(values)))).values)
        if found:
            self.residual_scale.copy_(torch.stack(found).mean().clamp(min=1e-12))

    def finish(self, maps: dict[str, Tensor]) -> Tensor:
        """Multiply the merged maps and blur the product.

        The product does not saturate although the probability does: the squared repair has no upper end.
        """
        classification, residual = maps["classification"], maps["repair"]
        if self._residual == "minmax":
            residual = (residual - residual.min()) / (residual.max() - residual.min()).clamp(min=1e-12)
        else:
            residual = residual / self.residual_scale
        combined = {
            "product": classification * residual,
            "classification": classification,
            "repair": residual,
        }[self._map]
        if not self._blur:
            return combined
        height, width = combined.shape
        pitch = [n / self._input_size if self._input_size else 1.0 for n in (height, width)]
        return gaussian_blur(combined, (self._blur * pitch[0], self._blur * pitch[1]))

    def weights_record(self) -> dict[str, str]:
        """Return where the weights came from before stage 1; all of them are learnt further, hence saved."""
        return {"encoder": self.network.origin}


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the weighted cross-entropy over all pixels of all maps; a normal pixel counts three times.

    Parameters
    ----------
    logits : Tensor
        (B, K, 2, H, W) of normal and defective.
    labels : Tensor
        (B, H, W) bool, True on defects.
    """
    target = labels.long()[:, None].expand(-1, logits.shape[1], -1, -1)
    weight = torch.tensor(_CLASS_WEIGHTS).to(logits, non_blocking=True)
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), weight=weight)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean structural similarity of two batches, (B, C, H, W) in [0, 1]: 1 where they are equal.

    Wang et al., IEEE Transactions on Image Processing 13(4), 600-612 (2004): Gaussian window of 11 x 11 pixels and
    standard deviation 1.5. Outside the image there are zeros.
    """
    moments = torch.stack((first, second, first.square(), second.square(), first * second))
    mean_1, mean_2, square_1, square_2, product = gaussian_blur(moments, (1.5, 1.5), radius=5, zeros=True)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1.square() + mean_2.square() + c1)
    variances = square_1 - mean_1.square() + square_2 - mean_2.square()
    structure = (2 * (product - mean_1 * mean_2) + c2) / (variances + c2)
    similarity: Tensor = (luminance * structure).mean()
    return similarity


def gaussian_blur(
    images: Tensor, sigma: tuple[float, float], *, radius: int | None = None, zeros: bool = False
) -> Tensor:
    """Blur (..., H, W) images with a Gaussian.

    Parameters
    ----------
    images : Tensor
    sigma : (float, float)
        Standard deviations along height and width in pixels.
    radius : int, optional
        Reach of the window in pixels; by default four standard deviations.
    zeros : bool
        Outside the image there are zeros. By default it is mirrored there, with its border pixels twice.
    """

    def along(x: Tensor, deviation: float) -> Tensor:
        # Bands of a dense matrix: on a CPU ten times as fast as a convolution with one channel.
        reach = math.ceil(4 * deviation) if radius is None else radius

        def window(distance: Tensor) -> Tensor:
            return torch.exp(-0.5 * (distance / deviation).square()) * (distance.abs() <= reach)

        total = window(torch.arange(-reach, reach + 1, device=x.device)).sum()
        length, bands = x.shape[-2], []
        position = torch.arange(length, device=x.device)
        for start in range(0, length, _BAND):
            rows = position[start : start + _BAND, None]
            near = slice(max(0, start - reach), start + len(rows) + reach)
            columns = position[near]
            weights = window(rows - columns)
            if not zeros and len(columns) < len(rows) + 2 * reach:
                # Mirrored at both ends, the axis has twice its length as period.
                turns = reach // (2 * length) + 1
                for shift in range(-2 * turns * length, 2 * turns * length + 1, 2 * length):
                    weights += window(rows + columns + 1 - shift)
                    if shift:
                        weights += window(rows - columns - shift)
            weights = weights / (total.to(weights) if zeros else weights.sum(dim=1, keepdim=True))
            bands.append(weights.to(x.dtype) @ x[..., near, :])
        return torch.cat(bands, dim=-2)

    return along(along(images, sigma[0]).transpose(-1, -2), sigma[1]).transpose(-1, -2)
