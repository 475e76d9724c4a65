"""How far the annotation carries, for maps of any origin and for finished runs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.evaluation.collecting import as_mask
from hrbench.evaluation.comparison import Measurable, as_evaluation
from hrbench.evaluation.result import Evaluation
from hrbench.imaging import find_components
from hrbench.metrics.annotation import annotation_rows
from hrbench.metrics.context import Context
from hrbench.protocol import Protocol

__all__ = ["annotation_agreement", "annotation_tolerance"]

_END = object()


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


def annotation_agreement(masks: Iterable[npt.ArrayLike | None], others: Iterable[npt.ArrayLike | None]) -> pd.DataFrame:
    """Compare two annotations of the same images with each other.

    Parameters
    ----------
    masks, others : iterable of (H, W) arrays or None
        Image by image; non-zero is defect, None or all zero a good image.

    Returns
    -------
    DataFrame
        One row per image: ``iou`` of the two masks, 1 where both are empty; ``components`` of the first and of the
        second (``others``), 8-connected, and how many of each share a pixel with the other mask: ``matched``,
        ``others_matched``.

    Raises
    ------
    HrbenchError
        If two masks differ in size, or one annotation has more images.

    Examples
    --------
    >>> import numpy as np, hrbench
    >>> first, second = np.zeros((2, 8, 8), bool)
    >>> first[1:3, 1:5] = second[1:4, 1:5] = second[6, 6] = True
    >>> hrbench.annotation_agreement([first], [second]).round(2).to_dict("records")
    [{'iou': 0.62, 'components': 1, 'matched': 1, 'others': 2, 'others_matched': 1}]
    """
    rows = []
    pairs: Iterable[tuple[Any, Any]] = zip_longest(masks, others, fillvalue=_END)
    for index, pair in enumerate(pairs):
        if any(item is _END for item in pair):
            raise HrbenchError(f"one annotation ends after {index} images, the other goes on")
        known = [None if item is None else as_mask(item, f"mask {index}") for item in pair]
        size = next((mask.shape for mask in known if mask is not None), (1, 1))
        first, second = (np.zeros(size, bool) if mask is None else mask for mask in known)
        if first.shape != second.shape:
            raise HrbenchError(f"masks {index}: of shapes {first.shape} and {second.shape}, expected one")
        union = np.count_nonzero(first | second)
        (count, matched), (others_count, others_matched) = _matched(first, second), _matched(second, first)
        iou = np.count_nonzero(first & second) / union if union else 1.0
        rows.append((iou, count, matched, others_count, others_matched))
    return pd.DataFrame(rows, columns=["iou", "components", "matched", "others", "others_matched"])


def _matched(mask: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Count the components of a mask, and those that share a pixel with another mask."""
    found = find_components(mask)
    owner = np.repeat(np.arange(found.areas.size), found.areas)
    return found.areas.size, np.unique(owner[other.ravel()[found.pixels]]).size
