"""Figures that others have published, for a table of their own: they never stand beside measured ones."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable

from hrbench._util.resources import published_root
from hrbench.errors import HrbenchError
from hrbench.report.columns import Column, text_column
from hrbench.report.table import Cell, Table

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
    places: dict[tuple[str, ...], str] = {}
    values = []
    for file in files:
        for number, value in _read(file):
            where = f"{file.name}, line {number}"
            key = (*value.series, value.dataset, value.category, value.metric)
            if key in places:
                raise HrbenchError(f"{where}: the same figure as in {places[key]}, expected it once")
            places[key] = where
            values.append(value)
    return values


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
        published = PublishedValue(*row)
        try:
            number = float(published.value)
        except ValueError:
            number = math.nan
        is_share = published.metric.partition("@")[0].endswith(_SHARES)
        if not 0 <= number <= (1 if is_share else sys.float_info.max):
            expected = "a share between 0 and 1" if is_share else "a number that is not negative"
            raise HrbenchError(f"{where}: value is {published.value!r}, expected {expected}")
        yield rows.line_num, published


def published_tables(values: Sequence[PublishedValue], datasets: Iterable[str]) -> list[Table]:
    """Return a table of series by category for each metric of those `datasets` that the page is about."""
    tables = []
    for dataset in datasets:
        of_dataset = [value for value in values if value.dataset == dataset]
        for metric in dict.fromkeys(value.metric for value in of_dataset):
            tables.append(_table(f"{dataset}: {metric}", [value for value in of_dataset if value.metric == metric]))
    return tables


def _table(caption: str, values: Sequence[PublishedValue]) -> Table:
    texts: dict[tuple[str, ...], str] = {(*value.series, value.category): value.value for value in values}
    categories = sorted({value.category for value in values}, key=lambda name: (name != "mean", name))
    series = list(dict.fromkeys(value.series for value in values))
    return Table(
        columns=(
            *(text_column(name, name, "") for name in ("method", "backbone", "resolution", "selection")),
            *(Column(name, "", name, contest=False) for name in categories),
            text_column("source", "source", ""),
        ),
        rows=(None,) * len(series),
        cells=tuple(
            (
                *map(Cell, names),
                *(Cell(texts.get((*names, source, category), "–")) for category in categories),
                Cell(source),
            )
            for *names, source in series
        ),
        kind="plain",
        caption=caption,
    )
