"""Groups of variable length, one after another in one array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

__all__ = ["flat", "lists", "starts", "take_groups"]


def starts(lengths: pd.Series[int]) -> npt.NDArray[np.int64]:
    """Return the first row of each group."""
    sizes: npt.NDArray[np.int64] = lengths.to_numpy(dtype=np.int64)
    first: npt.NDArray[np.int64] = np.cumsum(sizes) - sizes
    return first


def take_groups(lengths: pd.Series[int], order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the row numbers of groups, taken in `order`."""
    sizes = lengths.to_numpy(dtype=np.int64)[order]
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows: npt.NDArray[np.int64] = np.repeat(starts(lengths)[order], sizes) + within
    return rows


def lists(lengths: Iterable[int], values: npt.NDArray[Any]) -> pa.LargeListArray:
    """Return a column with a list for each group."""
    return pa.LargeListArray.from_arrays(np.cumsum([0, *lengths]), pa.array(values))


def flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return the values of all lists of a column."""
    values: npt.NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values
