"""The same maps under other masks than those annotated: exactly, and from the evidence alone."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.evidence.evidence import Evidence
from hrbench.evidence.rims import Annotated

__all__ = ["MASKS", "Masks", "with_masks"]

Masks = Literal["eroded", "annotated", "dilated"]
MASKS: tuple[Masks, ...] = get_args(Masks)

Ints = npt.NDArray[np.int64]


def with_masks(evidence: Evidence, masks: Masks) -> Evidence:
    """Return the evidence that the same maps would leave if the masks were one pixel wider, or narrower.

    Every metric, interval and threshold may be had from it. Components stay what they are: two that meet when they are
    dilated remain two, one that falls apart when it is eroded remains one, both keep their bin of size and their box;
    one of which nothing is left is no component any more. Images keep their label.

    Parameters
    ----------
    evidence : Evidence
    masks : {'eroded', 'annotated', 'dilated'}
        By a square of 3 x 3 pixels; the image's border erodes nothing.

    Returns
    -------
    Evidence
        To be measured; it cannot be saved or merged.

    Raises
    ------
    HrbenchError
        If the evidence has defects, but not their rims: an earlier version collected it, or the masks were shrunk.
    """
    if masks not in MASKS:
        raise HrbenchError(f"masks are {masks!r}, expected one of: {', '.join(MASKS)}")
    if masks == "annotated" or evidence.components.empty:
        return evidence
    rims, components, images = evidence.rims, evidence.components, evidence.images
    if rims is None:
        why = "an earlier version collected it" if evidence.spec.side is None else "it is of shrunk masks"
        raise HrbenchError(f"this evidence has no rims of defects, for {why}; the masks cannot be {masks}")
    areas = components["area"].to_numpy()
    if masks == "dilated":
        moved, decided, counts = rims.outer_scores, rims.table["outer_decided"], rims.table["outer"].to_numpy()
        owner = np.concatenate([np.repeat(np.arange(areas.size), of) for of in (areas, counts)])
        scores = np.concatenate([evidence.defect_scores, moved])[np.argsort(owner, kind="stable")]
    else:
        moved, decided = evidence.defect_scores[rims.inner], -rims.table["inner_decided"]
        counts = -np.add.reduceat(rims.inner, evidence.component_starts, dtype=np.int64)
        scores = evidence.defect_scores[~rims.inner]
    left = areas + counts > 0
    changed = components.assign(area=areas + counts, decision_pixels=components["decision_pixels"] + decided)

    gained = _per_image(evidence, counts)
    parts = np.split(moved, np.cumsum(np.abs(gained))[:-1])
    normals = [
        normal if not part.size else normal.minus(part) if masks == "dilated" else normal.plus(part)
        for normal, part in zip(evidence.normals, parts, strict=True)
    ]
    hits = _per_image(evidence, decided.fillna(0).to_numpy(dtype=np.int64))
    return dataclasses.replace(
        evidence,
        images=images.assign(
            normal_pixels=images["normal_pixels"] - gained,
            defect_pixels=images["defect_pixels"] + gained,
            decision_tp=images["decision_tp"] + hits,
            decision_fp=images["decision_fp"] - hits,
        ),
        components=changed[left].reset_index(drop=True),
        defect_scores=scores,
        normals=normals,
        regions=None,
        rims=None,
        annotated=Annotated(areas, left),
    )


def _per_image(evidence: Evidence, of_components: Ints) -> Ints:
    """Add up numbers of components, (K,), for each image, (n,)."""
    totals = np.zeros(len(evidence.images), np.int64)
    np.add.at(totals, evidence.component_images, of_components)
    return totals
