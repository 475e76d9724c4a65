"""All metrics of a protocol as one tidy table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evidence import Collection, Evidence
from hrbench.metrics.curves import (
    Certified,
    binary_auroc,
    binary_average_precision,
    component_areas,
    pixel_average_precision,
)
from hrbench.metrics.robustness import size_robustness
from hrbench.metrics.sampled import sampled_aupro
from hrbench.metrics.segmentation import (
    automatic_threshold,
    called_pixels,
    component_hits,
    oracle_iou,
    oracle_mean_iou,
    overlap_at,
    overlap_of_decisions,
    require_defects,
)
from hrbench.metrics.sizes import CUMULATIVE, DISJOINT, size_subsets
from hrbench.protocol import Protocol

__all__ = ["METRIC_COLUMNS", "component_table", "compute"]

METRIC_COLUMNS = ("metric", "subset", "fpr_limit", "value", "error_bound", "n")

_UNDEFINED = Certified(np.nan, np.nan, np.nan)


def compute(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> pd.DataFrame:
    """Return one row per metric, subset and FPR limit.

    Parameters
    ----------
    evidence : Evidence
        Of one category.
    protocol : Protocol
    threshold : float, optional
        Operating threshold (a pixel is called defective at or above it). By default the protocol's rule
        applied to held-out normal images; where there are none, `iou`, `miou`, `miou_all`, `f1` and `fpr` are NaN.

    Returns
    -------
    DataFrame
        Columns ``metric, subset, fpr_limit, value, error_bound, n``. `fpr_limit` is NaN for metrics without
        one; `n` counts what the value rests on: components for `aupro`, `rho`, `recall` and pixel metrics, images for
        `image_*`, `iou` and its kin (defective ones for `miou`; for `miou_all` all of them, a good one counting 1 if
        nothing is called in it). `recall` is the share of components that are hit, as in the protocol's rule for
        the probability of detection. The true value lies within
        `error_bound` of `value`. An undefined value is NaN: image metrics when all images have one label,
        a subset without components.

    Raises
    ------
    HrbenchError
        If there is no defect pixel or no normal pixel at all.
    """
    require_defects(evidence)
    if not evidence.collection.serves(protocol):
        raise HrbenchError(
            f"protocol {protocol.name!r} needs evidence collected as {Collection.of(protocol).name}, "
            f"this was collected as {evidence.collection.name}"
        )
    scores, labels = evidence.images["score"].to_numpy(), evidence.images["label"].to_numpy()
    images, defective = labels.size, int(labels.sum())
    rows = _Rows([])

    for metric, function in (("image_auroc", binary_auroc), ("image_ap", binary_average_precision)):
        result = function(scores, labels) if 0 < defective < images else np.nan
        rows.add(metric, Certified(result, result, result), images)

    areas = evidence.components["area"].to_numpy()
    subsets = size_subsets(areas, protocol.size_bins)
    pixels = component_areas(evidence, [1.0])[1.0]
    for name, keep in subsets.items():
        rows.add("pixel_auroc", pixels.mean(keep, areas.astype(np.float64)), keep.sum(), name)
    rows.add("pixel_ap", pixel_average_precision(evidence), areas.size)

    parts = component_areas(evidence, protocol.fpr_limits) if protocol.curve.sampling == "all" else {}
    for limit in protocol.fpr_limits:
        if parts:
            means = {name: parts[limit].mean(keep) for name, keep in subsets.items()}
        else:
            means = sampled_aupro(evidence, protocol.curve, limit, subsets)
        for name, mean in means.items():
            rows.add("aupro", mean, subsets[name].sum(), name, limit)
        for metric, names in (("rho", CUMULATIVE), ("rho_disjoint", DISJOINT)):
            complete = all(subsets[name].any() for name in names)
            rho = size_robustness([means[name] for name in names]) if complete else _UNDEFINED
            rows.add(metric, rho, areas.size, limit=limit)

    if threshold is None:
        threshold = automatic_threshold(evidence, protocol.threshold)
    overlaps = {"": None if threshold is None else overlap_at(evidence, threshold)}
    decided = overlap_of_decisions(evidence)
    if decided is not None:
        overlaps["_decision"] = decided
    for suffix, overlap in overlaps.items():
        rows.add(f"iou{suffix}", overlap.iou() if overlap else _UNDEFINED, images)
        rows.add(f"miou{suffix}", overlap.mean_iou() if overlap else _UNDEFINED, defective)
        rows.add(f"miou_all{suffix}", overlap.mean_iou(good=True) if overlap else _UNDEFINED, images)
        rows.add(f"f1{suffix}", overlap.f1() if overlap else _UNDEFINED, images)
        rows.add(f"fpr{suffix}", overlap.fpr(evidence.normal_pixels) if overlap else _UNDEFINED, images)
        hits = component_hits(evidence, None if suffix else threshold, protocol.pod.share) if overlap else None
        for name, keep in subsets.items():
            found = float(hits[keep].mean()) if hits is not None and keep.any() else np.nan
            rows.add(f"recall{suffix}", Certified(found, found, found), keep.sum(), name)
    iou, f1 = oracle_iou(evidence)
    rows.add("iou_oracle", iou, images)
    rows.add("f1_oracle", f1, images)
    rows.add("miou_oracle", oracle_mean_iou(evidence), defective)
    return pd.DataFrame(rows.rows, columns=list(METRIC_COLUMNS))


@dataclass(frozen=True)
class _Rows:
    rows: list[tuple[str, str, float, float, float, int]]

    def add(self, metric: str, value: Certified, n: int, subset: str = "all", limit: float = float("nan")) -> None:
        self.rows.append((metric, subset, limit, float(value.value), float(value.bound), int(n)))


def component_table(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> pd.DataFrame:
    """Return one row per defect component, so that any grouping by size or kind is a group-by.

    Columns: those of `evidence.components`; ``aupro@L`` for each FPR limit of the protocol, exact over all thresholds
    whatever the protocol's sampling; ``overlap`` and ``overlap_decision``, the share of the component that is called at
    the operating threshold (see :func:`compute`) and in the method's own decision, NaN where there is none.
    """
    areas = component_areas(evidence, protocol.fpr_limits)
    columns = {f"aupro@{limit:g}": area.value for limit, area in areas.items()}
    if threshold is None:
        threshold = automatic_threshold(evidence, protocol.threshold)
    pixels = evidence.components["area"]
    columns["overlap"] = np.nan if threshold is None else called_pixels(evidence, threshold) / pixels
    columns["overlap_decision"] = evidence.components["decision_pixels"].astype("Float64").astype(float) / pixels
    return evidence.components.assign(**columns)
