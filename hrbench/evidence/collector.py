"""Collecting evidence, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evidence.evidence import COMPONENT_DTYPES, IMAGE_DTYPES, Evidence, EvidenceSpec, set_apart
from hrbench.evidence.histograms import (
    KEY_SHIFT,
    Histogram,
    NormalScores,
    Scores,
    SortedKeys,
    check_map,
    image_score,
    key_scores,
    score_keys,
)
from hrbench.imaging.components import find_components
from hrbench.imaging.resample import bilinear, nearest
from hrbench.protocol import ImageScoreRule

__all__ = ["EvidenceCollector"]


class EvidenceCollector:
    """Collect evidence image by image.

    Parameters
    ----------
    spec : EvidenceSpec
    """

    def __init__(self, spec: EvidenceSpec) -> None:
        self.spec = spec
        self._rule = ImageScoreRule(spec.rule)
        self._images: list[dict[str, Any]] = []
        self._components: list[dict[str, Any]] = []
        self._scores: list[Scores] = []
        self._normals: list[NormalScores] = []  # all pixels of images in `_unmasked`
        self._unmasked: set[str] = set()
        self._lossless = True

    def update(
        self,
        image_id: str,
        anomaly_map: npt.ArrayLike,
        mask: npt.NDArray[np.bool_] | None,
        *,
        unmasked: bool = False,
        score: float | None = None,
        defect_type: str = "",
        decision: npt.NDArray[np.bool_] | None = None,
        seconds: float = math.nan,
        group: str = "",
    ) -> None:
        """Add one image.

        Parameters
        ----------
        image_id : str
            Unique.
        anomaly_map : (H, W) float
            Finite scores, higher is more anomalous.
        mask : (H, W) bool or None
            Defect pixels; None or all False for a normal image.
        unmasked : bool
            Whether the image is defective and its mask, which is None then, not known.
        score : float, optional
            Image score; by default the rule applied to the map.
        defect_type : str
        decision : (H, W) bool, optional
            The method's own segmentation.
        seconds : float
            What the image cost.
        group : str
            Equal for images that belong together; empty for an image on its own.
        """
        scores = check_map(anomaly_map, None if mask is None else mask.shape, image_id)
        label = int(
            unmasked or (mask is not None and bool(mask.any()))
        )  # of the image: shrinking may lose the whole defect
        if score is None:
            score = image_score(scores, self._rule)
        elif not math.isfinite(score):
            raise HrbenchError(f"{image_id}: the image score is {score}, expected a finite number")
        if self.spec.side is not None:
            size = (self.spec.side, self.spec.side)
            scores, mask, decision = (
                bilinear(scores, size),
                None if mask is None else nearest(mask, size),
                None if decision is None else nearest(decision, size),
            )
        if not self.spec.exact:
            scores = self._narrowed(scores, image_id)
        defects, defect_scores = 0, None
        if mask is not None and mask.any():
            defect_scores = self._add_components(image_id, scores, mask, defect_type, decision)
            defects = defect_scores.size
        if self.spec.exact:
            self._normals.append(SortedKeys.of(scores if defect_scores is None else scores[~np.asarray(mask)]))
        else:
            self._normals.append(Histogram.of(scores, KEY_SHIFT, without=defect_scores))
        hits = false = None
        if decision is not None:
            hits = 0 if mask is None else int(np.count_nonzero(decision & mask))
            false = int(np.count_nonzero(decision)) - hits
        if unmasked:
            self._unmasked.add(image_id)
        self._images.append(
            {
                "id": image_id,
                "label": label,
                "group": group,
                "height": scores.shape[0],
                "width": scores.shape[1],
                "score": score,
                "normal_pixels": 0 if unmasked else scores.size - defects,
                "defect_pixels": defects,
                "decision_tp": hits,
                "decision_fp": false,
                "seconds": seconds,
            }
        )

    def _narrowed(self, scores: Scores, image_id: str) -> Scores:
        """Return the map in float32, and note whether a set bit is lost to it or to the keys."""
        with np.errstate(over="ignore"):
            narrow = scores.astype(np.float32, copy=False)
        if narrow is not scores and not np.isfinite(narrow).all():
            raise HrbenchError(f"{image_id}: the anomaly map exceeds the range of float32")
        if self._lossless:
            dropped = np.bitwise_or.reduce(narrow.view(np.uint32), axis=None) & ((1 << KEY_SHIFT) - 1)
            self._lossless = not dropped and (narrow is scores or bool((narrow == scores).all()))
        return narrow

    def _add_components(
        self,
        image_id: str,
        scores: Scores,
        defect: npt.NDArray[np.bool_],
        defect_type: str,
        decision: npt.NDArray[np.bool_] | None,
    ) -> Scores:
        """Add the components of one mask and return the scores of their pixels."""
        components = find_components(defect, self.spec.connectivity)
        defect_scores: Scores = scores.ravel()[components.pixels]
        self._scores.append(defect_scores)
        hits: Sequence[int | None] = [None] * components.areas.size
        if decision is not None:
            first = np.cumsum(components.areas) - components.areas
            hits = np.add.reduceat(decision.ravel()[components.pixels], first, dtype=np.int64).tolist()
        columns = dict(zip(("top", "left", "bottom", "right"), components.boxes.T, strict=True))
        repeated = {"image": [image_id] * components.areas.size, "defect_type": [defect_type] * components.areas.size}
        self._components.append({**repeated, "area": components.areas, **columns, "decision_pixels": hits})
        return defect_scores

    def result(self) -> Evidence:
        """Return the evidence so far, images in order of their id."""
        if not self._images:
            raise HrbenchError("no images: there is nothing to evaluate")
        double = any(part.keys.dtype == np.uint64 for part in self._normals)
        if double:  # exact mode met float32 and float64 maps: bring all to float64
            self._normals = [_widen(part) for part in self._normals]
        ids = [row["id"] for row in self._images]
        normals, unmasked = set_apart(ids, self._normals, self._unmasked)
        columns = {name: [x for part in self._components for x in part[name]] for name in COMPONENT_DTYPES}
        evidence = Evidence(
            images=pd.DataFrame(self._images).astype(IMAGE_DTYPES),
            components=pd.DataFrame(columns).astype(COMPONENT_DTYPES),
            defect_scores=np.concatenate(
                [np.zeros(0, np.float64 if double else np.float32), *self._scores], dtype=None
            ),
            normals=normals,
            lossless=self.spec.exact or self._lossless,
            spec=self.spec,
            unmasked=unmasked,
        )
        return Evidence.merge([evidence])


def _widen(part: NormalScores) -> NormalScores:
    if part.keys.dtype == np.uint64:
        return part
    return SortedKeys(score_keys(key_scores(part.keys).astype(np.float64)), part.shift)
