"""Regions of defects as an annotator gave them: they may overlap, and part of one may be enough."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

__all__ = ["Region"]


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """One region of an image.

    Attributes
    ----------
    mask : ndarray of bool, (H, W)
        Its pixels, one at least, in any number of components.
    saturation : int
        How many of them are enough: a region of which so many are found counts as found wholly.
    defect : str
        What it shows.
    """

    mask: npt.NDArray[np.bool_]
    saturation: int
    defect: str = ""
