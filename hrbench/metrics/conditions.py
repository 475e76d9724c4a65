"""A method under each condition, such as the lights of MVTec AD 2, beside the same parts under one of them.

Every condition is measured on its images alone: its size bins and matched thresholds are its own, the operating
threshold is that of the whole. Groups of images (parts) that show the same under both conditions are what a drop is
measured on; both draw the same of them, so that its interval is that of paired values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping

import pandas as pd

from hrbench.errors import HrbenchError, unknown_name
from hrbench.evidence import Evidence
from hrbench.metrics.bootstrap import Replicates, drawn_replicates, paired_difference
from hrbench.metrics.catalogue import Key
from hrbench.metrics.context import Context
from hrbench.metrics.table import KEY_COLUMNS, METRIC_COLUMNS, metric_rows
from hrbench.protocol import Protocol

__all__ = ["CONDITION_COLUMNS", "Lit", "condition_rows", "drop_rows", "pick_reference", "under_conditions"]

CONDITION_COLUMNS = (
    "condition", "reference", *METRIC_COLUMNS, "ci_low", "ci_high", "images", "drop", "drop_low", "drop_high", "parts",
)  # fmt: skip
"""Columns of :func:`condition_rows`."""

_KEYS = list(KEY_COLUMNS)


@dataclasses.dataclass(frozen=True)
class Lit:
    """Evidence under one condition.

    Attributes
    ----------
    condition : str
    own : Evidence
        Of all its images.
    pair : (Evidence, Evidence) or None
        Of the parts that show the same under the reference and under the condition, with equal names for their images;
        None for the reference itself, and where no such part has a defect.
    parts : int
        How many they are.
    """

    condition: str
    own: Evidence
    pair: tuple[Evidence, Evidence] | None = None
    parts: int = 0


def pick_reference(conditions: Collection[str]) -> str:
    """Return the condition that others are held against: ``regular`` where there is one, else the first by name."""
    return "regular" if "regular" in conditions else min(conditions)


def under_conditions(evidence: Evidence, conditions: Mapping[str, str], reference: str) -> Iterator[Lit]:
    """Yield the evidence under each condition, the reference first; `conditions` are given by the images' ids."""
    images_of: dict[str, list[str]] = {}
    for name in evidence.images["id"]:
        if condition := conditions.get(name, ""):
            images_of.setdefault(condition, []).append(name)
    parts = {condition: _parts(evidence, ids) for condition, ids in images_of.items()}
    for condition in sorted(images_of, key=lambda name: (name != reference, name)):
        own = evidence.of_images(images_of[condition])
        both = {name for name, part in parts[condition].items() if part.same(parts[reference].get(name))}
        if condition == reference or not any(parts[condition][name].defective for name in both):
            yield Lit(condition, own)
            continue
        shown = [[parts[of][name] for name in sorted(both)] for of in (reference, condition)]
        yield Lit(condition, own, (_renamed(evidence, shown[0]), _renamed(evidence, shown[1])), len(both))


def condition_rows(context: Context, reference: str | None = None) -> pd.DataFrame:
    """Measure the headline metrics under each condition that evidence knows, and what they lose against the reference.

    Parameters
    ----------
    context : Context
    reference : str, optional
        By default that of :func:`pick_reference`.

    Returns
    -------
    DataFrame
        AUPRO at the headline limit and recall at the headline budget of false alarms, without masks image ROC-AUC and
        the share of defective images that alarm: a row for each condition and metric, the reference first, with
        :data:`CONDITION_COLUMNS`. `drop` is the value under `reference` minus that under `condition` on the `parts`
        that show the same under both, NaN for the reference and without any. Without two conditions there is no row.

    Raises
    ------
    HrbenchError
        If no image has the reference as its condition.
    """
    evidence, protocol = context.evidence, context.protocol
    conditions = evidence.conditions
    tables = []
    if len(names := set(conditions.values())) > 1 and evidence.annotated is None:  # else it cannot be taken apart
        keys, reference = _headline(protocol), pick_reference(names) if reference is None else reference
        if reference not in names:
            raise unknown_name("condition", reference, names)
        for lit in under_conditions(evidence, conditions, reference):
            try:
                table, drawn = _measured(Context(lit.own, protocol, context.threshold), keys)
                drop = pd.DataFrame(columns=[*_KEYS, "drop", "drop_low", "drop_high"])
                if lit.pair is not None:
                    pair = [_measured(Context(part, protocol, context.threshold), keys) for part in lit.pair]
                    drop = drop_rows(pair[0], pair[1], protocol.bootstrap.level)
            except HrbenchError:  # nothing can be measured there, as where masks cover all
                continue
            if drawn is not None:
                ends = drawn.intervals(protocol.bootstrap.level)
                table = table.merge(ends, "left", on=_KEYS, validate="one_to_one")
            table = table.merge(drop.astype(dict.fromkeys(("fpr_limit", "drop", "drop_low", "drop_high"), float)),
                                "left", on=_KEYS, validate="one_to_one")  # fmt: skip
            facts = {"reference": reference, "images": len(lit.own.images), "parts": lit.parts}
            tables.append(table.assign(condition=lit.condition, **facts))
    if not tables:
        return pd.DataFrame(columns=list(CONDITION_COLUMNS))
    return pd.concat(tables, ignore_index=True).reindex(columns=list(CONDITION_COLUMNS))


