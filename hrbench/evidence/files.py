"""The Parquet files that evidence lies in: their columns, and how a table of them is written and read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hrbench._util.files import atomic
from hrbench._util.tables import Column, Columns, read_table, write_table
from hrbench._util.types import Mismatch, conform
from hrbench.errors import HrbenchError
from hrbench.evidence.histograms import KEY_SHIFT, Counts, Histogram, Keys, NormalScores, SortedKeys, key_scores
from hrbench.evidence.ragged import flat, lists
from hrbench.evidence.spec import EvidenceSpec
from hrbench.protocol import ImageScoreRule

__all__ = [
    "COMPONENTS",
    "EVIDENCE_FILES",
    "IMAGES",
    "NORMALS",
    "REGIONS",
    "RIMS",
    "Facts",
    "arrays",
    "frame_of",
    "histogram",
    "histogram_columns",
    "lengths",
    "read",
    "refuse",
    "sorted_keys",
    "write",
    "write_groups",
]

_T = TypeVar("_T")

SCHEMA = 1
"""Of the files that :meth:`Evidence.save` writes; another number means that their columns mean something else."""

EVIDENCE_FILES = ("images.parquet", "components.parquet", "calibration.parquet", "regions.parquet", "rims.parquet")
"""The first two are always there."""

_MOST_ROWS = 5_000_000  # images, or components
_LARGEST = 1 << 40  # pixels
_FINITE = float(np.finfo(np.float64).max)
_TEXT, _PIXELS, _EDGE = Column("text"), Column("whole", 0, _LARGEST), Column("whole", 0, 1 << 31)
_CALLED = Column("whole", 0, _LARGEST, gaps=True)
NORMALS = {
    "normal_keys": Column("whole", 0, lists=True),
    "normal_counts": Column("whole", 1, _LARGEST, lists=True, optional=True),
}
IMAGES: Columns = {
    "id": _TEXT,
    "label": Column("whole", 0, 1),
    **dict.fromkeys(("group", "condition"), Column("text", optional=True)),  # versions that knew none, or images
    "height": _EDGE,
    "width": _EDGE,
    "score": Column("real", -_FINITE, _FINITE),
    **dict.fromkeys(("normal_pixels", "defect_pixels"), _PIXELS),
    **dict.fromkeys(("decision_tp", "decision_fp"), _CALLED),
    "seconds": Column("real", 0, _FINITE, gaps=True),
    **NORMALS,
}
COMPONENTS: Columns = {
    "image": _TEXT,
    "defect_type": _TEXT,
    "area": Column("whole", 1, _LARGEST),
    **dict.fromkeys(("top", "left", "bottom", "right"), _EDGE),
    "decision_pixels": _CALLED,
    "scores": Column("real", -_FINITE, _FINITE, lists=True),
}
REGIONS: Columns = {
    **dict.fromkeys(("image", "defect_type", "defect"), _TEXT),
    **dict.fromkeys(("area", "saturation"), Column("whole", 1, _LARGEST)),
    "scores": Column("real", -_FINITE, _FINITE, lists=True),
}
RIMS: Columns = {
    "image": _TEXT,
    **dict.fromkeys(("outer_decided", "inner_decided"), _CALLED),
    "outer_scores": COMPONENTS["scores"],
    "inner": Column("whole", 0, 1, lists=True),
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What else the files of evidence say."""

    shift: int
    lossless: bool
    collection: EvidenceSpec

    def __post_init__(self) -> None:
        spec = self.collection
        ImageScoreRule(spec.rule)
        if spec.connectivity not in (4, 8) or not 1 <= (spec.side or 1) <= 1 << 16:
            raise HrbenchError(f"connectivity {spec.connectivity} and side {spec.side}")
        if self.shift != (0 if spec.exact else KEY_SHIFT):
            raise HrbenchError(f"shift is {self.shift}")


def histogram_columns(parts: Sequence[NormalScores]) -> dict[str, pa.LargeListArray]:
    """Return keys, and counts where there are any, as columns of a list for each part."""
    bins = [part.keys.size for part in parts]
    columns = {"normal_keys": lists(bins, np.concatenate([part.keys for part in parts]))}
    counts = [part.counts for part in parts if isinstance(part, Histogram)]
    return columns | ({"normal_counts": lists(bins, np.concatenate(counts))} if counts else {})


