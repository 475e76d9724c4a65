"""Procedural defects with exact masks: what the mask marks is what changed, visibly, and nothing else did.

A defect is a shape (which pixels) and a look (what happens to them). Shapes are cut to an exact area. Every
pixel of the shape changes by at least :data:`VISIBLE` grey levels in some channel, more than noise can hide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hrbench.data._render import DARKEST, LIGHTEST, Array, Scene, Size, smooth
from hrbench.data._shapes import Field, blob, stain, stroke

__all__ = ["KINDS", "VISIBLE", "add_defect"]

VISIBLE = 8.0
"""Least change of a defect pixel, in grey levels of its most changed channel."""

_EIGHT = np.ones((3, 3), dtype=bool)
_THIN = ("scratch", "crack")
_NOWHERE = np.float32(-np.inf)

Mask = NDArray[np.bool_]
Shape = Callable[[np.random.Generator, int, Size], Field]


@dataclasses.dataclass(frozen=True)
class _Region:
    """A shape inside a window of the image.

    Attributes
    ----------
    window : tuple of slice
        Rows and columns of the image.
    mask : ndarray of bool, shape (h, w)
        The shape, one 8-connected component.
    depth : ndarray of float32, shape (h, w)
        0 at the shape's edge and outside, 1 at its innermost pixel.
    """

    window: tuple[slice, slice]
    mask: Mask
    depth: Array


def add_defect(
    rng: np.random.Generator, scene: Scene, image: Array, taken: Mask, kind: str, area: float
) -> Mask | None:
    """Paint one defect into `image` and mark its pixels.

    Parameters
    ----------
    rng : Generator
    scene : Scene
        The defect-free view.
    image : ndarray of float32, shape (H, W, 3)
        Changed in place, at the returned pixels only.
    taken : ndarray of bool, shape (H, W)
        Pixels of defects that are there already.
    kind : str
        A key of :data:`KINDS`.
    area : float
        Wanted number of pixels; at least 4.

    Returns
    -------
    ndarray of bool, shape (H, W), or None
        The changed pixels, one component that touches no other; None if there was no room for it.
    """
    shape, look = KINDS[kind]
    for _ in range(8):
        region = _place(rng, scene, max(4, round(area)), shape, kind)
        if region is None:
            continue
        grown = np.zeros(taken.shape, dtype=bool)
        grown[region.window] = region.mask
        if not (ndimage.binary_dilation(region.mask, _EIGHT, iterations=3) & taken[region.window]).any():
            before = scene.image[region.window]
            after = look(rng, _Patch(scene, region, before))
            image[region.window] = np.where(
                region.mask[..., None], _visible(before, after, region.mask), image[region.window]
            )
            return grown
    return None


def _place(rng: np.random.Generator, scene: Scene, area: int, shape: Shape, kind: str) -> _Region | None:
    """Put a shape of `area` px somewhere on the part and cut it to that area."""
    size = (scene.image.shape[0], scene.image.shape[1])
    allowed, middle = scene.part, scene.part
    if kind == "missing_part" and scene.under.ndim == 3:
        # Where there is nothing to lose, nothing can be missing.
        gone = np.abs(scene.under - scene.image).max(axis=2) >= 2 * VISIBLE
        middle = gone if scene.part is None else gone & scene.part
        allowed = gone if scene.part is None else scene.part
    if middle is None:
        centre = (int(rng.integers(size[0])), int(rng.integers(size[1])))
    else:
        places = np.flatnonzero(middle)
        if places.size < 4:
            return None
        row, column = divmod(int(places[rng.integers(places.size)]), size[1])
        centre = (row, column)
    field, origin = shape(rng, area, size)
    top, left = centre[0] - origin[0], centre[1] - origin[1]
    if scene.part is None and kind in _THIN:
        # Cut off by the border, a line would have to grow broad to keep its area.
        top = min(max(top, 0), max(size[0] - field.shape[0], 0))
        left = min(max(left, 0), max(size[1] - field.shape[1], 0))
    y0, x0 = max(0, top), max(0, left)
    y1, x1 = min(size[0], top + field.shape[0]), min(size[1], left + field.shape[1])
    window = (slice(y0, y1), slice(x0, x1))
    field = field[y0 - top : y1 - top, x0 - left : x1 - left]
    if allowed is not None:
        field = np.where(allowed[window], field, _NOWHERE)
    room = int(np.isfinite(field).sum())
    if room < 4:
        return None
    count = min(area, room)
    cut = np.partition(field, field.size - count, axis=None)[field.size - count]
    labels, found = ndimage.label(field >= cut, structure=_EIGHT)
    if found > 1:
        labels = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    mask: Mask = labels.astype(bool)
    if mask.sum() < max(4, 0.3 * area):
        return None
    peak = float(field[mask].max())
    depth = np.where(mask, (field - cut) / max(peak - float(cut), 1e-6), 0).astype(np.float32)
    return _Region(window, mask, depth)


@dataclasses.dataclass(frozen=True)
class _Patch:
    """What a look works on: the region and the view before, both (h, w[, 3])."""

    scene: Scene
    region: _Region
    before: Array

    @property
    def shape(self) -> Size:
        """Height and width in px."""
        return self.before.shape[0], self.before.shape[1]

    def contrast(self, rng: np.random.Generator) -> np.float32:
        """Draw a change in grey levels that stands out from the texture here, more so for small defects."""
        grey = self.before.mean(axis=2)
        area = int(self.region.mask.sum())
        texture = float(grey.std())
        small = 1.0 + 1.2 * float(np.exp(-area / 150))
        return np.float32(np.clip((rng.uniform(12, 34) + rng.uniform(0.5, 1.1) * texture) * small, 18, 105))

    def sign(self, rng: np.random.Generator) -> np.float32:
        """Draw dark or bright, away from the end of the range that is near."""
        level = float(self.before[self.region.mask].mean())
        return np.float32(1.0 if rng.uniform(40, 200) > level else -1.0)

    def soft(self, edge: float) -> Array:
        """Return a weight (h, w, 1) that rises from the shape's edge to 1 within `edge` of its depth."""
        t = np.clip(self.region.depth / np.float32(edge), 0, 1)
        weight: Array = np.float32(0.35) + np.float32(0.65) * t * t * (3 - 2 * t)
        return weight[..., None]


