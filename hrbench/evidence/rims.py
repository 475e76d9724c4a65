"""Rims of defects: what it takes to measure the same maps under masks that are one pixel wider, or narrower.

Masks are drawn by hand, to a pixel or two; the rim of one pixel is half of a defect of 20. Dilation moves the scores of
an outer rim from the normal pixels to the component, erosion those of an inner rim from the component to the normal
pixels: nothing else of the evidence changes, see :func:`hrbench.evidence.masks.with_masks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evidence.histograms import NormalScores, Scores
from hrbench.evidence.ragged import take_groups

__all__ = ["RIM_DTYPES", "Annotated", "Rims", "rim_problems"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

RIM_DTYPES = {"image": "str", "outer": "int64", "outer_decided": "Int64", "inner_decided": "Int64"}


@dataclasses.dataclass(frozen=True)
class Rims:
    """The rims of the components of some evidence, of one pixel in all eight directions.

    Attributes
    ----------
    table : DataFrame
        One row per component, in their order: image; outer, pixels of the outer rim; outer_decided and inner_decided,
        pixels of either rim in the method's own decision (null without one). A pixel beside several components of an
        image is in the outer rim of the first.
    outer_scores : ndarray of float32 or float64, (sum of outer,)
        Scores of the outer rims, component after component.
    inner : ndarray of bool, (sum of areas,)
        Which of the defect pixels erosion takes away.
    """

    table: pd.DataFrame
    outer_scores: Scores
    inner: Bools

    def taken(self, areas: pd.Series[int], rows: Ints) -> Rims:
        """Return the rims of some of the components, of which all have these areas."""
        return Rims(
            self.table.iloc[rows].reset_index(drop=True),
            self.outer_scores[take_groups(self.table["outer"], rows)],
            self.inner[take_groups(areas, rows)],
        )

    @staticmethod
    def joined(parts: Sequence[Rims | None]) -> Rims | None:
        """Put the rims of parts with components one after another; None if there are no parts, or one has none."""
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        return Rims(
            pd.concat([part.table for part in known], ignore_index=True),
            np.concatenate([part.outer_scores for part in known]),
            np.concatenate([part.inner for part in known]),
        )


@dataclasses.dataclass(frozen=True)
class Annotated:
    """The components as they were annotated, beside evidence under other masks.

    Attributes
    ----------
    areas : ndarray of int64, (K,)
        Of all of them: they are grouped by size as annotated, so that the same defects are compared.
    left : ndarray of bool, (K,)
        Which of them have a pixel left, and are those of the evidence.
    """

    areas: Ints
    left: Bools

    @cached_property
    def sizes(self) -> Ints:
        """Annotated areas of the components that are left."""
        return self.areas[self.left]


def rim_problems(
    rims: Rims, images: pd.DataFrame, components: pd.DataFrame, normals: Sequence[NormalScores], defect_scores: Scores
) -> dict[str, bool]:
    """Return what may be wrong with rims beside the rest of their evidence; the lengths of lists are known to be right.

    Each thing is only told where those before it are right.
    """
    table = rims.table
    wrong = {
        "rims of other components than there are": table["image"].tolist() != components["image"].tolist(),
        "scores of two kinds": rims.outer_scores.dtype != defect_scores.dtype,
    }
    if any(wrong.values()):
        return wrong
    inner = np.add.reduceat(rims.inner, np.cumsum(components["area"]) - components["area"], dtype=np.int64)
    area, decided, lost = components["area"], components["decision_pixels"], table["inner_decided"]
    owner = pd.Series(np.arange(len(images)), index=images["id"]).loc[table["image"]].to_numpy()
    gained = np.bincount(owner, weights=table["outer_decided"].fillna(0).astype(float), minlength=len(images))
    return {
        "more pixels around a component than it may have": bool((table["outer"] > 8 * area).any()),
        "decisions on other rims than those of decided images": not all(
            table[name].isna().equals(decided.isna()) for name in ("outer_decided", "inner_decided")
        ),
        "a decision on more pixels than there are": bool(
            (table["outer_decided"] > table["outer"]).any()
            or (lost > np.minimum(inner, decided.fillna(0))).any()
            or (decided - lost > area - inner).any()
            or (gained > images["decision_fp"].fillna(0)).any()
        ),
        "scores of rims that are not among the normal pixels": not _among(rims, owner, normals),
    }


def _among(rims: Rims, owner: Ints, normals: Sequence[NormalScores]) -> bool:
    ends = np.cumsum(np.bincount(owner, weights=rims.table["outer"], minlength=len(normals))).astype(np.int64)
    try:
        for normal, scores in zip(normals, np.split(rims.outer_scores, ends[:-1]), strict=True):
            normal.minus(scores)
    except HrbenchError:
        return False
    return True
