"""Shrinking of maps and masks for conventional low-resolution protocols; nothing else here resizes a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["bilinear", "nearest"]


def bilinear(anomaly_map: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resize an (H, W) map to `size` by linear interpolation between pixel centres, without antialiasing.

    Equals ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
    """
    result = anomaly_map
    for axis, length in enumerate(size):
        position = (np.arange(length) + 0.5) * result.shape[axis] / length - 0.5
        position = position.clip(0, result.shape[axis] - 1)
        low = np.floor(position).astype(np.int64)
        high = np.minimum(low + 1, result.shape[axis] - 1)
        weight = (position - low).astype(result.dtype)
        weight = weight[:, None] if axis == 0 else weight
        result = result.take(low, axis) * (1 - weight) + result.take(high, axis) * weight
    return result


def nearest(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Resize an (H, W) mask to `size` by taking the pixel at ``floor(index * scale)``, as torch's ``nearest`` does."""
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    shrunk: npt.NDArray[np.bool_] = mask[rows[:, None], columns]
    return shrunk