def _spot(rng: np.random.Generator, patch: _Patch) -> Array:
    tint = rng.uniform(0.75, 1.0, 3).astype(np.float32)
    after: Array = patch.before + patch.sign(rng) * patch.contrast(rng) * tint * patch.soft(rng.uniform(0.2, 0.9))
    return after


def _scratch(rng: np.random.Generator, patch: _Patch) -> Array:
    groove = patch.sign(rng) * patch.contrast(rng) * patch.soft(0.7)
    chatter = 1 + np.float32(0.2) * smooth(rng, patch.shape, 4)
    after: Array = patch.before + groove * chatter[..., None]
    return after


def _crack(rng: np.random.Generator, patch: _Patch) -> Array:
    depth = np.float32(rng.uniform(0.45, 0.75))
    floor = np.float32(DARKEST) + np.float32(0.25) * patch.before
    dark = patch.contrast(rng) * np.float32(0.3)
    after: Array = patch.before + (floor - patch.before) * depth * patch.soft(0.5) - dark
    return after


def _stain(rng: np.random.Generator, patch: _Patch) -> Array:
    tints = [(0.80, 0.66, 0.46), (0.52, 0.52, 0.56), (0.62, 0.72, 0.86), (0.86, 0.60, 0.52)]
    tint = np.array(tints[rng.integers(len(tints))], dtype=np.float32)
    strength = np.float32(rng.uniform(0.35, 0.85))
    cloud = np.clip(1 + np.float32(0.18) * smooth(rng, patch.shape, 14), 0.5, 1.5)[..., None]
    rim = np.exp(-((patch.region.depth - np.float32(0.08)) ** 2) / np.float32(0.004))[..., None]
    cover = strength * cloud * patch.soft(0.25) + np.float32(0.15) * rim
    after: Array = patch.before * (1 - cover * (1 - tint)) - 6
    return after


