"""What evidence asks of an anomaly map that a method predicted, wherever it lies."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from hrbench.imaging.pixel_count import PixelCount

__all__ = ["PredictedMap"]


class PredictedMap(Protocol):
    """The anomaly map of one image and the method's own decision, in the host's memory or on a device."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""

    @property
    def seconds(self) -> float:
        """What the image cost."""

    @property
    def elsewhere(self) -> bool:
        """Whether the map lies on a device that counts it; else it is counted in the host's memory."""

    def scores(self) -> npt.NDArray[np.float32]:
        """Return the map in the host's memory, (H, W) float32."""

    def decision(self) -> npt.NDArray[np.bool_] | None:
        """Return the decision in the host's memory, (H, W) bool; None if there is none."""

    def counted(self, places: npt.NDArray[np.int64], *, shift: int, top: int = 0, moments: bool = False) -> PixelCount:
        """Count the map where it lies.

        Parameters
        ----------
        places : (P,) int64
            Flat indices of the pixels whose scores are wanted.
        shift : int
            Low bits that the keys lack.
        top : int
            How many of the highest scores are wanted.
        moments : bool
            Whether mean and standard deviation are.
        """
