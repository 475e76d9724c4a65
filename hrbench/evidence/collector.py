"""Collecting evidence, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evidence.evidence import COMPONENT_DTYPES, IMAGE_DTYPES, Evidence, set_apart
from hrbench.evidence.histograms import NormalScores, SortedKeys, key_scores, score_keys
from hrbench.evidence.predicted import PredictedMap
from hrbench.evidence.regions import Regions, without_regions
from hrbench.evidence.rims import RIM_DTYPES, Rims
from hrbench.evidence.spec import EvidenceSpec
from hrbench.evidence.tally import RimTally, Tally, tally, tally_predicted
from hrbench.imaging import Region

__all__ = ["EvidenceCollector"]


class EvidenceCollector:
    """Collect evidence image by image.

    Parameters
    ----------
    spec : EvidenceSpec
    """

    def __init__(self, spec: EvidenceSpec) -> None:
        self.spec = spec
        self._tallies: list[Tally] = []

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
        condition: str = "",
        regions: Sequence[Region] | None = None,
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
        condition : str
            Under which light, or from which side, it was taken; empty where none is known.
        regions : sequence of Region, optional
            Those that `mask` unites, where the annotation has some. They are measured at native resolution only.
        """
        self.add(
            tally(
                self.spec,
                image_id,
                anomaly_map,
                mask,
                unmasked=unmasked,
                score=score,
                defect_type=defect_type,
                decision=decision,
                seconds=seconds,
                group=group,
                condition=condition,
                regions=regions,
            )
        )

    def update_predicted(
        self,
        image_id: str,
        predicted: PredictedMap,
        mask: npt.NDArray[np.bool_] | None,
        *,
        unmasked: bool = False,
        defect_type: str = "",
        group: str = "",
        condition: str = "",
        regions: Sequence[Region] | None = None,
    ) -> None:
        """Add one image whose map may lie on a device, where it is counted if that does; the rest is as in `update`."""
        self.add(
            tally_predicted(
                self.spec,
                image_id,
                predicted,
                mask,
                unmasked=unmasked,
                defect_type=defect_type,
                group=group,
                condition=condition,
                regions=regions,
            )
        )

    def add(self, image: Tally) -> None:
        """Add one image that was reduced, of the same `spec`."""
        self._tallies.append(image)

    def result(self) -> Evidence:
        """Return the evidence so far, images in order of their id."""
        if not self._tallies:
            raise HrbenchError("no images: there is nothing to evaluate")
        pixels = [part.normals for part in self._tallies]
        double = any(part.keys.dtype == np.uint64 for part in pixels)
        if double:  # exact mode met float32 and float64 maps: bring all to float64
            pixels = [_widen(part) for part in pixels]
        ids = [str(part.image["id"]) for part in self._tallies]
        normals, unmasked = set_apart(
            ids, pixels, {name for name, part in zip(ids, self._tallies, strict=True) if part.unmasked}
        )
        columns: dict[str, list[Any]] = {
            name: [x for part in self._tallies for x in part.components[name]] for name in COMPONENT_DTYPES
        }
        kind = np.float64 if double else np.float32
        evidence = Evidence(
            images=pd.DataFrame([part.image for part in self._tallies]).astype(IMAGE_DTYPES),
            components=pd.DataFrame(columns).astype(COMPONENT_DTYPES),
            defect_scores=np.concatenate([np.zeros(0, kind), *(part.scores for part in self._tallies)]),
            normals=normals,
            lossless=all(part.lossless for part in self._tallies),
            spec=self.spec,
            unmasked=unmasked,
            regions=self._regions(double=double),
            rims=_rims([part.rims for part in self._tallies if part.scores.size], kind),
        )
        return Evidence.merge([evidence])

    def _regions(self, *, double: bool) -> Regions | None:
        """Return the regions of all images, which must be all of the defective ones; in float64 if `double`."""
        known = [part.regions for part in self._tallies if part.regions is not None]
        if not known:
            return None
        for part in self._tallies:
            if part.regions is None and part.scores.size:
                raise without_regions(part.image["id"])
        regions = Regions.merge(known)
        return Regions(regions.table, regions.scores.astype(np.float64)) if double else regions


def _rims(parts: Sequence[RimTally | None], kind: npt.DTypeLike) -> Rims | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    columns = {name: [x for part in known for x in part.columns[name]] for name in RIM_DTYPES}
    return Rims(
        pd.DataFrame(columns).astype(RIM_DTYPES),
        np.concatenate([part.outer_scores for part in known]).astype(kind, copy=False),
        np.concatenate([part.inner for part in known]),
    )


def _widen(part: NormalScores) -> NormalScores:
    if part.keys.dtype == np.uint64:
        return part
    return SortedKeys(score_keys(key_scores(part.keys).astype(np.float64)), part.shift)
