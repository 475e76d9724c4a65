"""Pseudo-anomalies: normal images with drawn defects, and exact labels of what was changed.

Five generators, all free of downloads, for methods that learn to tell a defect from its surroundings:

``perlin``
    DRAEM's (arXiv 2108.07610): a thresholded Perlin mask through which a texture shines. Textures are crops
    of other images of the batch, or procedural, with three random colour operations.
``polygon``, ``patches``
    ISSTAD's two (arXiv 2303.17354): the whole image is altered once and seen through up to three large shapes; or
    up to a hundred rectangles are altered in place.
``tiny``, ``sized``
    This project's: blobs with log-uniform area, of 3 to 32 px diameter, or of 3 px to a third of the image.
``mixture``
    Per image: ``patches`` with probability 0.4, ``polygon`` 0.3, ``tiny`` 0.3.

A label marks what really changed: at most 8/255 of difference in every channel is no defect, so that flipping a flat
region teaches nothing false. Pixels that are not labelled are bit-equal to the clean image.

Images are corrupted at the pitch that they come in: a 3 px blob is 3 px of the camera on a native tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hrbench.errors import HrbenchError, unknown_name

__all__ = ["GENERATORS", "VISIBLE", "Corrupted", "corrupt", "perlin_noise", "texture"]

VISIBLE = 8 / 255
"""Least change of a channel, in [0, 1], that makes a pixel a defect."""

_LEAST_SIDE = 16
_MIXTURE = (("patches", 0.4), ("polygon", 0.3), ("tiny", 0.3))
_LUMA = (0.299, 0.587, 0.114)
_YIQ = np.array([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])  # brightness and two axes of colour
_FROM_YIQ = np.linalg.inv(_YIQ)
_SMALLEST, _TINY = 3.0, 32.0  # equivalent diameters of blobs in pixels


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
    generator: str = "mixture",
    probability: float = 2 / 3,
    within: Tensor | None = None,
) -> Corrupted:
    """Draw pseudo-anomalies into a batch of normal images.

    Parameters
    ----------
    batch : Tensor
        (B, 3, h, w) float32 in [0, 1], sides of at least 16 px. The other images are sources of texture.
    rng : numpy.random.Generator
        The only source of randomness: equal generators give equal bits on the CPU.
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
    for index, clean in enumerate(batch):
        if rng.random() >= probability:
            continue
        chosen = generator
        if chosen == "mixture":
            chosen = str(rng.choice([name for name, _ in _MIXTURE], p=[share for _, share in _MIXTURE]))
        drawn, mask = _DRAW[chosen](clean, batch, rng)
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


# --- generators: (clean (3, h, w), sources (B, 3, h, w), rng) -> drawn (3, h, w), mask (h, w) ---------------------


