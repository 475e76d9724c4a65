"""What the tables of a finished run may hold: they may come from anywhere."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hrbench._util.tables import Column, Columns, as_frame, read_table
from hrbench.errors import HrbenchError

__all__ = ["RECORD_COLUMNS", "TABLES", "read_run_table"]

RECORD_COLUMNS = (
    "run", "dataset", "category", "method", "preset", "view", "weights", "seed", "protocol",
    "metric", "subset", "fpr_limit", "value", "error_bound", "ci_low", "ci_high", "n",
)  # fmt: skip

_HUGE = 1e18  # beyond it no score, area or count lies

_TEXT = Column("text")
_COUNT = Column("whole", 0, _HUGE)
_SCORE = Column("real", gaps=True, optional=True)  # critical and alarm scores may be infinite
_VALUE = Column("real", -_HUGE, _HUGE, gaps=True)
_SHARE = Column("real", 0, 1, gaps=True)
_END = Column("real", gaps=True)

TABLES: dict[str, tuple[Columns, tuple[str, ...], int]] = {
    "records": (
        {
            **dict.fromkeys(("run", "dataset", "category", "method", "preset", "view", "weights"), _TEXT),
            "seed": Column("whole", -_HUGE, _HUGE),
            **dict.fromkeys(("protocol", "metric", "subset"), _TEXT),
            "fpr_limit": _SHARE,
            "value": _VALUE,
            "error_bound": Column("real", 0, _HUGE, gaps=True),
            "ci_low": _END,
            "ci_high": _END,
            "n": _COUNT,
        },
        ("protocol", "metric", "subset", "fpr_limit"),
        100_000,
    ),
    "components": (
        {
            "protocol": _TEXT,
            "image": _TEXT,
            "area": Column("whole", 1, _HUGE),
            "defect_type": Column("text", optional=True),
            **dict.fromkeys(("top", "left", "bottom", "right"), Column("whole", 0, _HUGE, optional=True)),
            "decision_pixels": Column("whole", 0, _HUGE, gaps=True, optional=True),
            "critical": _SCORE,
        },
        (),
        5_000_000,
    ),
    "images": (
        {
            "protocol": _TEXT,
            "image": _TEXT,
            "label": Column("whole", 0, 1),
            "group": Column("text", optional=True),
            "score": _SCORE,
            "alarm": _SCORE,
            "largest": Column("whole", 0, _HUGE, optional=True),
            "aupimo": Column("real", 0, 1, gaps=True, optional=True),
        },
        ("protocol", "image"),
        5_000_000,
    ),
    "conditions": (
        {
            **dict.fromkeys(("protocol", "condition", "reference", "metric", "subset"), _TEXT),
            "fpr_limit": _SHARE,
            "value": _VALUE,
            "error_bound": Column("real", 0, _HUGE, gaps=True),
            "n": _COUNT,
            "ci_low": _END,
            "ci_high": _END,
            "images": _COUNT,
            **dict.fromkeys(("drop", "drop_low", "drop_high"), _END),
            "parts": _COUNT,
        },
        ("protocol", "condition", "metric", "subset", "fpr_limit"),
        100_000,
    ),
    "replicates": (
        {
            **dict.fromkeys(("protocol", "metric", "subset"), _TEXT),
            "fpr_limit": _SHARE,
            "estimate": _VALUE,
            "units": _COUNT,
            "components": _COUNT,
            "sample": _TEXT,
            "values": Column("real", -_HUGE, _HUGE, gaps=True, lists=True),
        },
        ("protocol", "metric", "subset", "fpr_limit"),
        10_000,
    ),
    "annotation": (
        {
            **dict.fromkeys(("protocol", "masks", "metric", "subset"), _TEXT),
            "fpr_limit": _SHARE,
            "value": _VALUE,
            "change": _VALUE,
            **dict.fromkeys(("change_low", "change_high"), _END),
            **dict.fromkeys(("components", "vanished"), _COUNT),
        },
        ("protocol", "masks", "metric", "subset", "fpr_limit"),
        10_000,
    ),
}
"""Columns, those that no two rows have alike, and the most rows of each table."""


def read_run_table(path: Path, name: str) -> pd.DataFrame:
    """Read a table of a run.

    Raises
    ------
    HrbenchError
        If it is damaged, or not what such a table is.
    """
    columns, key, most_rows = TABLES[name]
    frame = as_frame(read_table(path, columns, most_rows=most_rows), columns)
    if key and (twice := frame.duplicated(list(key))).any():
        row = dict(frame.loc[twice, list(key)].iloc[0])
        raise HrbenchError(f"{path}: two rows of {', '.join(map(str, row.values()))}, expected one")
    if name == "replicates" and not _as_many_each(frame):
        raise HrbenchError(f"{path}: replicates of one protocol that differ in number, expected as many in each row")
    return frame


def _as_many_each(replicates: pd.DataFrame) -> bool:
    draws = replicates["values"].map(len)
    return bool((draws == draws.groupby(replicates["protocol"]).transform("first")).all())
