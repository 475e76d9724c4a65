"""Groups of defect components by size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hrbench.protocol import SizeBins

__all__ = ["CUMULATIVE", "DISJOINT", "diameter_names", "equivalent_diameter", "quartile_edges", "size_subsets"]

CUMULATIVE = ("q1", "q2", "q3", "q4")
DISJOINT = ("tiny", "small", "medium", "large")


def equivalent_diameter(areas: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the diameter, in pixels, of the circle of each area: ``2 sqrt(area / pi)``."""
    return 2 * np.sqrt(np.asarray(areas, dtype=np.float64) / np.pi)


def quartile_edges(areas: npt.NDArray[np.int64], bins: SizeBins) -> npt.NDArray[np.float64]:
    """Return the three area quantiles of a category's components (linear interpolation)."""
    return np.quantile(areas, bins.quantiles)


def diameter_names(bins: SizeBins) -> list[str]:
    """Return the names of the fixed bins: ``d<8``, ``d8-16``, ..., ``d>=128``."""
    edges = [f"{edge:g}" for edge in bins.diameters]
    if not edges:
        return []
    inner = [f"d{low}-{high}" for low, high in pairwise(edges)]
    return [f"d<{edges[0]}", *inner, f"d>={edges[-1]}"]


def size_subsets(areas: npt.NDArray[np.int64], bins: SizeBins) -> dict[str, npt.NDArray[np.bool_]]:
    """Return, per subset, which components belong to it.

    Parameters
    ----------
    areas : ndarray of int, (K,)
        Component areas in pixels, of a whole category.
    bins : SizeBins

    Returns
    -------
    dict of str to ndarray of bool, (K,)
        ``all``; cumulative ``q1`` .. ``q4`` (area at most the quartile, the published scheme of L2BT); disjoint
        ``tiny`` .. ``large``; then the fixed bins of equivalent diameter.
    """
    edges = [*quartile_edges(areas, bins), np.inf]
    cumulative = [areas <= edge for edge in edges]
    subsets = {"all": np.ones(areas.shape, bool), **dict(zip(CUMULATIVE, cumulative, strict=True))}
    below = np.zeros(areas.shape, bool)
    for name, upto in zip(DISJOINT, cumulative, strict=True):
        subsets[name] = upto & ~below
        below = upto
    fixed = np.searchsorted(bins.diameters, equivalent_diameter(areas), side="right")
    for index, name in enumerate(diameter_names(bins)):
        subsets[name] = fixed == index
    return subsets
