"""What the metrics of one category share: each thing is computed when a metric first asks for it, and once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence, EvidenceSpec
from hrbench.metrics.alarms import Matched, alarm_scores, critical_scores, matched_point
from hrbench.metrics.curves import Certified, component_areas
from hrbench.metrics.sampled import sampled_aupro
from hrbench.metrics.segmentation import (
    AUTOMATIC,
    DECISION,
    OperatingPoint,
    Overlap,
    automatic_threshold,
    component_hits,
    overlap_at,
    overlap_of_decisions,
    require_normal_pixels,
)
from hrbench.metrics.sizes import evidence_subsets
from hrbench.protocol import Protocol

__all__ = ["Context", "Shared"]

Bools = npt.NDArray[np.bool_]
T = TypeVar("T")


class Shared:
    """Remembers results of functions of itself, so that metrics can share work in modules of their own."""

    def __init__(self) -> None:
        self._results: dict[Callable[..., Any], Any] = {}

    def once(self, function: Callable[[Self], T]) -> T:
        """Return ``function(self)``, which is computed at the first call."""
        if function not in self._results:
            self._results[function] = function(self)
        result: T = self._results[function]
        return result


class Context(Shared):
    """Evidence of one category under a protocol.

    Parameters
    ----------
    evidence : Evidence
    protocol : Protocol
    threshold : float, optional
        Operating threshold; by default the protocol's rule applied to held-out normal images.

    Raises
    ------
    HrbenchError
        If the masks cover all images wholly, the evidence was collected for other protocols, or the threshold is not a
        finite number.
    """

    def __init__(self, evidence: Evidence, protocol: Protocol, threshold: float | None = None) -> None:
        super().__init__()
        require_normal_pixels(evidence)
        if not evidence.spec.serves(protocol):
            raise HrbenchError(
                f"protocol {protocol.name!r} needs evidence collected as {EvidenceSpec.of(protocol).name}, "
                f"this was collected as {evidence.spec.name}"
            )
        self.evidence, self.protocol = evidence, protocol
        self.labels: npt.NDArray[np.int64] = evidence.images["label"].to_numpy(dtype=np.int64)
        self.scores: npt.NDArray[np.float64] = evidence.images["score"].to_numpy()
        self.areas: npt.NDArray[np.int64] = evidence.components["area"].to_numpy()
        self.subsets: dict[str, Bools] = evidence_subsets(evidence, protocol.size_bins)
        rule, pixels = protocol.threshold, protocol.alarm.pixels
        self.threshold = automatic_threshold(evidence, rule, pixels) if threshold is None else _finite(threshold)

    @cached_property
    def alarms(self) -> npt.NDArray[np.float64]:
        """Each image's alarm score, (n,), see :mod:`hrbench.metrics.alarms`."""
        return alarm_scores(self.evidence, self.protocol.alarm.pixels)

    @cached_property
    def critical(self) -> npt.NDArray[np.float64]:
        """Each component's critical score, (K,)."""
        return critical_scores(self.evidence, self.protocol.pod.share)

    @cached_property
    def matched(self) -> dict[float, Matched]:
        """The operating point of each of the protocol's budgets of false alarms; none without good images."""
        points = {budget: self._point(budget) for budget in self.protocol.alarm.budgets}
        return {budget: point for budget, point in points.items() if point is not None}

    def matched_at(self, budget: float) -> Matched | None:
        """Return the operating point of any budget of false alarms; None without good images."""
        return self.matched.get(budget) or self._point(budget)

    def _point(self, budget: float) -> Matched | None:
        return matched_point(self.evidence, self.alarms, budget)

    @cached_property
    def largest(self) -> npt.NDArray[np.int64]:
        """Area, as annotated, of the largest component of each image, (n,); 0 for none."""
        areas = np.zeros(self.labels.size, np.int64)
        np.maximum.at(areas, self.evidence.component_images, self.evidence.sizes)
        return areas

    @cached_property
    def image_subsets(self) -> dict[str, Bools]:
        """Which images have their largest component in each size subset, (n,); for "all": which are defective.

        Shrinking may lose a whole defect: such an image is defective, and in no other subset.
        """
        images = self.evidence.component_images
        largest = self.evidence.sizes == self.largest[images]  # subsets go by area: equal ones are in the same
        subsets = {"all": self.labels == 1}
        for name, components in self.subsets.items():
            if name != "all":
                subsets[name] = np.zeros(self.labels.size, bool)
                subsets[name][images[components & largest]] = True
        return subsets

    @cached_property
    def pixel_auroc(self) -> Certified:
        """Each component's ROC area, (K,)."""
        return component_areas(self.evidence, [1.0])[1.0]

    @cached_property
    def aupro(self) -> dict[float, dict[str, Certified]]:
        """AUPRO by FPR limit and subset."""
        limits, curve = self.protocol.fpr_limits, self.protocol.curve
        if curve.sampling != "all":
            return {limit: sampled_aupro(self.evidence, curve, limit, self.subsets) for limit in limits}
        areas = component_areas(self.evidence, limits)
        return {
            limit: {name: area.mean(members) for name, members in self.subsets.items()} for limit, area in areas.items()
        }

    @cached_property
    def overlaps(self) -> dict[OperatingPoint, Overlap | None]:
        """Overlap with the masks; None at the automatic threshold where there is none; no entry without decisions."""
        automatic = None if self.threshold is None else overlap_at(self.evidence, self.threshold)
        decided = overlap_of_decisions(self.evidence)
        return {AUTOMATIC: automatic} | ({} if decided is None else {DECISION: decided})

    @cached_property
    def hits(self) -> dict[OperatingPoint, Bools | None]:
        """Which components are hit, (K,), at each point of `overlaps`."""
        share = self.protocol.pod.share
        thresholds = {AUTOMATIC: self.threshold, DECISION: None}
        return {
            point: None if overlap is None else component_hits(self.evidence, thresholds[point], share)
            for point, overlap in self.overlaps.items()
        }


def _finite(threshold: Any) -> float:
    try:
        value = math.nan if isinstance(threshold, bool | str) else float(threshold)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise HrbenchError(f"threshold is {threshold!r}, expected a finite number")
    return value
