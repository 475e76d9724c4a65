"""A method under each condition, such as the lights of MVTec AD 2, and what it loses against one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hrbench.errors import HrbenchError, unknown_name
from hrbench.evaluation.comparison import Measurable, as_evaluation
from hrbench.evaluation.result import Evaluation
from hrbench.evidence import Evidence
from hrbench.metrics.bootstrap import paired_difference
from hrbench.metrics.catalogue import Key
from hrbench.protocol import Protocol

__all__ = ["by_condition"]

_KEYS = list(Key._fields)


def by_condition(
    item: Evaluation | Measurable,
    conditions: Mapping[str, str],
    *,
    reference: str = "regular",
    protocol: str | Path | Protocol | None = None,
) -> pd.DataFrame:
    """Measure a method under each condition, and what it loses against one of them.

    Every condition is measured on its images alone: its size bins and matched thresholds are its own. The operating
    threshold is that of the whole. Parts (groups of images) that show the same under both conditions are what the drop
    is measured on; both draw the same of them, so that its interval is that of paired values.

    Parameters
    ----------
    item : Evaluation or Run
    conditions : mapping of str to str
        By the images' ids, as ``{sample.id: sample.condition for sample in category.test}``. Images without one are
        left out.
    reference : str
        The condition that the others are held against.
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
        If no image has the reference as its condition.
    """
    whole = as_evaluation(item, protocol)
    evidence = whole.evidence
    images_of: dict[str, list[str]] = {}
    for name in evidence.images["id"]:
        if condition := conditions.get(name, ""):
            images_of.setdefault(condition, []).append(name)
    if reference not in images_of:
        raise unknown_name("condition", reference, images_of)
    parts = {condition: _parts(evidence, ids) for condition, ids in images_of.items()}
    tables = []
    for condition in sorted(images_of, key=lambda name: (name != reference, name)):
        try:
            own = _evaluated(whole, evidence.of_images(images_of[condition]))
        except HrbenchError as error:
            raise HrbenchError(f"condition {condition!r}: {error}") from None
        table = own.frame.assign(condition=condition)
        both = {name for name, part in parts[condition].items() if part.same(parts[reference].get(name))}
        if condition == reference or not any(parts[condition][name].defective for name in both):
            tables.append(table.assign(drop=float("nan"), drop_low=float("nan"), drop_high=float("nan"), parts=0))
            continue
        before, after = (
            _evaluated(whole, _renamed(evidence, [parts[of][name] for name in sorted(both)]))
            for of in (reference, condition)
        )
        table = table.merge(_drop(before, after), "left", on=_KEYS, validate="one_to_one")
        tables.append(table.assign(parts=len(both)))
    columns = ["condition", *(name for name in tables[0] if name != "condition")]
    return pd.concat(tables, ignore_index=True)[columns]


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
    chosen = evidence.of_images(names)
    renamed = dataclasses.replace(
        chosen,
        images=chosen.images.assign(id=chosen.images["id"].map(names).astype("str")),
        components=chosen.components.assign(image=chosen.components["image"].map(names).astype("str")),
        unmasked={names[name]: pixels for name, pixels in chosen.unmasked.items()},
    )
    return Evidence.merge([renamed])  # in order of the new names


def _drop(before: Evaluation, after: Evaluation) -> pd.DataFrame:
    level = before.protocol.bootstrap.level
    drop = paired_difference(before.replicates, after.replicates, level=level)[[*_KEYS, "ci_low", "ci_high"]]
    for name, item in (("before", before), ("after", after)):
        values = item.values[[*_KEYS, "value"]].rename(columns={"value": name})
        drop = drop.merge(values, "left", on=_KEYS, validate="one_to_one")
    drop["drop"] = drop.pop("before") - drop.pop("after")  # exact, where the draws share bins of scores
    return drop.rename(columns={"ci_low": "drop_low", "ci_high": "drop_high"})


def _evaluated(whole: Evaluation, evidence: Evidence) -> Evaluation:
    return Evaluation(evidence, whole.protocol, threshold=whole.threshold)
