"""All that a protocol measures on one category's evidence: metrics with intervals, and detection limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from hrbench.evidence import Evidence
from hrbench.metrics.bootstrap import replicates
from hrbench.metrics.detection import Detection, detection
from hrbench.metrics.segmentation import automatic_threshold
from hrbench.metrics.table import KEY_COLUMNS, component_table, compute
from hrbench.protocol import Protocol

__all__ = ["Measured", "detection_of", "measure"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run keeps of one protocol, as tables with a column `protocol`.

    Attributes
    ----------
    records : DataFrame
        The columns of :func:`hrbench.metrics.compute`, and ci_low, ci_high. Added are the metrics ``a50``, ``a90`` and
        ``a90_95``: component areas in pixels, NaN where not reached.
    components : DataFrame
        See :func:`hrbench.metrics.component_table`.
    replicates : DataFrame
        Bootstrap replicates of AUPRO at the headline limit, from which ranks get their intervals.
    """

    records: pd.DataFrame
    components: pd.DataFrame
    replicates: pd.DataFrame


def measure(evidence: Evidence, protocol: Protocol) -> Measured:
    """Return all metrics under a protocol with their intervals, and the sizes that are found reliably."""
    records, drawn = compute(evidence, protocol), pd.DataFrame()
    if protocol.bootstrap.draws:
        result = replicates(evidence, protocol)
        ends = result.intervals(protocol.bootstrap.level)
        records = records.merge(ends, "left", on=list(KEY_COLUMNS), validate="one_to_one")
        drawn = result.table("aupro", fpr_limit=protocol.headline_fpr)
    else:
        records = records.assign(ci_low=np.nan, ci_high=np.nan)
    detectability = detection_of(evidence, protocol)
    if detectability is not None:
        rows = pd.DataFrame({"metric": ["a50", "a90", "a90_95"], "subset": "all", "fpr_limit": np.nan})
        limits = (detectability.a50, detectability.a90, detectability.a90_95)
        rows["value"] = [np.nan if limit.area is None else limit.area for limit in limits]
        rows = rows.assign(error_bound=0.0, n=len(evidence.components), ci_low=np.nan, ci_high=np.nan)
        records = pd.concat([records, rows], ignore_index=True)
    tables = (records, component_table(evidence, protocol), drawn)
    return Measured(*(table.assign(protocol=protocol.name) for table in tables))


def detection_of(evidence: Evidence, protocol: Protocol) -> Detection | None:
    """Return the probability of detection at the automatic threshold; None where there is no threshold."""
    threshold = automatic_threshold(evidence, protocol.threshold)
    return None if threshold is None else detection(evidence, threshold, protocol.pod, protocol.bootstrap)
