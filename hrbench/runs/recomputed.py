"""The tables of a run beside those computed anew: which rows, columns and values differ."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.metrics.measurement import Measured
from hrbench.protocol import Protocol

__all__ = ["TOLERANCE", "Counted", "close_values", "table_problems"]

TOLERANCE = 1e-9
"""Of numbers, relative to those above 1: other versions of numerical libraries round otherwise."""

_KEYS = {  # what names a row of a table; a defect is named by its place
    "records": ("metric", "subset", "fpr_limit"),
    "replicates": ("metric", "subset", "fpr_limit"),
    "images": ("image",),
    "annotation": ("masks", "metric", "subset", "fpr_limit"),
    "conditions": ("condition", "metric", "subset", "fpr_limit"),
}
_SAME = ("run", "dataset", "category", "method", "preset", "view", "weights", "seed")  # in all rows of records


@dataclasses.dataclass
class Counted:
    """Numbers that were compared, and those of them that are equal to the last bit."""

    numbers: int = 0
    equal: int = 0


def close_values(said: Any, found: Any) -> bool:
    """Tell whether two numbers are equal but for rounding."""
    numbers = isinstance(said, int | float) and isinstance(found, int | float)
    return numbers and math.isclose(said, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def table_problems(
    table: str, recorded: pd.DataFrame, measured: Measured, protocol: Protocol, counted: Counted
) -> list[str]:
    """Compare the rows of a table under one protocol with those computed anew."""
    found: pd.DataFrame = getattr(measured, table)
    name = f"{table} under {protocol.name}"
    said = recorded[recorded["protocol"] == protocol.name].reset_index(drop=True)
    found = found.reset_index(drop=True)
    if not len(said):  # nor columns, where the table is left out
        return [f"{name}: no rows, expected {len(found)}"] if len(found) else []
    said_keys, found_keys = (_row_names(table, frame) for frame in (said, found))
    problems = [f"{name}: no row of {key}, expected one" for key in found_keys if key not in said_keys]
    problems += [f"{name}: a row of {key}, expected none" for key in said_keys if key not in found_keys]
    both = [key for key in found_keys if key in said_keys]
    said = said.iloc[[said_keys[key] for key in both]]
    found = found.iloc[[found_keys[key] for key in both]]
    ignored = {"protocol", *(_KEYS.get(table, ())), *(_SAME if table == "records" else ())}
    for column in [*found.columns, *(c for c in said.columns if c not in found.columns)]:
        if column in ignored:
            continue
        if column not in said.columns:
            problems.append(f"{name}: no column {column!r}")
        elif column not in found.columns:  # other protocols may have it
            if said[column].notna().any():
                problems.append(f"{name}: values of {column!r}, which is no column of this table")
        else:
            wrong = _unequal(said[column], found[column], counted)
            problems += [
                f"{name}: {column} of {both[row]}: {_pair(said[column].iloc[row], found[column].iloc[row])}"
                for row in wrong
            ]
    return problems


def _row_names(table: str, frame: pd.DataFrame) -> dict[str, int]:
    """Return the rows of a table by what they are of, in words."""
    if table == "components":
        at = frame.groupby("image", sort=False).cumcount() + 1
        return {
            f"{image} defect {number}": row for row, (image, number) in enumerate(zip(frame["image"], at, strict=True))
        }
    columns = [frame[column].tolist() for column in _KEYS[table]]
    if table == "images":
        return {str(image): row for row, image in enumerate(columns[0])}
    names = {}
    for row, (*first, metric, subset, limit) in enumerate(zip(*columns, strict=True)):
        at = "" if limit is None or math.isnan(limit) else f"@{limit:g}"
        names[" ".join([*first, f"{metric}{at}", subset])] = row
    return names


def _unequal(said: pd.Series[Any], found: pd.Series[Any], counted: Counted) -> list[int]:
    """Return the rows in which two columns differ, by more than rounding where they are numbers."""
    if said.name == "values":
        pairs = zip(said, found, strict=True)
        return [row for row, (a, b) in enumerate(pairs) if len(a) != len(b) or not _close(a, b, counted).all()]
    if pd.api.types.is_numeric_dtype(found):
        numbers = pd.to_numeric(said, errors="coerce")
        return np.flatnonzero(~_close(numbers, found, counted)).tolist()
    texts = [["" if pd.isna(value) else str(value) for value in column] for column in (said, found)]
    return [row for row, (a, b) in enumerate(zip(*texts, strict=True)) if a != b]


def _close(said: Any, found: Any, counted: Counted) -> npt.NDArray[np.bool_]:
    a, b = (
        np.asarray(pd.Series(values).astype("Float64").to_numpy(np.float64, na_value=np.nan))
        for values in (said, found)
    )
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    counted.numbers += a.size
    counted.equal += int(equal.sum())
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= TOLERANCE * np.maximum(1, np.abs(b))
    return np.asarray(equal | near)


def _pair(said: Any, found: Any) -> str:
    if isinstance(said, list | tuple | np.ndarray):
        return "recorded replicates are not those recomputed"
    return f"recorded {said}, recomputed {found}"
