"""Annotated regions of defects, which may overlap: of each, the scores of as many pixels as are enough.

A region of which `saturation` pixels are enough is found to the share ``min(found / saturation, 1)`` (Bergmann et al.,
IJCV 2022). That is the share of its `saturation` highest scores that reach the threshold: no other score of the region
is ever needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evidence.histograms import Scores
from hrbench.evidence.ragged import starts, take_groups
from hrbench.imaging import Region

__all__ = ["REGION_DTYPES", "Regions", "region_problems", "without_regions"]

REGION_DTYPES = {
    "image": "str",
    "defect_type": "str",
    "defect": "str",
    "area": "int64",
    "saturation": "int64",
}


@dataclasses.dataclass(frozen=True)
class Regions:
    """Regions of some images.

    Attributes
    ----------
    table : DataFrame
        One row per region, images in order of their ids: image, defect_type (of the image), defect (of the region),
        area, saturation.
    scores : ndarray of float32 or float64, (sum of saturations,)
        The highest scores of each region, falling.
    """

    table: pd.DataFrame
    scores: Scores

    @staticmethod
    def of(
        image_id: str,
        kind: str,
        regions: Sequence[Region],
        mask: npt.NDArray[np.bool_],
        pixels: npt.NDArray[np.int64],
        scores: Scores,
    ) -> Regions:
        """Measure the regions of one image.

        Parameters
        ----------
        image_id, kind : str
            Of the image: its id and its defect type.
        regions : sequence of Region
        mask : ndarray of bool, (H, W)
            What they mark together.
        pixels, scores : ndarray, (P,)
            The defect pixels as flat indices, in any order, and their scores.

        Raises
        ------
        HrbenchError
            If they mark something else, or a region is of another size, empty, or has fewer pixels than are enough.
        """
        order = np.argsort(pixels)
        rising, marked = pixels[order], np.zeros(mask.shape, bool)
        rows, highest = [], [np.zeros(0, scores.dtype)]
        for number, region in enumerate(regions):
            where = f"{image_id}: region {number}"
            if region.mask.shape != mask.shape:
                raise HrbenchError(f"{where} has shape {region.mask.shape}, expected {mask.shape}, that of the image")
            marked |= region.mask
            inside = np.flatnonzero(region.mask & mask)
            if not 1 <= region.saturation <= inside.size:
                raise HrbenchError(
                    f"{where} of {inside.size} pixels has saturation {region.saturation}, expected 1 to all"
                )
            found = scores[order[np.searchsorted(rising, inside)]]
            highest.append(np.sort(found)[: -region.saturation - 1 : -1])
            rows.append((image_id, kind, region.defect, inside.size, region.saturation))
        if not np.array_equal(marked, mask):
            raise HrbenchError(f"{image_id}: its regions mark other pixels than its mask, expected the same")
        return Regions(pd.DataFrame(rows, columns=list(REGION_DTYPES)), np.concatenate(highest))

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First row of each region in `scores`."""
        return starts(self.table["saturation"])

    def of_images(self, ids: Collection[str]) -> Regions | None:
        """Return the regions of some of the images, None where these have none."""
        rows = np.flatnonzero(self.table["image"].isin(ids))
        return self._taken(rows) if rows.size else None

    @staticmethod
    def merge(parts: Sequence[Regions]) -> Regions:
        """Join regions of different images."""
        table = pd.concat([part.table for part in parts], ignore_index=True).astype(REGION_DTYPES)
        scores = np.concatenate([part.scores for part in parts])
        return Regions(table, scores)._taken(np.argsort(table["image"].to_numpy(dtype=str), kind="stable"))

    def _taken(self, rows: npt.NDArray[np.int64]) -> Regions:
        scores = self.scores[take_groups(self.table["saturation"], rows)]
        return Regions(self.table.iloc[rows].reset_index(drop=True), scores)


def without_regions(image_id: str) -> HrbenchError:
    """Return the error of a defective image that has no regions where others have some."""
    return HrbenchError(f"{image_id}: a defective image without regions, others have some; expected all or none")


def region_problems(
    regions: Regions, images: pd.DataFrame, components: pd.DataFrame, defect_scores: Scores
) -> dict[str, bool]:
    """Return what may be wrong with regions beside the images, defect components and scores of their evidence.

    What all values are is known already. Each thing is only told where those before it are right.
    """
    table = regions.table
    defects = images.set_index("id")["defect_pixels"]
    defects = defects[defects > 0]
    areas = table.groupby("image")["area"].agg(["sum", "max"])
    wrong = {
        "regions of which more than all is enough": bool((table["saturation"] > table["area"]).any()),
        "regions of other images than those with defects": set(areas.index) != set(defects.index),
        "scores of two kinds": regions.scores.dtype != defect_scores.dtype,
    }
    if any(wrong.values()):
        return wrong
    order = pd.Series(np.arange(len(images)), index=images["id"]).loc[table["image"]]
    area = areas.loc[defects.index]
    kinds = components.groupby("image")["defect_type"].first()
    wrong = {
        "regions that are not in the order of their images": bool((np.diff(order) < 0).any()),
        "regions that are not the defects of their images": bool(
            ((area["max"] > defects) | (area["sum"] < defects)).any()
        ),
        "regions of other kinds than their images' defects": table["defect_type"].tolist()
        != kinds.loc[table["image"]].tolist(),
    }
    if any(wrong.values()):
        return wrong
    highest = _are_highest(regions, components, defect_scores)
    return {"scores of regions that are not the highest of their pixels": not highest}


def _are_highest(regions: Regions, components: pd.DataFrame, defect_scores: Scores) -> bool:
    """Tell whether scores can be the highest of a region among the defect pixels of its image.

    They fall; and the k-th is no more than the k-th of the image, and no less than it were if all pixels that are not
    of the region had higher ones.
    """
    pixels = components.groupby("image", sort=False)["area"].sum()
    parts = dict(zip(pixels.index, np.split(defect_scores, np.cumsum(pixels.to_numpy())[:-1]), strict=True))
    image, falling = "", np.zeros(0, defect_scores.dtype)
    table = regions.table
    for name, area, start, length in zip(
        table["image"], table["area"], regions.starts, table["saturation"], strict=True
    ):
        if name != image:
            image, falling = name, np.sort(parts[name])[::-1]
        scores, others = regions.scores[start : start + length], falling.size - area
        least, most = falling[others : others + length], falling[:length]
        if (scores[1:] > scores[:-1]).any() or (scores < least).any() or (scores > most).any():
            return False
    return True