def arrays(column: pa.ChunkedArray) -> list[npt.NDArray[Any]]:
    """Return what each row's list holds."""
    return np.split(flat(column), np.cumsum(lengths(column))[:-1])


def lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return how long each row's list is, (rows,)."""
    found: npt.NDArray[np.int64] = column.combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    return found


def frame_of(table: pa.Table, dtypes: dict[str, str]) -> pd.DataFrame:
    """Return some columns as a frame of these types."""
    return table.select(list(dtypes)).to_pandas().astype(dtypes)


def write(table: pa.Table, facts: dict[str, Any], path: Path, *, smallest: bool = False) -> None:
    """Write a table, and in its metadata what else there is to say."""
    described = table.replace_schema_metadata({"hrbench": json.dumps({"schema": SCHEMA, **facts})})
    write_table(described, path, smallest=smallest)


def read(path: Path, columns: Columns, kind: type[_T]) -> tuple[pa.Table, _T]:
    """Return a table and what else it says; a damaged file, or one of another schema, is named."""
    table = read_table(path, columns, most_rows=_MOST_ROWS)
    try:
        facts = dict(json.loads((table.schema.metadata or {})[b"hrbench"]))
        schema = facts.pop("schema", None)
        said: _T | None = conform(facts, kind) if schema == SCHEMA else None
    except (KeyError, ValueError, TypeError, RecursionError, OverflowError, Mismatch) as error:
        raise HrbenchError(f"{path}: not readable as hrbench evidence: {error}") from None
    if said is None:
        raise HrbenchError(f"{path}: evidence of schema {schema!r}, this version of hrbench reads {SCHEMA}")
    return table, said


def write_groups(folder: Path, groups: Mapping[str, str] | None, conditions: Mapping[str, str] | None = None) -> None:
    """Replace groups and conditions of images, where they are given by id, in what :meth:`Evidence.save` wrote."""
    path = folder / "images.parquet"
    images, facts = read(path, IMAGES, Facts)
    for column, given in (("group", groups), ("condition", conditions)):
        if given is None:
            continue
        names = [given.get(name, "") for name in images["id"].to_pylist()]
        images = images.select([name for name in images.column_names if name != column])
        if column == "group" or any(names):
            images = images.append_column(column, pa.array(names, pa.string()))
    with atomic(path) as temporary:
        write(images, dataclasses.asdict(facts), temporary)


def histogram(keys: Keys, counts: Counts, shift: int, path: Path) -> Histogram:
    """Make a histogram of what was read."""
    if keys.size != counts.size or not _rise(keys, shift, strictly=True):
        raise HrbenchError(f"{path}: keys of normal pixels that do not rise, or without their counts")
    return Histogram.counted(keys, counts, shift)


def sorted_keys(keys: Keys, shift: int, path: Path) -> SortedKeys:
    """Make sorted keys of what was read."""
    if shift or not _rise(keys, shift, strictly=False):
        raise HrbenchError(f"{path}: keys of normal pixels that do not rise")
    return SortedKeys(keys, shift)


def _rise(keys: Keys, shift: int, *, strictly: bool) -> bool:
    """Tell whether keys that were read are in order, and those of finite scores."""
    if keys.dtype not in (np.uint32, np.uint64) or (shift and keys.dtype != np.uint32):
        return False
    if not keys.size:
        return True
    in_order = keys[:-1] < keys[1:] if strictly else keys[:-1] <= keys[1:]
    fits = int(keys[-1]) < 1 << (8 * keys.itemsize - shift)
    return bool(in_order.all()) and fits and bool(np.isfinite(key_scores(keys[[0, -1]], shift)).all())


def refuse(wrong: Mapping[str, bool], path: Path) -> None:
    """Raise an error that names the file and the first thing that is wrong with it."""
    for what, found in wrong.items():
        if found:
            raise HrbenchError(f"{path}: {what}; not the evidence of a run")
