"""A method under each condition, such as the lights of MVTec AD 2, and what it loses against one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hrbench.errors import HrbenchError, unknown_name
from hrbench.evaluation.comparison import Measurable, as_evaluation
from hrbench.evaluation.result import Evaluation
from hrbench.evidence import Evidence
from hrbench.metrics.catalogue import Key
from hrbench.metrics.conditions import drop_rows, pick_reference, under_conditions
from hrbench.protocol import Protocol

__all__ = ["by_condition"]


def by_condition(
    item: Evaluation | Measurable,
    conditions: Mapping[str, str] | None = None,
    *,
    reference: str | None = None,
    protocol: str | Path | Protocol | None = None,
) -> pd.DataFrame:
    """Measure a method under each condition, and what it loses against one of them.

    See :mod:`hrbench.metrics.conditions` for what is measured on which images.

    Parameters
    ----------
    item : Evaluation or Run
    conditions : mapping of str to str, optional
        By the images' ids; images without one are left out. By default those that the run knows, from the descriptor
        of its dataset.
    reference : str, optional
        The condition that the others are held against; by default ``regular``, or the first by name.
    protocol : str, Path or Protocol, optional
        As for :func:`hrbench.compare`.

    Returns
    -------
    DataFrame
        One row per condition, metric, subset and limit, the reference first: ``condition``, the columns of
        :attr:`Evaluation.frame`, ``drop, drop_low, drop_high``: the value under the reference minus that under the
        condition, and its interval; and ``parts``, the number of parts that it is measured on. Without any the drop is
        NaN, as it is for the reference itself and for detection limits.

    Raises
    ------
    HrbenchError
        If no condition is known, or no image has the reference as its condition.
    """
    whole = as_evaluation(item, protocol)
    evidence = whole.evidence
    known = evidence.conditions if conditions is None else conditions
    names = {known[name] for name in evidence.images["id"] if known.get(name)}
    if not names:
        raise HrbenchError(
            "no image has a condition, expected some by the dataset's descriptor; `hrbench rescore --dataset NAME` "
            "gives them to runs of earlier versions"
        )
    if reference is None:
        reference = pick_reference(names)
    if reference not in names:
        raise unknown_name("condition", reference, names)
    keys, level = list(Key._fields), whole.protocol.bootstrap.level
    tables = []
    for lit in under_conditions(evidence, known, reference):
        try:
            table = _evaluated(whole, lit.own).frame.assign(condition=lit.condition)
        except HrbenchError as error:
            raise HrbenchError(f"condition {lit.condition!r}: {error}") from None
        if lit.pair is None:
            tables.append(table.assign(drop=float("nan"), drop_low=float("nan"), drop_high=float("nan"), parts=0))
            continue
        pair = [_evaluated(whole, part) for part in lit.pair]
        before, after = ((part.values, part.replicates) for part in pair)
        table = table.merge(drop_rows(before, after, level), "left", on=keys, validate="one_to_one")
        tables.append(table.assign(parts=lit.parts))
    columns = ["condition", *(name for name in tables[0] if name != "condition")]
    return pd.concat(tables, ignore_index=True)[columns]


def _evaluated(whole: Evaluation, evidence: Evidence) -> Evaluation:
    return Evaluation(evidence, whole.protocol, threshold=whole.threshold)