def _perlin(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    size = _size(clean)
    cells = (int(2 ** rng.integers(6)), int(2 ** rng.integers(6)))
    noise = perlin_noise(size, cells, rng).to(clean.device)
    mask = _rotated(noise[None], rng.uniform(-90, 90))[0] > 0.5
    opacity = 1 - rng.uniform(0, 0.8)
    return torch.lerp(clean, texture(sources, size, rng), opacity), mask


def _polygon(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    del sources
    kind = rng.integers(3)
    if kind == 0:
        drawn = clean
        for change in _COLOUR_CHANGES[rng.integers(len(_COLOUR_CHANGES))]:
            drawn = _COLOUR[change](drawn, rng)
    elif kind == 1:
        drawn = clean.flip(_FLIPS[rng.integers(3)])
    else:
        drawn = (clean + _uniform(clean, rng)) / 2
    mask = torch.zeros_like(clean[0], dtype=torch.bool)
    for _ in range(rng.integers(1, 4)):
        mask |= _shape(_size(clean), rng).to(clean.device)
    return drawn, mask


def _patches(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    del sources
    height, width = _size(clean)
    drawn, mask = clean.clone(), torch.zeros_like(clean[0], dtype=torch.bool)
    for _ in range(rng.integers(1, 101)):
        rows, columns = int(rng.uniform(8, height / 8 + 8)), int(rng.uniform(8, width / 8 + 8))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        window = (..., slice(top, top + rows), slice(left, left + columns))
        patch = drawn[window]
        for change in _PATCH_CHANGES[rng.integers(len(_PATCH_CHANGES))]:
            patch = _PATCH[change](patch, rng)
        drawn[window] = patch
        mask[window] = True
    return drawn, mask


def _tiny(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    return _blobs(clean, sources, rng, min(_TINY, min(_size(clean)) / 2))


def _sized(clean: Tensor, sources: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    return _blobs(clean, sources, rng, min(_size(clean)) / 3)


def _blobs(clean: Tensor, sources: Tensor, rng: np.random.Generator, largest: float) -> tuple[Tensor, Tensor]:
    """Draw one to eight blobs whose equivalent diameters are log-uniform, and hence their areas."""
    drawn, mask = clean.clone(), torch.zeros_like(clean[0], dtype=torch.bool)
    for _ in range(rng.integers(1, 9)):
        diameter = math.exp(rng.uniform(math.log(_SMALLEST), math.log(max(_SMALLEST, largest))))
        top, left, cover = _blob(_size(clean), diameter, rng)
        cover = cover.to(clean.device)
        window = (..., slice(top, top + cover.shape[0]), slice(left, left + cover.shape[1]))
        patch = drawn[window]
        content = _BLOB_CONTENT[rng.integers(len(_BLOB_CONTENT))](patch, sources, rng)
        if not ((content.clamp(0, 1) - patch).abs() * cover > VISIBLE).any():  # as a smudge on a flat surface
            content = _shift(patch, sources, rng)
        drawn[window] = torch.lerp(patch, content.clamp(0, 1), cover)
        mask[window] |= cover > 0
    return drawn, mask


_DRAW: dict[str, Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]] = {
    "perlin": _perlin,
    "polygon": _polygon,
    "patches": _patches,
    "tiny": _tiny,
    "sized": _sized,
}
GENERATORS = (*_DRAW, "mixture")


# --- masks ---------------------------------------------------------------------------------------------------------


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return gradient noise.

    Parameters
    ----------
    size : (int, int)
        Height and width in pixels; any, where DRAEM's needs multiples of the lattice.
    cells : (int, int)
        Cells of the lattice along each side.
    rng : numpy.random.Generator

    Returns
    -------
    Tensor
        (h, w) float32 in [-1, 1], zero at the corners of cells.
    """
    angles = 2 * math.pi * torch.from_numpy(rng.random((cells[0] + 1, cells[1] + 1), dtype=np.float32))
    gradients = angles.cos(), angles.sin()
    rows, columns = (torch.arange(n) * (c / n) for n, c in zip(size, cells, strict=True))
    row, column = rows.long(), columns.long()
    y, x = (rows - row)[:, None], (columns - column)[None]

    def slope(down: int, right: int) -> Tensor:
        along = [g[row + down][:, column + right] for g in gradients]
        return along[0] * (y - down) + along[1] * (x - right)

    def fade(t: Tensor) -> Tensor:
        return t**3 * (t * (6 * t - 15) + 10)

    upper = torch.lerp(slope(0, 0), slope(0, 1), fade(x))
    lower = torch.lerp(slope(1, 0), slope(1, 1), fade(x))
    return math.sqrt(2) * torch.lerp(upper, lower, fade(y))


def _shape(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return a rectangle, an ellipse or a polygon of 3 to 8 corners (even-odd), (h, w) bool."""
    height, width = size
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    kind = rng.integers(3)
    if kind == 2:
        corners = rng.uniform((0, 0), (height, width), (rng.integers(3, 9), 2)).tolist()
        inside = torch.zeros(size, dtype=torch.bool)
        for (y0, x0), (y1, x1) in zip(corners, [*corners[1:], corners[0]], strict=True):
            if y0 == y1:
                continue
            crossed = (rows > min(y0, y1)) & (rows <= max(y0, y1))
            inside ^= crossed & (columns < x0 + (rows - y0) * ((x1 - x0) / (y1 - y0)))
        return inside
    # The published margin of 50 px and least side of 10 px, within reason for small tiles.
    margin = [min(50, n // 2) for n in size]
    top, left = (rng.uniform(0, n - m) for n, m in zip(size, margin, strict=True))
    tall, wide = (rng.uniform(10, max(10, n - start)) for n, start in zip(size, (top, left), strict=True))
    if kind == 0:
        return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    y, x = (rows - top - tall / 2) / (tall / 2), (columns - left - wide / 2) / (wide / 2)
    return y**2 + x**2 < 1


def _blob(size: tuple[int, int], diameter: float, rng: np.random.Generator) -> tuple[int, int, Tensor]:
    """Return top, left and the (h, w) cover in [0, 1] of an irregular ellipse, clipped to the image."""
    stretch = math.exp(rng.uniform(0, math.log(2)))
    longer, shorter = diameter / 2 * stretch, diameter / 2 / stretch
    reach = 1.3 * longer + 1
    middle = rng.uniform((0, 0), size)
    (top, bottom), (left, right) = (
        (max(0, int(m - reach)), min(n, int(m + reach) + 1)) for m, n in zip(middle, size, strict=True)
    )
    y = torch.arange(top, bottom)[:, None] + 0.5 - float(middle[0])
    x = torch.arange(left, right)[None] + 0.5 - float(middle[1])
    turn = rng.uniform(0, math.pi)
    along = (math.cos(turn) * x + math.sin(turn) * y) / longer
    across = (math.cos(turn) * y - math.sin(turn) * x) / shorter
    angle = torch.atan2(across, along)
    outline = 1 + sum(rng.uniform(0, 0.2) / k * torch.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 5))
    distance = (outline - torch.hypot(along, across)) * shorter  # about pixels, inwards
    return top, left, (distance + 0.5).clamp(0, 1)


# --- what shows through the masks ----------------------------------------------------------------------------------


def texture(sources: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return a texture that needs no download.

    Parameters
    ----------
    sources : Tensor
        (B, 3, h, w) float32 in [0, 1]: every other texture is a turned and scaled crop of one of them.
    size : (int, int)
        Height and width in pixels.
    rng : numpy.random.Generator

    Returns
    -------
    Tensor
        (3, *size) float32 in [0, 1], after three of eight random operations (gamma, brightness, sharpness, colour,
        solarise, posterise, invert, autocontrast).
    """
    if rng.random() < 0.5:
        found = _crop(sources, size, rng)
    else:
        found = _PROCEDURAL[rng.integers(len(_PROCEDURAL))](size, rng).to(sources.device)
    for chosen in rng.choice(len(_OPERATIONS), 3, replace=False):
        found = _OPERATIONS[chosen](found, rng).clamp(0, 1)
    return found


def _crop(sources: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    source = sources[rng.integers(len(sources))]
    limit = min(source.shape[1:])
    side = min(limit, max(2, int(max(size) * rng.uniform(0.25, 1))))
    top, left = (int(rng.integers(n - side + 1)) for n in source.shape[1:])
    crop = source[:, top : top + side, left : left + side].rot90(int(rng.integers(4)), (1, 2))
    if rng.random() < 0.5:
        crop = crop.flip(2)
    return _resized(crop, size)


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    octaves = [_resized(torch.from_numpy(rng.random((3, n, n), dtype=np.float32)), size) / n for n in (4, 8, 16, 32)]
    return _stretched(torch.stack(octaves).sum(dim=0), rng)


def _stripes(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    wave = torch.sin(_ramp(size, rng))
    return _two_colours(wave if rng.random() < 0.5 else wave.sign(), rng)


def _checker(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    return _two_colours((torch.sin(_ramp(size, rng)) * torch.sin(_ramp(size, rng))).sign(), rng)


_PROCEDURAL = (_clouds, _stripes, _checker)


def _ramp(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Return a phase in radians that rises in a random direction with a period of 4 to 64 px."""
    turn, step = rng.uniform(0, math.pi), 2 * math.pi / math.exp(rng.uniform(math.log(4), math.log(64)))
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    return step * (math.cos(turn) * columns + math.sin(turn) * rows) + rng.uniform(0, 2 * math.pi)


def _two_colours(wave: Tensor, rng: np.random.Generator) -> Tensor:
    """Map a wave in [-1, 1] between two random colours."""
    first, second = torch.from_numpy(rng.random((2, 3, 1, 1), dtype=np.float32))
    return torch.lerp(first, second, (wave + 1)[None] / 2)


def _stretched(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Stretch each channel to a random part of [0, 1]."""
    low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
    ends = torch.from_numpy(np.sort(rng.random((2, 3, 1, 1), dtype=np.float32), axis=0))
    return torch.lerp(ends[0], ends[1], (image - low) / (high - low).clamp(min=1e-6))


def _shift(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    """Add an offset, grey or coloured, to where there is room for it."""
    del sources
    colour = np.ones(3) if rng.random() < 0.5 else rng.uniform(0.3, 1, 3)
    room = 1 if rng.random() > float(patch.mean()) else -1
    return patch + room * rng.uniform(0.08, 0.5) * _column(colour, patch)


def _noise(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    del sources
    noise = torch.from_numpy(rng.standard_normal(patch.shape, dtype=np.float32)).to(patch.device)
    return patch + rng.uniform(0.1, 0.3) * noise


def _pasted(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.lerp(patch, texture(sources, _size(patch), rng), rng.uniform(0.2, 1))


def _smudge(patch: Tensor, sources: Tensor, rng: np.random.Generator) -> Tensor:
    """Wipe the surface's own texture away, with a faint shade."""
    del sources
    faint = rng.uniform(0.02, 0.1) * rng.choice([-1, 1])
    return patch.lerp(patch.mean(dim=(1, 2), keepdim=True), rng.uniform(0.6, 1)).add(faint)


_BLOB_CONTENT = (_shift, _noise, _pasted, _smudge)


# --- operations on images (3, h, w); results may leave [0, 1] slightly ---------------------------------------------


def _gamma(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.pow(image, _column(rng.uniform(0.5, 2, 3), image))


def _brightness(image: Tensor, rng: np.random.Generator) -> Tensor:
    return image * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30) / 255


def _sharpness(image: Tensor, rng: np.random.Generator) -> Tensor:
    around = functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    neighbours = around[:, 1:-1, :-2] + around[:, 1:-1, 2:] + around[:, :-2, 1:-1] + around[:, 2:, 1:-1]
    return torch.lerp((image + neighbours) / 5, image, rng.uniform(1, 3))


def _colour(image: Tensor, rng: np.random.Generator) -> Tensor:
    return _hue(image, rng.uniform(-0.2, 0.2), 1 + rng.uniform(-0.5, 0.5))


def _solarise(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.where(image < rng.uniform(0.12, 0.5), image, 1 - image)


def _posterise(image: Tensor, rng: np.random.Generator) -> Tensor:
    levels = 2 ** int(rng.integers(1, 5))
    return torch.div((image * levels).floor().clamp(max=levels - 1), levels - 1)


def _invert(image: Tensor, rng: np.random.Generator) -> Tensor:
    del rng
    return 1 - image


def _autocontrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    del rng
    low, high = image.amin(dim=(1, 2), keepdim=True), image.amax(dim=(1, 2), keepdim=True)
    return torch.div(image - low, (high - low).clamp(min=1e-6))


_OPERATIONS = (_gamma, _brightness, _sharpness, _colour, _solarise, _posterise, _invert, _autocontrast)


def _jitter(image: Tensor, strength: float, hue: float, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation by factors of 1 +- strength, and the hue by up to `hue` turns."""
    bright, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    brighter = (image * bright).clamp(0, 1)
    contrasted = torch.lerp(_grey(brighter).mean(), brighter, float(contrast)).clamp(0, 1)
    return _hue(contrasted, rng.uniform(-hue, hue), float(saturation)).clamp(0, 1)


def _hue(image: Tensor, turns: float, saturation: float) -> Tensor:
    """Turn and scale the colours about the grey axis."""
    sine, cosine = math.sin(2 * math.pi * turns), math.cos(2 * math.pi * turns)
    turned = np.array(
        [[1, 0, 0], [0, saturation * cosine, -saturation * sine], [0, saturation * sine, saturation * cosine]]
    )
    matrix = torch.from_numpy(_FROM_YIQ @ turned @ _YIQ).to(image)
    return (matrix @ image.flatten(1)).view_as(image)


def _grey(image: Tensor) -> Tensor:
    return (image * _column(_LUMA, image)).sum(dim=0, keepdim=True).expand_as(image)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian; a wide one on a coarser grid, where it is the same to the eye and costs little."""
    shrink = max(1, int(sigma / 3))
    size = _size(image)
    if shrink > 1:
        coarse = (max(1, size[0] // shrink), max(1, size[1] // shrink))
        image = functional.interpolate(image[None], coarse, mode="area")[0]
    down, across = (_gaussian(n, sigma / shrink).to(image) for n in _size(image))
    return _resized(down @ image @ across.T, size)


def _gaussian(length: int, sigma: float) -> Tensor:
    """Return the (length, length) matrix that blurs a signal; at the ends the weights that are left count."""
    steps = torch.arange(length) / sigma
    weights = torch.exp(-0.5 * (steps[:, None] - steps[None]) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


_FLIPS = ((1,), (2,), (1, 2))

_COLOUR: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "jitter": lambda image, rng: _jitter(image, 0.8, 0.4, rng),
    "grey": lambda image, rng: _grey(image),
    "blur": lambda image, rng: _blurred(image, rng.uniform(15, 20)),
}
_COLOUR_CHANGES = (("jitter",), ("grey",), ("blur",), ("jitter", "grey"), ("jitter", "blur"), ("grey", "blur"))

_PATCH: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "jitter": lambda image, rng: _jitter(image, 0.4, 0.1, rng),
    "grey": lambda image, rng: _grey(image),
    "blur": lambda image, rng: _blurred(image, rng.uniform(0.1, 2)),
    "flip": lambda image, rng: image.flip(_FLIPS[rng.integers(2)]),
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


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _column(values: tuple[float, ...] | np.ndarray, image: Tensor) -> Tensor:
    """Return three numbers as (3, 1, 1) on the image's device."""
    return torch.as_tensor(values, dtype=image.dtype, device=image.device).view(3, 1, 1)


def _uniform(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(tuple(image.shape), dtype=np.float32)).to(image.device)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if _size(image) == size:
        return image
    resized: Tensor = functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    return resized


def _rotated(image: Tensor, degrees: float) -> Tensor:
    """Rotate a (C, h, w) image about its centre; what comes from outside is zero."""
    height, width = _size(image)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    theta = torch.tensor([[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]]).to(image)
    grid = functional.affine_grid(theta[None], [1, *image.shape], align_corners=False)
    rotated: Tensor = functional.grid_sample(image[None], grid, align_corners=False)[0]
    return rotated
