"""How far the annotation carries: what metrics become where all masks are one pixel wider, or narrower.

Masks are drawn by hand; of two annotations of the same defect, the outlines differ by a pixel or more. What changes by
such a pixel is not known better than that, however many images there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from hrbench.evidence import MASKS, with_masks
from hrbench.metrics.bootstrap import Replicates, drawn_replicates, paired_difference
from hrbench.metrics.catalogue import METRICS, Key
from hrbench.metrics.context import Context

__all__ = ["ANNOTATION_COLUMNS", "MASKS", "annotation_rows"]

_KEYS = list(Key._fields)
ANNOTATION_COLUMNS = ("masks", *_KEYS, "value", "change", "change_low", "change_high", "components", "vanished")


def annotation_rows(context: Context, drawn: Replicates | None) -> pd.DataFrame:
    """Measure the same maps under masks dilated and eroded by one pixel, all of them at once.

    Thresholds do not move: they are set on normal images, which have no rims. Defects keep the size bin that they have
    as annotated; one of which erosion leaves nothing is left out, see :func:`hrbench.evidence.with_masks`.

    Parameters
    ----------
    context : Context
        Of the masks as annotated.
    drawn : Replicates or None
        Of the same; None for no intervals.

    Returns
    -------
    DataFrame
        Columns :data:`ANNOTATION_COLUMNS`, for each of the masks (eroded, annotated, dilated) one row per size subset
        of ``aupro`` at the headline limit, of ``recall_matched`` at the headline budget (``recall`` under a protocol
        without budgets) and of ``miou``, and one of ``iou``, both at the operating threshold. `change` is the value
        less that under the masks as annotated, with the interval of the paired difference over the same bootstrap
        draws; NaN for the annotated ones. `components` counts the subset's defects that are left, `vanished` those that
        are not. Without rims there is no row.
    """
    if context.evidence.rims is None:
        return pd.DataFrame(columns=list(ANNOTATION_COLUMNS))
    keys = [*_keys(context)]
    annotated = pd.Series([_value(context, key) for key in keys], dtype=float)
    tables = []
    for masks in MASKS:
        own = context
        if masks != "annotated":
            own = Context(with_masks(context.evidence, masks), context.protocol, context.threshold)
        left = [int(own.subsets[key.subset].sum()) for key in keys]
        table = pd.DataFrame(keys, columns=_KEYS).assign(
            masks=masks,
            value=[_value(own, key) for key in keys],
            components=left,
            vanished=np.array([int(context.subsets[key.subset].sum()) for key in keys]) - left,
        )
        table["change"] = math.nan if own is context else table["value"] - annotated
        if own is context or drawn is None or not own.areas.size:
            table = table.assign(change_low=math.nan, change_high=math.nan)
        else:
            altered = drawn_replicates(own, {key.metric for key in keys})
            paired = paired_difference(altered, drawn, level=context.protocol.bootstrap.level)
            paired = paired.rename(columns={"ci_low": "change_low", "ci_high": "change_high"})
            table = table.merge(paired[[*_KEYS, "change_low", "change_high"]], "left", on=_KEYS, validate="one_to_one")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)[list(ANNOTATION_COLUMNS)]


def _keys(context: Context) -> Iterator[Key]:
    protocol = context.protocol
    recall = Key("recall", "", math.nan)
    if protocol.alarm.budgets:
        recall = Key("recall_matched", "", protocol.alarm.headline)
    for key in (Key("aupro", "", protocol.headline_fpr), recall, Key("miou", "", math.nan)):
        for subset in context.subsets:
            yield key._replace(subset=subset)
    yield Key("iou", "all", math.nan)


def _value(context: Context, key: Key) -> float:
    if not context.areas.size:  # no defect is left, and nothing that it could be found in
        return math.nan
    return float(METRICS[key.metric].exact(context, key.subset, key.fpr_limit).value)