def drop_rows(
    before: tuple[pd.DataFrame, Replicates | None], after: tuple[pd.DataFrame, Replicates | None], level: float
) -> pd.DataFrame:
    """Return ``metric, subset, fpr_limit, drop, drop_low, drop_high`` of values and replicates under two conditions."""
    values = before[0][[*_KEYS, "value"]].merge(after[0][[*_KEYS, "value"]], on=_KEYS, suffixes=("_before", "_after"))
    values["drop"] = values.pop("value_before") - values.pop("value_after")  # exact, where the draws share bins
    if before[1] is None or after[1] is None:
        return values.assign(drop_low=math.nan, drop_high=math.nan)
    paired = paired_difference(before[1], after[1], level=level)[[*_KEYS, "ci_low", "ci_high"]]
    paired = paired.rename(columns={"ci_low": "drop_low", "ci_high": "drop_high"})
    return values.merge(paired, "left", on=_KEYS, validate="one_to_one")


def _headline(protocol: Protocol) -> list[Key]:
    budget = protocol.alarm.headline if protocol.alarm.budgets else math.nan
    return [
        Key("aupro", "all", protocol.headline_fpr),
        Key("recall_matched", "all", budget),
        Key("image_auroc", "all", math.nan),
        Key("called_matched", "all", budget),
    ]


def _measured(context: Context, keys: Collection[Key]) -> tuple[pd.DataFrame, Replicates | None]:
    """Return values and replicates of some rows; those that take no masks only where there is nothing else."""
    table = metric_rows(context, keys)
    if "aupro" in set(table["metric"]):
        table = table[table["metric"].isin(["aupro", "recall_matched"])].reset_index(drop=True)
    if not context.protocol.bootstrap.draws or table.empty:
        return table, None
    return table, drawn_replicates(context, [key for key in keys if key.metric in set(table["metric"])])


@dataclasses.dataclass(frozen=True)
class _Part:
    """The images of a group under one condition."""

    name: str
    ids: tuple[str, ...]
    labels: tuple[int, ...]

    @property
    def defective(self) -> bool:
        return any(self.labels)

    def same(self, other: _Part | None) -> bool:
        """Tell whether it shows the same under another condition: a defect need not be seen from every side."""
        return other is not None and other.labels == self.labels


def _parts(evidence: Evidence, ids: list[str]) -> dict[str, _Part]:
    rows = evidence.images[evidence.images["id"].isin(ids) & (evidence.images["group"] != "")]
    return {
        str(name): _Part(str(name), tuple(of["id"]), tuple(of["label"].astype(int)))
        for name, of in rows.groupby("group", sort=False)
    }


def _renamed(evidence: Evidence, parts: list[_Part]) -> Evidence:
    """Return the evidence of parts, with names for their images that are the same under every condition.

    The draws of a bootstrap follow from the names, and are the same then.
    """
    names = {name: f"{part.name} {number}" for part in parts for number, name in enumerate(part.ids)}
    return evidence.of_images(names).renamed(names)