def _missing_part(rng: np.random.Generator, patch: _Patch) -> Array:
    under = np.broadcast_to(patch.scene.under, patch.scene.image.shape)[patch.region.window]
    if patch.scene.under.ndim == 3:
        return under
    rough = 5 * smooth(rng, patch.shape, 3) + 4 * smooth(rng, patch.shape, 12)
    # Light from the upper left: the far wall of the hole is lit, the near one lies in shadow.
    rise = np.clip(patch.region.depth * 5, 0, 1)
    down, across = np.gradient(ndimage.gaussian_filter(rise, 1.5))
    wall = np.clip((down + across) * -90, -45, 45)
    after: Array = under + (rough + wall)[..., None]
    return after


def _blur(rng: np.random.Generator, patch: _Patch) -> Array:
    sigma = rng.uniform(2.0, 5.0)
    hazy = ndimage.gaussian_filter(patch.before, (sigma, sigma, 0))
    level = np.float32(214 if hazy.mean() < 150 else 90)
    uneven = 1 + np.float32(0.1) * smooth(rng, patch.shape, 30)
    haze = np.float32(rng.uniform(0.14, 0.3)) * uneven
    after: Array = hazy + (level - hazy) * haze[..., None]
    return after


def _colour_shift(rng: np.random.Generator, patch: _Patch) -> Array:
    amount = np.float32(rng.uniform(0.07, 0.17))
    push = rng.permutation(np.array([amount, rng.uniform(-0.04, 0.04), -amount], dtype=np.float32))
    after: Array = patch.before * (1 + push * patch.soft(0.15)) + 25 * push
    return after


def _texture_swap(rng: np.random.Generator, patch: _Patch) -> Array:
    """Put in the texture of another place, turned by a quarter and enlarged."""
    source = patch.scene.image.transpose(1, 0, 2)
    height, width = patch.shape
    zoom = rng.uniform(1.3, 2.2)
    rows = (rng.integers(source.shape[0]) + np.arange(height) / zoom).astype(np.int64) % source.shape[0]
    columns = (rng.integers(source.shape[1]) + np.arange(width) / zoom).astype(np.int64) % source.shape[1]
    swapped = source[rows[:, None], columns[None]]
    after: Array = swapped + np.float32(rng.choice([-1, 1]) * rng.uniform(4, 14))
    return after


def _visible(before: Array, after: Array, mask: Mask) -> Array:
    """Keep a change within the range of the sensor, and raise it where the eye would miss it.

    The least change is :data:`VISIBLE`; a defect of a few pixels needs thrice that to be seen.
    """
    after = np.clip(after, DARKEST - VISIBLE, LIGHTEST + VISIBLE).astype(np.float32)
    change = after - before
    least = VISIBLE * (1 + 2 * float(np.exp(-mask.sum() / 60)))
    weak = mask & (np.abs(change).max(axis=2) < least)
    if weak.any():
        mean = float(change[mask].mean())
        sign = np.sign(mean) if abs(mean) > least / 2 else 1.0 if before[mask].mean() < 128 else -1.0
        raised = before[weak] + np.float32(sign * least)
        after[weak] = np.clip(raised, DARKEST - VISIBLE, LIGHTEST + VISIBLE)
    return after


Look = Callable[[np.random.Generator, _Patch], Array]

KINDS: dict[str, tuple[Shape, Look]] = {
    "spot": (lambda rng, area, size: blob(rng, area, size, ragged=0.05, stretch=1.6), _spot),
    "scratch": (lambda rng, area, size: stroke(rng, area, size, jagged=False), _scratch),
    "crack": (lambda rng, area, size: stroke(rng, area, size, jagged=True), _crack),
    "stain": (stain, _stain),
    "missing_part": (lambda rng, area, size: blob(rng, area, size, ragged=0.16), _missing_part),
    "blur": (blob, _blur),
    "colour_shift": (blob, _colour_shift),
    "texture_swap": (blob, _texture_swap),
}
"""Kind of defect to its shape and its look."""
