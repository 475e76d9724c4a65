"""How good are the features? One Gaussian per image set, no learning, seconds: for watching a pretraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import hrbench
from hrbench.data import Category
from hrbench.engine.views import image_tensor, to_unit
from hrbench.imaging import read_image, read_mask

__all__ = ["gaussian", "joined", "mahalanobis", "nearest", "probe", "probe_all"]

Features = Callable[[Tensor], Sequence[Tensor]]

_AT_ONCE = 2048  # positions whose distances to all of a memory are held at a time


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Return (B, sum C, h, w): all maps at the size of the first."""
    size = maps[0].shape[-2:]
    return torch.cat([functional.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps], dim=1)


def gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (C,) and the inverse Cholesky factor (C, C) of the covariance of (N, C) features."""
    mean = rows.mean(dim=0)
    covariance = torch.cov(rows.T.double())
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)
    eye = torch.eye(len(factor), dtype=torch.float64)
    return mean, torch.linalg.solve_triangular(factor, eye, upper=False).float()


def mahalanobis(features: Tensor, mean: Tensor, whiten: Tensor) -> Tensor:
    """Return the (B, h, w) squared distances per channel of (B, C, h, w) features."""
    centred = features - mean[:, None, None]
    return torch.einsum("dc,bchw->bdhw", whiten, centred).square().mean(dim=1)


def nearest(features: Tensor, memory: Tensor) -> Tensor:
    """Return the (B, h, w) distances of (B, C, h, w) features to the nearest of (N, C) rows."""
    queries, squares = features.flatten(2).transpose(1, 2).flatten(0, 1), memory.square().sum(dim=1)
    # The query's own square is the same for all rows: of the matrix only products are needed.
    least = [torch.addmm(squares, part, memory.T, alpha=-2).amin(dim=1) for part in queries.split(_AT_ONCE)]
    distance = (torch.cat(least) + queries.square().sum(dim=1)).clamp(min=0).sqrt()
    return distance.reshape(len(features), *features.shape[-2:])


@torch.no_grad()
def probe(features: Features, category: Category, *, samples: int = 100_000) -> dict[str, float]:
    """Fit a Gaussian to the features of the training images; return metrics of its maps of the test images.

    Parameters
    ----------
    features : callable
        (B, 3, H, W) in [0, 1] to maps, finest first.
    category : Category
        Its images are taken whole; the right and lower rest that is no multiple of 16 px is cut off.
    samples : int
        Positions used for the Gaussian.
    """

    def load(path: Path) -> tuple[Tensor, tuple[int, int]]:
        image = to_unit(image_tensor(read_image(path))[None], torch.device("cpu"))
        height, width = image.shape[-2] // 16 * 16, image.shape[-1] // 16 * 16
        return joined(features(image[..., :height, :width])), (height, width)

    normals = [sample for sample in category.train if sample.label == 0]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for sample in normals:
        cells = load(sample.image)[0].flatten(2)[0].T
        rows.append(cells[torch.randperm(len(cells), generator=generator)[: samples // len(normals)]])
    mean, whiten = gaussian(torch.cat(rows))
    maps, masks = [], []
    for sample in category.test:
        found, (height, width) = load(sample.image)
        scores = functional.interpolate(mahalanobis(found, mean, whiten)[None], (height, width), mode="bilinear")
        maps.append(scores[0, 0].numpy())
        masks.append(None if sample.mask is None else read_mask(sample.mask)[:height, :width])
    result = hrbench.evaluate(maps, masks)
    return {
        "pixel_auroc": result.value("pixel_auroc"),
        "aupro": result.value("aupro", fpr_limit=0.05),
        "aupro_tiny": result.value("aupro", "tiny", 0.05),
    }


def probe_all(features: Features, categories: Sequence[Category]) -> dict[str, float]:
    """Probe several categories; names are prefixed by the category's and a slash."""
    return {f"{c.name}/{k}": v for c in categories for k, v in probe(features, c).items()}
