"""All that a protocol measures on one category's evidence: metrics with intervals, and detection limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from hrbench.evidence import Evidence
from hrbench.metrics.annotation import annotation_rows
from hrbench.metrics.bootstrap import REPLICATE_COLUMNS, Replicates, drawn_replicates
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.conditions import condition_rows
from hrbench.metrics.context import Context
from hrbench.metrics.detection import Detection, detections
from hrbench.metrics.segmentation import AUTOMATIC, MATCHED
from hrbench.metrics.sizes import DISJOINT
from hrbench.metrics.table import KEY_COLUMNS, METRIC_COLUMNS, component_rows, image_rows, metric_rows
from hrbench.protocol import Protocol

__all__ = ["LIMIT_METRICS", "Measured", "limit_rows", "measure", "with_intervals"]


LIMIT_METRICS = ("a50", "a90", "a90_95")
"""Detection limits in records; at equal false alarms with the suffix of metrics there."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run keeps of one protocol, as tables with a column `protocol`.

    Attributes
    ----------
    records : DataFrame
        The columns of :func:`hrbench.metrics.compute`, and ci_low, ci_high. Added are the metrics ``a50``, ``a90`` and
        ``a90_95`` at the automatic threshold, and with the suffix ``_matched`` at each budget of false alarms:
        component areas in pixels, NaN where not reached; ``a90`` with its bootstrap interval, whose upper end may be
        infinite.
    components, images : DataFrame
        See :func:`hrbench.metrics.component_table` and :func:`hrbench.metrics.table.image_rows`.
    replicates : DataFrame
        Bootstrap replicates of AUPRO at the headline limit, from which ranks get their intervals; for paired
        differences by quarter too, beside recall at the headline budget of false alarms and mean recall.
    annotation : DataFrame
        See :func:`hrbench.metrics.annotation.annotation_rows`.
    conditions : DataFrame
        Headline metrics under each condition, see :func:`hrbench.metrics.conditions.condition_rows`; without conditions
        no row, and no file.
    """

    records: pd.DataFrame
    components: pd.DataFrame
    images: pd.DataFrame
    replicates: pd.DataFrame
    annotation: pd.DataFrame
    conditions: pd.DataFrame


def measure(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> Measured:
    """Return all metrics under a protocol with their intervals, and the sizes that are found reliably.

    `threshold` stands for the protocol's automatic one, as in :func:`hrbench.metrics.compute`.
    """
    context = Context(evidence, protocol, threshold)
    drawn = drawn_replicates(context) if protocol.bootstrap.draws else None
    records = with_intervals(metric_rows(context), context, drawn, detections(context))
    none = pd.DataFrame(columns=REPLICATE_COLUMNS)
    kept = none if drawn is None else _kept(drawn, protocol).table()
    masks = annotation_rows(context, drawn)
    tables = (records, component_rows(context), image_rows(context), kept, masks, condition_rows(context))
    return Measured(*(table.assign(protocol=protocol.name) for table in tables))


def _kept(drawn: Replicates, protocol: Protocol) -> Replicates:
    """Return the rows that a run keeps: those that there are without masks stand in for those that take them."""
    kept: list[tuple[str, str, float | None]] = [
        ("aupro", subset, protocol.headline_fpr) for subset in ("all", *DISJOINT)
    ]
    if protocol.alarm.budgets:
        kept += [("recall_matched", subset, protocol.alarm.headline) for subset in ("all", *DISJOINT)]
    if protocol.alarm.summary:
        kept.append(("mean_recall", "all", None))
    if "spro" in set(drawn.keys["metric"]):
        kept.append(("spro", "all", protocol.headline_fpr))
    if "aupro" not in set(drawn.keys["metric"]):
        kept = [("image_auroc", "all", None), ("called_matched", "all", protocol.alarm.headline)]
        kept = [key for key in kept if key[0] in set(drawn.keys["metric"])]
    return drawn.only(np.array([drawn.row(*key) for key in kept], dtype=np.int64))


def with_intervals(
    values: pd.DataFrame, context: Context, drawn: Replicates | None, found: Iterable[Detection]
) -> pd.DataFrame:
    """Return the rows of :func:`hrbench.metrics.table.metric_rows` with ci_low and ci_high, and detection limits.

    Intervals come from the replicates, all NaN without any; shares of counted images have those of a proportion.
    """
    level = context.protocol.bootstrap.level
    if drawn is None:
        records = values.assign(ci_low=np.nan, ci_high=np.nan)
    else:
        records = values.merge(drawn.intervals(level), "left", on=list(KEY_COLUMNS), validate="one_to_one")
    for row in records.itertuples():
        counted = METRICS[row.metric].counted
        alarms = None if counted is None else counted(context, row.fpr_limit)
        if alarms is not None:
            records.loc[row.Index, ["ci_low", "ci_high"]] = alarms.interval(level)
    limits = limit_rows(found)
    return records if limits.empty else pd.concat([records, limits], ignore_index=True)


def limit_rows(found: Iterable[Detection]) -> pd.DataFrame:
    """Return the detection limits at operating points as rows of records; without any an empty table of them."""
    table = [row for result in found for row in _limits_at(result)]
    return pd.DataFrame(table, columns=[*METRIC_COLUMNS, "ci_low", "ci_high"])


def _limits_at(result: Detection) -> list[dict[str, object]]:
    suffix, budget = (AUTOMATIC.suffix, math.nan) if result.budget is None else (MATCHED.suffix, result.budget)
    rows = []
    for name, limit in zip(LIMIT_METRICS, (result.a50, result.a90, result.a90_95), strict=True):
        low, high = result.interval.get("bootstrap", (math.nan, math.nan)) if name == "a90" else (math.nan, math.nan)
        rows.append(
            {
                "metric": f"{name}{suffix}",
                "subset": "all",
                "fpr_limit": budget,
                "value": math.nan if limit.area is None else limit.area,
                "error_bound": 0.0,
                "n": result.areas.size,
                "ci_low": low,
                "ci_high": high,
            }
        )
    return rows
