"""Metrics of groups of images, such as the views of one part: a part is judged by its most anomalous image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hrbench.metrics.context import Context
from hrbench.metrics.curves import UNDEFINED, Certified, binary_auroc
from hrbench.metrics.weighted import Draw

__all__ = ["Groups", "drawn_group_auroc", "group_auroc"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """The groups of a category's images; an image on its own is one, too.

    Attributes
    ----------
    first : ndarray, (G,)
        An image of each: what is drawn are groups, so that all images of one have the same weight.
    scores : ndarray, (G,)
        The highest image score of each.
    labels : ndarray, (G,)
        1 for a group with a defective image.
    """

    first: Ints
    scores: Floats
    labels: Ints

    @staticmethod
    def of(context: Context) -> Groups | None:
        """Return the groups; None where every image is on its own."""
        names = context.evidence.groups
        if names is None:
            return None
        found, first, group_of = np.unique(names, return_index=True, return_inverse=True)
        scores, labels = np.full(found.size, -np.inf), np.zeros(found.size, np.int64)
        np.maximum.at(scores, group_of, context.scores)
        np.maximum.at(labels, group_of, context.labels)
        return Groups(first, scores, labels)


def group_auroc(context: Context) -> Certified:
    """Return the ROC area of groups, S-AUROC of Real-IAD (Wang et al., CVPR 2024); NaN without both kinds of them."""
    groups = context.once(Groups.of)
    if groups is None or groups.labels.all() or not groups.labels.any():
        return UNDEFINED
    return Certified.exactly(binary_auroc(groups.scores, groups.labels))


def drawn_group_auroc(draw: Draw) -> Floats:
    """Return the same for the draw's weights, (B,)."""
    groups = draw.context.once(Groups.of)
    if groups is None:
        return draw.undefined
    weights, good, bad = draw.weights[:, groups.first], groups.labels == 0, groups.labels == 1
    # A pair counts if the defective group has the higher score, and half in a tie.
    above = (np.sign(groups.scores[bad, None] - groups.scores[good]) + 1) / 2
    pairs = np.einsum("bg,bg->b", weights[:, bad] @ above, weights[:, good])
    area: Floats = pairs / (weights[:, bad].sum(axis=1) * weights[:, good].sum(axis=1))
    return area
