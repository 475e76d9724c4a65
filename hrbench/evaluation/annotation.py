"""How far the annotation carries, for maps of any origin and for finished runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evaluation.comparison import Measurable, as_evaluation
from hrbench.evaluation.result import Evaluation
from hrbench.metrics.annotation import annotation_rows
from hrbench.metrics.context import Context
from hrbench.protocol import Protocol

__all__ = ["annotation_tolerance"]


def annotation_tolerance(
    item: Evaluation | Measurable, *, protocol: str | Path | Protocol | None = None
) -> pd.DataFrame:
    """Measure the same maps under masks that are one pixel wider, and narrower, than annotated.

    Two people who outline the same defect differ by a pixel or more. What that pixel changes is not known better than
    the masks are, however many images there are; where it changes more than methods differ, their order hangs on the
    annotation.

    Parameters
    ----------
    item : Evaluation or Run
        From :func:`hrbench.evaluate`, or a finished run whose evidence is kept.
    protocol : str, Path or Protocol, optional
        As for :func:`hrbench.compare`.

    Returns
    -------
    DataFrame
        One row per masks (eroded, annotated, dilated), metric, subset and limit, see
        :func:`hrbench.metrics.annotation.annotation_rows`: AUPRO, recall and mean IoU by the size of the defects as
        annotated, and pooled IoU, with the change against the masks as annotated and its interval. A defect of which
        nothing is left where the masks are eroded is left out there, and counted in `vanished`.

    Raises
    ------
    HrbenchError
        If there is no defect, or the evidence has no rims of them: it is of an earlier version, or of shrunk masks.

    Examples
    --------
    >>> import numpy as np, hrbench
    >>> mask = np.zeros((64, 64), bool)
    >>> mask[10:14, 20:30] = True
    >>> result = hrbench.evaluate([mask.astype("float32"), np.zeros((64, 64))], [mask, None])
    >>> table = hrbench.annotation_tolerance(result)
    >>> table.query("metric == 'aupro' and subset == 'all'")[["masks", "value"]].round(2).to_numpy().tolist()
    [['eroded', 0.97], ['annotated', 1.0], ['dilated', 0.57]]
    """
    whole = as_evaluation(item, protocol)
    evidence = whole.evidence
    if evidence.components.empty:
        raise HrbenchError("no defect in any mask: none can be drawn wider or narrower")
    if evidence.rims is None:
        why = "an earlier version collected it" if evidence.spec.side is None else "it is of shrunk masks"
        raise HrbenchError(f"the evidence has no rims of its defects, for {why}; expected that of this version")
    context = Context(evidence, whole.protocol, whole.threshold)
    return annotation_rows(context, whole.replicates if whole.protocol.bootstrap.draws else None)
