"""Anomaly maps of several looks at one image, fused into one.

The fused map is the geometric mean, pixel by pixel, of

    u = softplus((a - centre) / unit)

where ``a`` is the method's anomaly map through one look. Centre (the median) and unit (from there to the 99th
percentile) are those of the look's own normal pixels, on held-out normal images. A geometric mean needs positive maps
on scales that mean the same; a method's maps are on any scale and may be negative (a logit, a log-likelihood). With
``u`` the result does not change when the maps of a look are multiplied by a positive number or shifted. It is about
0.7 where all looks find a pixel as normal as usual, grows in proportion to ``a`` in the far tail, hence never
saturates, and rises with the map of every look.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Fusion"]

TAIL = 0.99  # quantile of normal pixels that is one unit above their median
SIDE = 128  # pixels that are looked at per axis of a held-out map


@dataclass(frozen=True)
class Fusion:
    """How the maps of several looks become one.

    Attributes
    ----------
    looks : tuple of str
    centres, units : tuple of float
        Per look, on the scale of the method's anomaly map.
    """

    looks: tuple[str, ...]
    centres: tuple[float, ...]
    units: tuple[float, ...]

    @staticmethod
    def of(looks: Sequence[str], held_out: Iterable[Sequence[Tensor]]) -> Fusion:
        """Measure the scales on held-out normal images: per image the (H, W) maps of all looks, in their order.

        A regular grid of pixels of each map is looked at. Where the 99th percentile is the median, the maximum stands
        for it; maps that are constant have the unit one.
        """
        seen: list[list[np.ndarray[Any, np.dtype[np.float64]]]] = [[] for _ in looks]
        for maps in held_out:
            for values, map_ in zip(seen, maps, strict=True):
                step = [math.ceil(n / SIDE) for n in map_.shape]
                grid = map_[step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
                values.append(grid.cpu().double().numpy().ravel())
        centres, units = [], []
        for values in seen:
            pixels = np.concatenate(values)
            centre = float(np.median(pixels))
            least = 1e-6 * abs(centre)  # below it, differences are the rounding errors of float32
            reach = (float(np.quantile(pixels, TAIL)) - centre, float(pixels.max()) - centre)
            centres.append(centre)
            units.append(next((unit for unit in reach if unit > least), 1.0))
        return Fusion(tuple(looks), tuple(centres), tuple(units))

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the (H, W) float32 maps of all looks, in their order, into one that is at least zero."""
        fused = torch.ones_like(maps[0])
        for map_, centre, unit in zip(maps, self.centres, self.units, strict=True):
            # Each factor's own root: the product of many could leave float32's range, their mean cannot.
            fused *= functional.softplus((map_ - centre) / unit).pow_(1 / len(maps))
        return fused

    def record(self) -> list[dict[str, str | float]]:
        """Return what :meth:`read` reads: per look its text, centre and unit."""
        rows = zip(self.looks, self.centres, self.units, strict=True)
        return [{"view": look, "centre": centre, "unit": unit} for look, centre, unit in rows]

    @staticmethod
    def read(record: Sequence[Mapping[str, Any]]) -> Fusion:
        """Return the fusion that gave `record`."""
        return Fusion(
            tuple(str(row["view"]) for row in record),
            tuple(float(row["centre"]) for row in record),
            tuple(float(row["unit"]) for row in record),
        )
