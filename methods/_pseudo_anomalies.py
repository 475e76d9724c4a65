"""Pseudo-anomalies: normal images with drawn defects, and exact labels of what was changed.

Five generators, all free of downloads, for methods that learn to tell a defect from its surroundings:

``perlin``
    DRAEM's (arXiv 2108.07610): a thresholded Perlin mask through which a texture shines. Textures are crops
    of other images of the batch, or procedural, with three random colour operations.
``polygon``, ``patches``
    ISSTAD's two (arXiv 2303.17354): the whole image is altered once and seen through up to three large shapes; or
    up to a hundred rectangles are altered in place. ``polygon`` was published for whole images at camera pitch: its
    lengths in pixels are here thousandths of the shorter side.
``tiny``, ``sized``
    This project's: blobs with log-uniform area, of 3 to 32 px diameter, or of 3 px to a third of the image.
``mixture``
    Per image: kin of ``patches`` with probability 0.4, of ``polygon`` 0.3, or ``tiny`` 0.3. The first two are this
    project's, for tiles: lengths are in pixels, grey and flip always happen, colours change in a fixed order.

A label marks what really changed: at most 8/255 of difference in every channel is no defect, so that flipping a flat
region teaches nothing false. Pixels that are not labelled are bit-equal to the clean image.

Images are corrupted at the pitch that they come in: a 3 px blob is 3 px of the camera on a native tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hrbench.errors import HrbenchError, unknown_name
from hrbench.precision import full_precision

from ._defect_shapes import blob, perlin_noise, simple_shape
from ._image_operations import blurred, colour_jittered, grey, jittered, per_channel, rotated, size_of
from ._textures import texture

__all__ = ["GENERATORS", "VISIBLE", "Corrupted", "Generator", "corrupt"]

Generator = Literal["perlin", "polygon", "patches", "tiny", "sized", "mixture"]
GENERATORS: tuple[Generator, ...] = get_args(Generator)

VISIBLE = 8 / 255
"""Least change of a channel, in [0, 1], that makes a pixel a defect."""

_LEAST_SIDE = 16
_SMALLEST, _TINY = 3.0, 32.0  # equivalent diameters of blobs in pixels

_FLIPS = ((1,), (2,), (1, 2))

_COLOUR: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "jitter": lambda image, rng: jittered(image, 0.8, 0.4, rng),
    "grey": lambda image, rng: grey(image),
    "blur": lambda image, rng: blurred(image, rng.uniform(15, 20)),
}
_COLOUR_CHANGES = (("jitter",), ("grey",), ("blur",), ("jitter", "grey"), ("jitter", "blur"), ("grey", "blur"))

_PUBLISHED_COLOUR = _COLOUR | {
    "jitter": lambda image, rng: colour_jittered(image, 0.8, 0.4, rng),
    "blur": lambda image, rng: blurred(image, _thousandth(image) * rng.uniform(15, 20)),
}

_PATCH: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "jitter": lambda image, rng: jittered(image, 0.4, 0.1, rng),
    "grey": lambda image, rng: grey(image),
    "blur": lambda image, rng: blurred(image, rng.uniform(0.1, 2)),
    "flip": lambda image, rng: image.flip(_FLIPS[rng.integers(2)]),
}
_PUBLISHED_PATCH = _PATCH | {
    "jitter": lambda image, rng: colour_jittered(image, 0.4, 0.1, rng),
    "grey": lambda image, rng: grey(image) if rng.random() < 0.5 else image,
    "flip": lambda image, rng: image.flip(_FLIPS[rng.integers(2)]) if rng.random() < 0.5 else image,
}
_PATCH_CHANGES = (
    ("jitter",),
    ("grey",),
    ("blur",),
    ("flip",),
    ("jitter", "blur"),
    ("jitter", "flip"),
    ("grey", "blur"),
    ("jitter", "blur", "flip"),
)


@dataclass(frozen=True)
class Corrupted:
    """A batch with pseudo-anomalies.

    Attributes
    ----------
    images : Tensor
        (B, 3, h, w) float32 in [0, 1], on the device of the clean batch; equal to it where not labelled.
    labels : Tensor
        (B, h, w) bool, True on defects.
    """

    images: Tensor
    labels: Tensor


def corrupt(
    batch: Tensor,
    rng: np.random.Generator,
    *,
    generator: Generator = "mixture",
    probability: float = 2 / 3,
    within: Tensor | None = None,
) -> Corrupted:
    """Draw pseudo-anomalies into a batch of normal images.

    Parameters
    ----------
    batch : Tensor
        (B, 3, h, w) float32 in [0, 1], sides of at least 16 px. The other images are sources of texture.
    rng : numpy.random.Generator
        The only source of randomness: equal generators give equal bits on the CPU, in a run in bfloat16 too.
    generator : str
        One of :data:`GENERATORS` (see the module).
    probability : float
        That an image is corrupted. One whose drawn defect changes nothing visible stays clean.
    within : Tensor, optional
        (B, h, w) bool: where defects may be.

    Raises
    ------
    HrbenchError
        For an unknown generator, a probability outside [0, 1], or images of another shape.

    Examples
    --------
    >>> import numpy as np, torch
    >>> found = corrupt(torch.rand(4, 3, 64, 64), np.random.default_rng(0), generator="tiny", probability=1.0)
    >>> found.labels.shape
    torch.Size([4, 64, 64])
    """
    if generator not in GENERATORS:
        raise unknown_name("pseudo-anomaly generator", generator, GENERATORS)
    if not 0 <= probability <= 1:
        raise HrbenchError(f"probability of pseudo-anomalies is {probability}, expected 0 to 1")
    if batch.ndim != 4 or batch.shape[1] != 3 or min(batch.shape[2:]) < _LEAST_SIDE:
        raise HrbenchError(
            f"pseudo-anomalies: images are {tuple(batch.shape)}, expected (B, 3, h, w) of {_LEAST_SIDE} px or more"
        )
    images, labels = batch.clone(), torch.zeros_like(batch[:, 0], dtype=torch.bool)
    with full_precision(batch.device):  # images, no features: turned colours and blurs are products
        for index, clean in enumerate(batch):
            if rng.random() >= probability:
                continue
            draw = _DRAW.get(generator) or _MIXTURE[rng.choice(len(_MIXTURE), p=_SHARES)]
            drawn, mask = draw(clean, batch, rng)
            if within is not None:
                mask &= within[index]
            labels[index] = _changed(clean, drawn, mask)
            images[index] = torch.where(labels[index], drawn.clamp(0, 1), clean)
    return Corrupted(images, labels)


def _changed(clean: Tensor, drawn: Tensor, mask: Tensor) -> Tensor:
    """Return where in the mask a channel changed visibly.

    A textured region changes almost everywhere but by chance not at some pixels: those with a changed majority
    among the mask's pixels of their 5 x 5 neighbourhood count too. A hole that is larger stays a hole.
    """
    changed = mask & ((drawn.clamp(0, 1) - clean).abs().amax(dim=0) > VISIBLE)
    around = torch.stack([changed, mask]).float()[None]
    for kernel in ((5, 1), (1, 5)):  # one axis at a time: a fifth of the time
        around = functional.avg_pool2d(around, kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2))
    around = around[0]
    return changed | (mask & (2 * around[0] > around[1]))


def _perlin(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    size = size_of(clean)
    cells = (int(2 ** rng.integers(6)), int(2 ** rng.integers(6)))
    noise = perlin_noise(size, cells, rng).to(clean.device, non_blocking=True)
    mask = rotated(noise[None], rng.uniform(-90, 90))[0] > 0.5
    opacity = 1 - rng.uniform(0, 0.8)
    return torch.lerp(clean, texture(sources, size, rng), opacity), mask


def _polygon(
    clean: Tensor, sources: Tensor, rng: np.random.Generator, *, published: bool = False
) -> tuple[Tensor, Tensor]:
    del sources
    colour, unit = (_PUBLISHED_COLOUR, _thousandth(clean)) if published else (_COLOUR, 1.0)
    kind = rng.integers(3)
    if kind == 0:
        drawn = clean
        for change in _COLOUR_CHANGES[rng.integers(len(_COLOUR_CHANGES))]:
            drawn = colour[change](drawn, rng)
    elif kind == 1:
        drawn = clean.flip(_FLIPS[rng.integers(3)])
    else:
        drawn = (clean + _uniform(clean, rng)) / 2
    mask = torch.zeros_like(clean[0], dtype=torch.bool)
    for _ in range(rng.integers(1, 4)):
        mask |= simple_shape(size_of(clean), rng, unit=unit).to(clean.device, non_blocking=True)
    return drawn, mask


def _patches(
    clean: Tensor, sources: Tensor, rng: np.random.Generator, *, published: bool = False
) -> tuple[Tensor, Tensor]:
    del sources
    changes = _PUBLISHED_PATCH if published else _PATCH
    height, width = size_of(clean)
    drawn, mask = clean.clone(), torch.zeros_like(clean[0], dtype=torch.bool)
    for _ in range(rng.integers(1, 101)):
        rows, columns = int(rng.uniform(8, height / 8 + 8)), int(rng.uniform(8, width / 8 + 8))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        window = (..., slice(top, top + rows), slice(left, left + columns))
        patch = drawn[window]
        for change in _PATCH_CHANGES[rng.integers(len(_PATCH_CHANGES))]:
            patch = changes[change](patch, rng)
        drawn[window] = patch
        mask[window] = True
    return drawn, mask


def _tiny(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    return _blobs(clean, sources, rng, min(_TINY, min(size_of(clean)) / 2))


def _sized(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    return _blobs(clean, sources, rng, min(size_of(clean)) / 3)


def _blobs(clean: Tensor, sources: Tensor, rng: np.random.Generator, largest: float) -> tuple[Tensor, Tensor]:
    """Draw one to eight blobs whose equivalent diameters are log-uniform, and hence their areas."""
    drawn, mask = clean.clone(), torch.zeros_like(clean[0], dtype=torch.bool)
    for _ in range(rng.integers(1, 9)):
        diameter = math.exp(rng.uniform(math.log(_SMALLEST), math.log(max(_SMALLEST, largest))))
        top, left, cover = blob(size_of(clean), diameter, rng)
        cover = cover.to(clean.device, non_blocking=True)
        window = (..., slice(top, top + cover.shape[0]), slice(left, left + cover.shape[1]))
        patch = drawn[window]
        content = _BLOB_CONTENT[rng.integers(len(_BLOB_CONTENT))](patch, sources, rng)
        seen = ((content.clamp(0, 1) - patch).abs() * cover > VISIBLE).any()  # unlike a smudge on a flat surface
        if patch.is_cuda:  # the host does not wait to know, and draws both
            content = torch.where(seen, content, _shift(patch, sources, rng))
        elif not seen:
            content = _shift(patch, sources, rng)
        drawn[window] = torch.lerp(patch, content.clamp(0, 1), cover)
        mask[window] |= cover > 0
    return drawn, mask


def _shift(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    """Add an offset, grey or coloured, to where there is room for it."""
    del sources
    colour = np.ones(3) if rng.random() < 0.5 else rng.uniform(0.3, 1, 3)
    brighter = patch.mean() < _rounded_up(rng.random())
    offset = rng.uniform(0.08, 0.5) * per_channel(colour, patch)
    return patch + torch.where(brighter, offset, -offset)


def _rounded_up(value: float) -> float:
    """Return the least float32 that is no less: below the one are the same float32 as below the other."""
    found = np.float32(value)
    return float(found if float(found) >= value else np.nextafter(found, np.float32(np.inf)))


def _noise(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    del sources
    noise = torch.from_numpy(rng.standard_normal(patch.shape, dtype=np.float32))
    return patch + rng.uniform(0.1, 0.3) * noise.to(patch.device, non_blocking=True)


def _pasted(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.lerp(patch, texture(sources, size_of(patch), rng), rng.uniform(0.2, 1))


def _smudge(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    """Wipe the surface's own texture away, with a faint shade."""
    del sources
    faint = rng.uniform(0.02, 0.1) * rng.choice([-1, 1])
    return patch.lerp(patch.mean(dim=(1, 2), keepdim=True), rng.uniform(0.6, 1)).add(faint)


_BLOB_CONTENT = (_shift, _noise, _pasted, _smudge)


def _thousandth(image: Tensor) -> float:
    return min(size_of(image)) / 1000


def _uniform(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(tuple(image.shape), dtype=np.float32)).to(image.device, non_blocking=True)


_DRAW: dict[str, Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]] = {
    "perlin": _perlin,
    "polygon": partial(_polygon, published=True),
    "patches": partial(_patches, published=True),
    "tiny": _tiny,
    "sized": _sized,
}
_MIXTURE, _SHARES = (_patches, _polygon, _tiny), (0.4, 0.3, 0.3)
