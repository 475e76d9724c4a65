"""Parquet tables as they are written, and as they are read back from whoever may have changed them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hrbench.errors import HrbenchError

__all__ = ["Column", "Columns", "as_frame", "check_size", "read_table", "write_table"]

_SMALL = 1 << 29  # bytes of a decoded table that any file may hold
_RATIO = 64  # larger ones: so many times their file at most
_LONGEST = 4096  # bytes of a text


@dataclasses.dataclass(frozen=True)
class Column:
    """What a column may hold.

    Attributes
    ----------
    kind : {'text', 'whole', 'real'}
    lowest, highest : float
        Of its numbers.
    gaps : bool
        Whether values may be missing: null, or NaN among real numbers.
    optional : bool
        Whether the column may be missing.
    lists : bool or None
        Whether each row holds a list of such values; None if either will do.
    """

    kind: Literal["text", "whole", "real"]
    lowest: float = -math.inf
    highest: float = math.inf
    gaps: bool = False
    optional: bool = False
    lists: bool | None = False

    def takes(self, kind: pa.DataType) -> bool:
        """Tell whether values of an Arrow type can be of this column."""
        lists = _is_list(kind)
        if self.lists not in (None, lists):
            return False
        kind = kind.value_type if lists else kind
        if pa.types.is_null(kind):
            return self.gaps
        if self.kind == "text":
            return _is_text(kind)
        if self.kind == "whole":
            return bool(pa.types.is_integer(kind))
        return bool(pa.types.is_floating(kind))


Columns = Mapping[str, Column]
"""By name; other columns, of a later version, pass if they are texts or numbers."""

_ANY = Column("real", gaps=True)


def write_table(table: pa.Table | pd.DataFrame, path: Path, *, smallest: bool = False) -> None:
    """Write a table with a checksum of every page, compressed; `smallest` takes longer."""
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    packed: dict[str, Any] = {}
    if smallest:  # rising keys by their differences, scores byte by byte: half of what a dictionary takes
        lists = [field for field in table.schema if _is_list(field.type) and _is_number(field.type.value_type)]
        encodings = {
            f"{field.name}.list.element": "BYTE_STREAM_SPLIT"
            if pa.types.is_floating(field.type.value_type)
            else "DELTA_BINARY_PACKED"
            for field in lists
        }
        others = [name for name in table.column_names if f"{name}.list.element" not in encodings]
        packed = {"compression_level": 9, "column_encoding": encodings, "use_dictionary": others}
    pq.write_table(table, path, compression="zstd", write_page_checksum=True, **packed)


def read_table(path: Path, columns: Columns, *, most_rows: int) -> pa.Table:
    """Read a table whose columns are as expected, and whose page checksums are right where it has them.

    Bounds are checked before anything is decoded.

    Parameters
    ----------
    path : Path
    columns : mapping of str to Column
    most_rows : int

    Raises
    ------
    HrbenchError
        If the file is missing or damaged, has more rows or takes more memory than it may, or holds something else.
    """
    if not path.is_file():
        raise HrbenchError(f"{path}: no such file, expected a Parquet table")
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_footer(file, path, columns, most_rows)
        # A long text may stand in every row: it is spelt out only once it is known how much that takes.
        texts = [field.name for field in schema if _is_text(field.type)]
        with pq.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
            table: pa.Table = file.read().combine_chunks()
            check_size(sum(_spelt_out(table[name], f"{path}: column {name!r}") for name in texts), path)
            table = table.cast(schema)
            for name in table.column_names:
                _check_values(table[name], columns.get(name, _ANY), f"{path}: column {name!r}")
    except (pa.ArrowException, OSError, UnicodeError, MemoryError) as error:
        raise HrbenchError(f"{path}: not a readable table: {' '.join(str(error).split())}") from None
    return table


def check_size(decoded: int, path: Path) -> None:
    """Raise an error if what a file holds takes more bytes of memory than files of its size may."""
    most = max(_SMALL, _RATIO * path.stat().st_size)
    if decoded > most:
        raise HrbenchError(f"{path}: {decoded} bytes when it is decoded, expected at most {most} of a file of its size")


def as_frame(table: pa.Table, columns: Columns) -> pd.DataFrame:
    """Return a table that was read as a data frame, with the types that `columns` say: nullable integers for gaps.

    Of an empty table, which may lack them, all columns are there.
    """
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    types = {}
    for name in table.column_names:
        if _is_text(table.schema.field(name).type):
            types[name] = "str"
        elif name in columns and not columns[name].lists:
            column = columns[name]
            types[name] = {"text": "str", "real": "float64"}.get(column.kind, "Int64" if column.gaps else "int64")
    if casts := {name: kind for name, kind in types.items() if str(frame[name].dtype) != kind}:
        frame = frame.astype(casts)
    missing = {name: pd.Series(dtype="float64") for name in columns if frame.empty and name not in frame}
    return frame.assign(**missing) if missing else frame


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _check_footer(file: pq.ParquetFile, path: Path, columns: Columns, most_rows: int) -> None:
    """Check what is there to be read, without reading it."""
    schema, metadata = file.schema_arrow, file.metadata
    if metadata.num_rows > most_rows:
        raise HrbenchError(f"{path}: {metadata.num_rows} rows, expected at most {most_rows}")
    names = schema.names
    if len(set(names)) < len(names):
        raise HrbenchError(f"{path}: two columns of one name, expected each once")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    decoded = sum(
        max(group.column(number).total_uncompressed_size, 8 * group.column(number).num_values)
        for group in groups
        for number in range(metadata.num_columns)
    )
    check_size(decoded, path)
    if not metadata.num_rows:
        return
    for name, column in columns.items():
        if name not in names and not column.optional:
            raise HrbenchError(f"{path}: no column {name!r}, expected {', '.join(columns)}")
    for field in schema:
        if field.name not in columns and not (_is_text(field.type) or _is_number(field.type)):
            raise HrbenchError(f"{path}: unknown column {field.name!r} of {field.type}, expected texts or numbers")
        if field.name in columns and not columns[field.name].takes(field.type):
            expected = f"{'lists of ' * bool(columns[field.name].lists)}{columns[field.name].kind}"
            raise HrbenchError(f"{path}: column {field.name!r} is {field.type}, expected {expected}")


def _check_values(values: pa.ChunkedArray, column: Column, what: str) -> None:
    lists = _is_list(values.type)
    if values.null_count and (lists or not column.gaps):
        raise HrbenchError(f"{what}: {values.null_count} values are missing, expected one in every row")
    if lists:
        values = pa.chunked_array([chunk.flatten() for chunk in values.chunks], values.type.value_type)
        _check_values(values, column, what)
        return
    if not _is_number(values.type):
        return
    for chunk in values.chunks:
        numbers = chunk.drop_null().to_numpy(zero_copy_only=False)
        if numbers.dtype.kind == "f":
            known = ~np.isnan(numbers)
            if not column.gaps and not known.all():
                raise HrbenchError(f"{what}: {np.count_nonzero(~known)} NaN, expected numbers")
            numbers = numbers if known.all() else numbers[known]
        low, high = (float(end(numbers)) for end in (np.min, np.max)) if numbers.size else (column.lowest,) * 2
        if not column.lowest <= low <= high <= column.highest:
            wrong = low if low < column.lowest else high
            raise HrbenchError(f"{what}: value {wrong:g}, expected {column.lowest:g} to {column.highest:g}")


def _spelt_out(values: pa.ChunkedArray, what: str) -> int:
    """Return the bytes of a column of texts in all its rows."""
    total = 0
    for chunk in values.chunks:
        lengths = pc.binary_length(chunk.dictionary)
        if (longest := pc.max(lengths).as_py() or 0) > _LONGEST:
            raise HrbenchError(f"{what}: a text of {longest} bytes, expected at most {_LONGEST}")
        total += pc.sum(lengths.take(chunk.indices)).as_py() or 0
    return total
