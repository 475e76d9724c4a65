"""Groups of defect components by size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hrbench.evidence import Evidence
from hrbench.protocol import SizeBins

__all__ = [
    "CUMULATIVE",
    "DISJOINT",
    "SCHEMES",
    "SizeScheme",
    "diameter_names",
    "equivalent_diameter",
    "evidence_subsets",
    "quartile_edges",
    "size_subsets",
    "size_title",
]

Bools = npt.NDArray[np.bool_]

CUMULATIVE = ("q1", "q2", "q3", "q4")
DISJOINT = ("tiny", "small", "medium", "large")
_PLACES = ("smallest", "second", "third", "largest")


def equivalent_diameter(areas: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the diameter, in pixels, of the circle of each area: ``2 sqrt(area / pi)``."""
    return 2 * np.sqrt(np.asarray(areas, dtype=np.float64) / np.pi)


def quartile_edges(areas: npt.NDArray[np.int64], bins: SizeBins) -> npt.NDArray[np.float64]:
    """Return the three area quantiles of a category's components (linear interpolation); NaN without any."""
    if not areas.size:
        return np.full(len(bins.quantiles), np.nan)
    return np.quantile(areas, bins.quantiles)


def diameter_names(bins: SizeBins) -> list[str]:
    """Return the names of the fixed bins: ``d<8``, ``d8-16``, ..., ``d>=128``."""
    edges = [f"{edge:g}" for edge in bins.diameters]
    if not edges:
        return []
    inner = [f"d{low}-{high}" for low, high in pairwise(edges)]
    return [f"d<{edges[0]}", *inner, f"d>={edges[-1]}"]


def _cumulative(areas: npt.NDArray[np.int64], bins: SizeBins) -> list[Bools]:
    return [areas <= edge for edge in (*quartile_edges(areas, bins), np.inf)]


def _disjoint(areas: npt.NDArray[np.int64], bins: SizeBins) -> list[Bools]:
    return [part & ~below for below, part in pairwise([np.zeros(areas.shape, bool), *_cumulative(areas, bins)])]


def _diameters(areas: npt.NDArray[np.int64], bins: SizeBins) -> list[Bools]:
    place = np.searchsorted(bins.diameters, equivalent_diameter(areas), side="right")
    return [place == index for index in range(len(diameter_names(bins)))]


@dataclass(frozen=True)
class SizeScheme:
    """A way to group defect components by size; a new one needs an entry in :data:`SCHEMES`.

    Attributes
    ----------
    names : callable
        The subsets' names under a protocol's `size_bins`, smallest defects first.
    members : callable
        Which components, of areas (K,), belong to each subset, (K,).
    describe : callable
        One sentence about the subset of a given index.
    robustness : str
        Key of the metric :func:`hrbench.metrics.size_robustness` over this scheme's subsets; "" for none.
    """

    names: Callable[[SizeBins], Sequence[str]]
    members: Callable[[npt.NDArray[np.int64], SizeBins], Sequence[Bools]]
    describe: Callable[[int], str]
    robustness: str = ""


SCHEMES = (
    SizeScheme(
        lambda _: CUMULATIVE,
        _cumulative,
        lambda i: "All defects" if i == 3 else f"The smallest {25 * (i + 1)} % of the defects, by area",
        "rho",
    ),
    SizeScheme(
        lambda _: DISJOINT,
        _disjoint,
        lambda i: f"The {_PLACES[i]} quarter of the defects of each category, by area",
        "rho_disjoint",
    ),
    SizeScheme(
        diameter_names,
        _diameters,
        lambda _: "Defects of this equivalent diameter in pixels, 2·sqrt(area/π)",
    ),
)


def size_subsets(areas: npt.NDArray[np.int64], bins: SizeBins) -> dict[str, Bools]:
    """Return, per subset, which components belong to it.

    Parameters
    ----------
    areas : ndarray of int, (K,)
        Component areas in pixels, of a whole category.
    bins : SizeBins

    Returns
    -------
    dict of str to ndarray of bool, (K,)
        ``all``; then the subsets of each of :data:`SCHEMES`: cumulative ``q1`` .. ``q4`` (area at most the quartile,
        the published scheme of L2BT); disjoint ``tiny`` .. ``large``; the fixed bins of equivalent diameter.
    """
    subsets = {"all": np.ones(areas.shape, bool)}
    for scheme in SCHEMES:
        subsets |= zip(scheme.names(bins), scheme.members(areas, bins), strict=True)
    return subsets


def evidence_subsets(evidence: Evidence, bins: SizeBins) -> dict[str, Bools]:
    """Return, per subset, which of the evidence's components belong to it, (K,), by their areas as annotated."""
    if evidence.annotated is None:
        return size_subsets(evidence.sizes, bins)
    every, left = size_subsets(evidence.annotated.areas, bins), evidence.annotated.left
    return {name: members[left] for name, members in every.items()}


def size_title(subset: str, bins: SizeBins) -> str:
    """Return one sentence about a subset."""
    for scheme in SCHEMES:
        if subset in (names := list(scheme.names(bins))):
            return scheme.describe(names.index(subset))
    return "All defects"
