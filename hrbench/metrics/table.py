"""All metrics of a protocol as one tidy table."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from hrbench.evidence import Evidence
from hrbench.metrics.aupimo import aupimo_of
from hrbench.metrics.catalogue import Key, rows
from hrbench.metrics.context import Context
from hrbench.metrics.curves import component_areas
from hrbench.metrics.segmentation import predicted_pixels
from hrbench.protocol import Protocol

__all__ = ["KEY_COLUMNS", "METRIC_COLUMNS", "component_rows", "component_table", "compute", "image_rows", "metric_rows"]

KEY_COLUMNS = Key._fields
METRIC_COLUMNS = (*KEY_COLUMNS, "value", "error_bound", "n")


def compute(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> pd.DataFrame:
    """Return one row per metric, subset and FPR limit.

    Parameters
    ----------
    evidence : Evidence
        Of one category.
    protocol : Protocol
    threshold : float, optional
        Operating threshold (a pixel is predicted defective at or above it). By default the protocol's rule
        applied to held-out normal images; where there are none, metrics at the automatic threshold are NaN.

    Returns
    -------
    DataFrame
        Columns ``metric, subset, fpr_limit, value, error_bound, n``; what each metric is and what its `n` counts stands
        in :data:`hrbench.metrics.catalogue.CATALOGUE`. `fpr_limit` is a share of normal pixels or, for metrics at equal
        false alarms (``..._matched``), the budget, a share of good images; NaN for metrics without one. The true value
        lies within `error_bound` of `value`. An undefined value is NaN: image metrics when all images have one label, a
        subset without components. Without any component there are only the rows that take no masks.

    Raises
    ------
    HrbenchError
        If the masks cover all images wholly.
    """
    return metric_rows(Context(evidence, protocol, threshold))


def metric_rows(context: Context, only: Collection[Key] | None = None) -> pd.DataFrame:
    """Return what :func:`compute` does, of the rows of some keys only where they are given."""
    table = []
    for metric, key in rows(context):
        if only is not None and key not in only:
            continue
        value = metric.exact(context, key.subset, key.fpr_limit)
        table.append((*key, float(value.value), float(value.bound), metric.n(context, key.subset)))
    return pd.DataFrame(table, columns=list(METRIC_COLUMNS))


def component_table(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> pd.DataFrame:
    """Return one row per defect component, so that any grouping by size or kind is a group-by.

    Columns: those of `evidence.components`; ``critical``, the highest threshold at which it is hit, rounded down to an
    edge of the evidence's bins; ``aupro@L`` for each FPR limit of the protocol, exact over all thresholds whatever the
    protocol's sampling; ``overlap`` and ``overlap_decision``, the share of the component that is predicted defective at
    the operating threshold (see :func:`compute`) and in the method's own decision, NaN where none is.
    """
    return component_rows(Context(evidence, protocol, threshold))


def component_rows(context: Context) -> pd.DataFrame:
    """Return what :func:`component_table` does."""
    evidence, threshold = context.evidence, context.threshold
    pixels = evidence.components["area"]
    columns: dict[str, Any] = {"critical": context.critical}
    areas = component_areas(evidence, context.protocol.fpr_limits)
    columns |= {f"aupro@{limit:g}": area.value for limit, area in areas.items()}
    columns["overlap"] = np.nan if threshold is None else predicted_pixels(evidence, threshold) / pixels
    columns["overlap_decision"] = evidence.components["decision_pixels"].astype("Float64").astype(float) / pixels
    return evidence.components.assign(**columns)


def image_rows(context: Context) -> pd.DataFrame:
    """Return one row per image.

    Columns: image (its id), label, group, score; ``alarm``, the highest threshold at which it alarms, rounded down to
    an edge of the evidence's bins; ``largest``, the area of its largest component in pixels, 0 without any; ``aupimo``,
    NaN for a good image.
    """
    table = context.evidence.images[["id", "label", "group", "score"]].rename(columns={"id": "image"})
    per_image = context.once(aupimo_of).value
    return table.assign(alarm=context.alarms, largest=context.largest, aupimo=per_image)
