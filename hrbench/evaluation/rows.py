"""Rows of a table of metrics, by name."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hrbench.errors import HrbenchError, unknown_name
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.measurement import LIMIT_METRICS
from hrbench.metrics.segmentation import MATCHED
from hrbench.protocol import Protocol

__all__ = ["row_of"]


def row_of(table: pd.DataFrame, protocol: Protocol, metric: str, subset: str, fpr_limit: float | None) -> pd.Series:
    """Return one row of a table with the columns ``metric, subset, fpr_limit``.

    Without a limit it is that of the headline, for a metric with limits.

    Raises
    ------
    HrbenchError
        Names what there is, for an unknown metric, subset or limit.
    """
    rows = table[table["metric"] == metric]
    if rows.empty and (metric in METRICS or metric.removesuffix(MATCHED.suffix) in LIMIT_METRICS):
        raise HrbenchError(
            f"metric {metric!r} is not measured here under protocol {protocol.name!r} (version {protocol.version}), "
            f"expected one of: {', '.join(table['metric'].unique())}"
        )
    if rows.empty:
        raise unknown_name("metric", metric, table["metric"].unique())
    known = rows["subset"].unique()
    rows = rows[rows["subset"] == subset]
    if rows.empty:
        raise unknown_name(f"subset of {metric!r}", subset, known)
    limits = rows["fpr_limit"].to_numpy()
    without = bool(np.isnan(limits).all())
    if without and fpr_limit is not None:
        raise HrbenchError(f"fpr_limit is {fpr_limit} for metric {metric!r}, expected none: it has no limit")
    wanted = _headline(metric, protocol) if fpr_limit is None else fpr_limit
    rows = rows if without else rows[np.isclose(limits, wanted, rtol=1e-9, atol=0)]
    if len(rows) != 1:
        known = ", ".join(f"{limit:g}" for limit in limits)
        raise HrbenchError(f"fpr_limit is {wanted:g} for metric {metric!r}, expected one of: {known}")
    return rows.iloc[0]


def _headline(metric: str, protocol: Protocol) -> float:
    at_alarms = METRICS[metric].limits == "alarms" if metric in METRICS else metric.endswith(MATCHED.suffix)
    return protocol.alarm.headline if at_alarms else protocol.headline_fpr
