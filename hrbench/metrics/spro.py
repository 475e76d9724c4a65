"""sPRO, the saturated overlap per region (Bergmann et al., Beyond Dents and Scratches, IJCV 130, 2022).

PRO asks which share of each connected defect is found. Here the annotator says what the regions are, which may overlap
and be in several pieces, and how many pixels of each are enough (its saturation): where a part is missing, who marks a
spot of the place where it belongs has found the defect. At a threshold

    sPRO = mean over regions of min(pixels found / saturation, 1),
    FPR = share of the pixels outside all regions of their image that are found;

the area under the curve up to an FPR limit is divided by the limit. The first is the mean share of the `saturation`
highest scores of each region, so that the identity of :mod:`hrbench.metrics.curves` serves. With all pixels of a region
for its saturation, and connected components for regions, sPRO is PRO.

Where the images with regions are of the two kinds that MVTec LOCO AD knows, each kind has an sPRO of its own, of its
regions and of the FPR over the good images and those of the kind, and that of all is the mean of both (of the one that
is there), as the publisher's code has it. Elsewhere it is that of all regions and all images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hrbench.evidence.histograms import DefectRanks, score_keys
from hrbench.evidence.regions import Regions
from hrbench.metrics.context import Context
from hrbench.metrics.curves import UNDEFINED, Certified, group_areas
from hrbench.metrics.weighted import Bins, Draw, partial_gains, pixel_counts
from hrbench.protocol import Protocol

__all__ = ["KINDS", "carrying_regions", "drawn_spro", "region_kinds", "region_subsets", "spro", "spro_limits"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

KINDS: Mapping[str, str] = {"logical_anomalies": "logical", "structural_anomalies": "structural"}
"""Subsets by the defect type of the images."""


@dataclass(frozen=True)
class RegionKind:
    """Regions that are measured together.

    Attributes
    ----------
    regions : Regions
    owners : ndarray of int, (R,)
        The row of each region's image.
    images : ndarray of bool, (n,)
        Which images' pixels the false-positive rate is about.
    """

    regions: Regions
    owners: Ints
    images: Bools


def spro_limits(protocol: Protocol) -> tuple[float, ...]:
    """Return up to which FPR sPRO is integrated: the protocol's limits, and 1 as the publisher does."""
    return tuple(dict.fromkeys((*protocol.fpr_limits, 1.0)))


def region_kinds(context: Context) -> dict[str, RegionKind]:
    """Return the kinds of regions by subset; "all" where no kinds are told apart, and none without regions.

    A protocol that samples the thresholds of the PRO curve stands for a code that knows no regions.
    """
    regions, images = context.evidence.regions, context.evidence.images
    if regions is None or context.protocol.curve.sampling != "all":
        return {}
    kinds = regions.table["defect_type"]
    rows = images.reset_index().set_index("id")["index"].loc[regions.table["image"]].to_numpy(dtype=np.int64)
    if not kinds.isin(list(KINDS)).all():
        return {"all": RegionKind(regions, rows, np.ones(len(images), bool))}
    found = {}
    for name, subset in KINDS.items():
        members = (kinds == name).to_numpy()
        of_kind = regions.of_images(set(regions.table["image"][members]))
        if of_kind is not None:
            own = context.labels == 0
            own[rows[members]] = True
            found[subset] = RegionKind(of_kind, rows[members], own)
    return found


def region_subsets(context: Context) -> list[str]:
    """Return the subsets that sPRO has rows of."""
    kinds = context.once(region_kinds)
    return list(dict.fromkeys(["all", *kinds])) if kinds else []


def carrying_regions(context: Context, subset: str) -> list[Ints]:
    """Return the image of each region, a list for each kind that a subset is the mean of."""
    kinds = context.once(region_kinds)
    return [kinds[subset].owners] if subset in kinds else [kind.owners for kind in kinds.values()]


def spro(context: Context, subset: str, limit: float) -> Certified:
    """Return the area under the sPRO curve of a subset's regions up to an FPR limit, divided by it."""
    by_kind = context.once(_kind_areas)
    parts = [areas[limit] for name, areas in by_kind.items() if subset in (name, "all")]
    return Certified(*(float(np.mean(ends)) for ends in zip(*parts, strict=True))) if parts else UNDEFINED


def drawn_spro(draw: Draw, subset: str, limit: float) -> Floats:
    """Return the same for each replicate, (B,)."""
    parts = [areas[limit] for name, areas in draw.once(_drawn_areas).items() if subset in (name, "all")]
    return np.mean(parts, axis=0) if parts else draw.undefined


def _kind_areas(context: Context) -> dict[str, dict[float, Certified]]:
    evidence, limits = context.evidence, spro_limits(context.protocol)
    result = {}
    for name, kind in context.once(region_kinds).items():
        normals = [evidence.normals[row] for row in np.flatnonzero(kind.images).tolist()]
        total = sum(part.total for part in normals)
        if not total:
            result[name] = dict.fromkeys(limits, UNDEFINED)
            continue
        ranks = DefectRanks.of(kind.regions.scores, normals)
        lengths = kind.regions.table["saturation"].to_numpy()
        areas = group_areas(ranks, lengths, total, limits, lossless=evidence.lossless)
        every = np.ones(lengths.size, bool)
        result[name] = {limit: area.mean(every) for limit, area in areas.items()}
    return result


@dataclass(frozen=True)
class _Shares:
    """What the images that have regions of a kind add to sPRO, in the bins of all draws.

    Attributes
    ----------
    owners : ndarray of int, (d,)
        Their rows.
    shares : ndarray, (d, bins)
        Sums, over regions, of the share of their highest scores in each bin.
    regions : ndarray, (d,)
        How many they have.
    at_least : ndarray, (m, bins)
        Of all images of the kind, and good ones: normal pixels at or above each bin's lower edge.
    """

    owners: Ints
    shares: Floats
    regions: Floats
    at_least: Floats


def _shares(context: Context) -> dict[str, _Shares]:
    bins, result = context.once(Bins.of), {}
    for name, kind in context.once(region_kinds).items():
        owners, place = np.unique(kind.owners, return_inverse=True)
        lengths = kind.regions.table["saturation"].to_numpy()
        columns = bins.places(score_keys(kind.regions.scores, context.evidence.shift))
        size = owners.size, bins.at_least.shape[1]
        shares = pixel_counts(np.repeat(place, lengths), columns, np.repeat(1 / lengths, lengths), size)
        counts = np.bincount(place, minlength=owners.size).astype(np.float64)
        result[name] = _Shares(owners, shares, counts, bins.at_least[kind.images])
    return result


def _drawn_areas(draw: Draw) -> dict[str, dict[float, Floats]]:
    context, limits, result = draw.context, spro_limits(draw.context.protocol), {}
    kinds = context.once(region_kinds)
    for name, part in context.once(_shares).items():
        at_least, weights = draw.weights[:, kinds[name].images] @ part.at_least, draw.weights[:, part.owners]
        shares, regions = weights @ part.shares, weights @ part.regions
        gains = partial_gains(at_least, limits)
        result[name] = {
            limit: np.einsum("bk,bk->b", shares[:, : gain.shape[1]], gain) / regions
            for limit, gain in zip(limits, gains, strict=True)
        }
    return result
