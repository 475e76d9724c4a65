"""What comes to the host of an anomaly map that stays on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PixelCount"]


@dataclass(frozen=True)
class PixelCount:
    """The pixels of a map, counted, and some of their scores.

    Attributes
    ----------
    keys : ndarray of uint32, (K,)
        Distinct and rising: those of :func:`hrbench.evidence.histograms.score_keys`, without their low bits.
    counts : ndarray of uint32, (K,)
        Pixels of each key, at least one.
    low, high : float
        The extremes of all scores; NaN if one is.
    dropped : bool
        Whether a low bit that the keys lack was set.
    scores : ndarray of float32, (P,)
        At the places that were asked for.
    decided : ndarray of bool, (P,), or None
        The method's own decision there.
    decisions : int or None
        Pixels that the method decided to be defects.
    top : ndarray of float32, or None
        The highest scores in any order, as many as were asked for.
    moments : (float, float) or None
        Mean and standard deviation of all scores, summed in float64.
    """

    keys: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint32]
    low: float
    high: float
    dropped: bool
    scores: npt.NDArray[np.float32]
    decided: npt.NDArray[np.bool_] | None = None
    decisions: int | None = None
    top: npt.NDArray[np.floating[Any]] | None = None
    moments: tuple[float, float] | None = None
