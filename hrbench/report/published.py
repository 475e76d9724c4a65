"""Figures that others have published, for a table of their own: they never stand beside measured ones."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any

from hrbench._layout import published_root
from hrbench.errors import HrbenchError

__all__ = ["COLUMNS", "PublishedValue", "published_tables", "read_published"]

COLUMNS = ("method", "backbone", "dataset", "category", "metric", "value", "resolution", "selection", "source")

_SHARES = ("auroc", "aupro", "iou", "f1", "ap")


@dataclass(frozen=True)
class PublishedValue:
    """One published figure; see ``results/published/README.md``.

    Attributes
    ----------
    value : str
        A share between 0 and 1, for areas, IoU and F1, with the digits that were published.
    """

    method: str
    backbone: str
    dataset: str
    category: str
    metric: str
    value: str
    resolution: str
    selection: str
    source: str

    @property
    def series(self) -> tuple[str, str, str, str, str]:
        """What tells one row of a table from another."""
        return self.method, self.backbone, self.resolution, self.selection, self.source


def read_published(folder: Traversable | None = None) -> list[PublishedValue]:
    """Read every CSV file of the folder of published figures.

    Parameters
    ----------
    folder : Traversable, optional
        By default the one that comes with hrbench; where there is none the list is empty.

    Raises
    ------
    HrbenchError
        With file and line: for other columns, an empty field, a value that cannot be one, or a figure that is there
        twice.
    """
    folder = folder or published_root()
    if not folder.is_dir():
        return []
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".csv")), key=lambda item: item.name)
    found: dict[tuple[str, ...], str] = {}
    figures = []
    for file in files:
        for number, figure in _read(file):
            where = f"{file.name}, line {number}"
            key = (*figure.series, figure.dataset, figure.category, figure.metric)
            if key in found:
                raise HrbenchError(f"{where}: the same figure as in {found[key]}, expected it once")
            found[key] = where
            figures.append(figure)
    return figures


def _read(file: Traversable) -> Iterable[tuple[int, PublishedValue]]:
    rows = csv.reader(io.StringIO(file.read_text(encoding="utf-8")))
    head = next(rows, [])
    if tuple(head) != COLUMNS:
        raise HrbenchError(f"{file.name}: columns {', '.join(head) or 'none'}; expected {', '.join(COLUMNS)}")
    for row in rows:
        where = f"{file.name}, line {rows.line_num}"
        if len(row) != len(COLUMNS):
            raise HrbenchError(f"{where}: {len(row)} fields, expected {len(COLUMNS)}")
        empty = [name for name, text in zip(COLUMNS, row, strict=True) if not text.strip()]
        if empty:
            raise HrbenchError(f"{where}: {empty[0]} is empty, expected text ('not stated' where it is not)")
        figure = PublishedValue(*row)
        try:
            value = float(figure.value)
        except ValueError:
            value = math.nan
        is_share = figure.metric.partition("@")[0].endswith(_SHARES)
        if not 0 <= value <= (1 if is_share else sys.float_info.max):
            expected = "a share between 0 and 1" if is_share else "a number that is not negative"
            raise HrbenchError(f"{where}: value is {figure.value!r}, expected {expected}")
        yield rows.line_num, figure


def published_tables(figures: Sequence[PublishedValue], datasets: Iterable[str]) -> list[dict[str, Any]]:
    """Return what the page shows: per dataset and metric a table of series by category.

    Parameters
    ----------
    figures : sequence of PublishedValue
    datasets : iterable of str
        Those that the page is about; figures of others are left out.
    """
    shown = []
    for dataset in datasets:
        own = [figure for figure in figures if figure.dataset == dataset]
        metrics = [_table(name, [f for f in own if f.metric == name]) for name in dict.fromkeys(f.metric for f in own)]
        if metrics:
            shown.append({"dataset": dataset, "metrics": metrics, "figures": len(own)})
    return shown


def _table(metric: str, figures: Sequence[PublishedValue]) -> dict[str, Any]:
    values = {(figure.series, figure.category): figure.value for figure in figures}
    categories = sorted({figure.category for figure in figures}, key=lambda name: (name != "mean", name))
    rows = [
        {"series": series, "values": [values.get((series, category), "") for category in categories]}
        for series in dict.fromkeys(figure.series for figure in figures)
    ]
    return {"name": metric, "categories": categories, "rows": rows}
