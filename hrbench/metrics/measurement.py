"""All that a protocol measures on one category's evidence: metrics with intervals, and detection limits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from hrbench.evidence import Evidence
from hrbench.metrics.bootstrap import drawn_replicates
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.context import Context
from hrbench.metrics.detection import Detection, detections
from hrbench.metrics.segmentation import AUTOMATIC, MATCHED
from hrbench.metrics.table import KEY_COLUMNS, component_rows, image_rows, metric_rows
from hrbench.protocol import Protocol

__all__ = ["Measured", "detections_of", "measure"]


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
        Bootstrap replicates of AUPRO at the headline limit, from which ranks get their intervals.
    """

    records: pd.DataFrame
    components: pd.DataFrame
    images: pd.DataFrame
    replicates: pd.DataFrame


def measure(evidence: Evidence, protocol: Protocol, *, threshold: float | None = None) -> Measured:
    """Return all metrics under a protocol with their intervals, and the sizes that are found reliably.

    `threshold` stands for the protocol's automatic one, as in :func:`hrbench.metrics.compute`.
    """
    context = Context(evidence, protocol, threshold)
    records, drawn = metric_rows(context), pd.DataFrame()
    if protocol.bootstrap.draws:
        result = drawn_replicates(context)
        ends = result.intervals(protocol.bootstrap.level)
        records = records.merge(ends, "left", on=list(KEY_COLUMNS), validate="one_to_one")
        drawn = result.table("aupro", fpr_limit=protocol.headline_fpr)
    else:
        records = records.assign(ci_low=np.nan, ci_high=np.nan)
    _set_counted_intervals(records, context)
    limits = [row for result in detections(context) for row in _limit_rows(result)]
    if limits:
        records = pd.concat([records, pd.DataFrame(limits)], ignore_index=True)
    tables = (records, component_rows(context), image_rows(context), drawn)
    return Measured(*(table.assign(protocol=protocol.name) for table in tables))


def _set_counted_intervals(records: pd.DataFrame, context: Context) -> None:
    """Give shares of counted images the interval of a binomial proportion."""
    for row in records.itertuples():
        counted = METRICS[row.metric].counted
        alarms = None if counted is None else counted(context, row.fpr_limit)
        if alarms is not None:
            ends = alarms.interval(context.protocol.bootstrap.level)
            records.loc[row.Index, ["ci_low", "ci_high"]] = ends


def _limit_rows(result: Detection) -> list[dict[str, object]]:
    """Return the rows of the detection limits at an operating point."""
    suffix, budget = (AUTOMATIC.suffix, math.nan) if result.budget is None else (MATCHED.suffix, result.budget)
    rows = []
    for name, limit in (("a50", result.a50), ("a90", result.a90), ("a90_95", result.a90_95)):
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


def detections_of(evidence: Evidence, protocol: Protocol) -> dict[float | None, Detection]:
    """Return the probability of detection by budget of false alarms; None stands for the automatic threshold."""
    return {result.budget: result for result in detections(Context(evidence, protocol))}
