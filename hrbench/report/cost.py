"""What quality costs: the table of speed and memory, and which rows no other one beats in both speed and quality."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from hrbench.report.columns import Column, cost_columns, limit_text
from hrbench.report.configurations import THROUGHPUT, printable
from hrbench.report.drawing import Series
from hrbench.report.grid import Entry, Grid, grid
from hrbench.report.rows import leaderboard_rows
from hrbench.report.summary import Cell, Summary, lookup

__all__ = ["Point", "Tradeoff", "cost_notes", "cost_table", "device_text", "tradeoff"]

_DEVICE = Column(
    "device", "measured", "on", "device", title="Where the test images were predicted", contest=False, least=True
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A row of the leaderboard as cost and quality.

    Attributes
    ----------
    series : Series
        Its label and style.
    speed, quality : Cell
        Native megapixels per second; AUPRO at the headline limit.
    comparable : bool
        Whether it has a rank: a mean over other categories or other rules neither beats nor is beaten.
    """

    series: Series
    speed: Cell
    quality: Cell
    comparable: bool

    def beats(self, other: Point) -> bool:
        """Tell whether this is at least as fast and as good as `other`, and not the same in both."""
        own, its = (self.speed.shown, self.quality.shown), (other.speed.shown, other.quality.shown)
        return own != its and own[0] >= its[0] and own[1] >= its[1]


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """The rows of a dataset as cost and quality; speeds of different devices are never set against each other.

    Attributes
    ----------
    points : dict of str to list of Point
        By device.
    left_out : dict of str to list of str
        Other rows by the reason: without a speed or a quality, or measured on several devices.
    """

    points: dict[str, list[Point]]
    left_out: dict[str, list[str]]

    def front(self, device: str) -> list[Point]:
        """Return the Pareto front of a device, fastest first: the rows that no other one beats."""
        rows = [point for point in self.points[device] if point.comparable]
        best = [point for point in rows if not any(other.beats(point) for other in rows)]
        return sorted(best, key=lambda point: (-point.speed.shown, point.quality.shown))


def tradeoff(summary: Summary, dataset: str) -> Tradeoff:
    """Set the rows of a dataset's leaderboard against what they cost."""
    cells, limit = lookup(summary, dataset), round(summary.protocol.headline_fpr, 9)
    names = summary.category_names(dataset)
    place = names[0] if len(names) == 1 else ""
    points: dict[str, list[Point]] = {}
    left_out: dict[str, list[str]] = {}
    for row in leaderboard_rows(summary, dataset):
        devices = _shared(summary, dataset, row, "device")
        speed = cells.get((row["configuration"], place, THROUGHPUT, "all", None), Cell())
        quality = cells.get((row["configuration"], place, "aupro", "all", limit), Cell())
        if not place:  # the spread over categories is no uncertainty of their average
            speed, quality = (dataclasses.replace(c, minimum=math.nan, maximum=math.nan) for c in (speed, quality))
        label = row["short"] + (f" (lacks {', '.join(row['missing'])})" if row["missing"] else "")
        point = Point(Series(label, int(row["configuration"])), speed, quality, not math.isnan(row["rank"]))
        if math.isnan(speed.shown) or speed.defined < speed.total:
            left_out.setdefault("without a measured speed", []).append(row["short"])
        elif math.isnan(quality.shown):
            left_out.setdefault("without AUPRO", []).append(row["short"])
        elif len(devices) > 1:
            left_out.setdefault("measured on several devices", []).append(row["short"])
        else:
            points.setdefault(devices[0], []).append(point)
    return Tradeoff(dict(sorted(points.items())), left_out)


def cost_table(summary: Summary, dataset: str) -> Grid | None:
    """Return speed, time per image, peak memory and device of every row; None if no row has any."""
    rows = leaderboard_rows(summary, dataset)
    table = grid(cost_columns(), rows, lookup(summary, dataset), drop_empty=True)
    if not any(entry.sort for line in table.rows for entry in line.entries):
        return None
    lines = []
    for line in table.rows:
        sizes = [f"{size:g}" for size in _shared(summary, dataset, line.row, "batch_size") if size]
        below = [f"up to {' or '.join(sizes)} inputs at a time"] if sizes else []
        below += ["compiled"] * any(_shared(summary, dataset, line.row, "compiled"))
        text = device_text(summary, dataset, line.row)
        lines.append(
            dataclasses.replace(line, entries=[*line.entries, Entry(text, _DEVICE.title, text, below, 0, None, False)])
        )
    return dataclasses.replace(
        table,
        groups=[*table.groups, (_DEVICE.group, 1)],
        columns=[*table.columns, _DEVICE],
        counts=[*table.counts, ""],
        rows=lines,
    )


def device_text(summary: Summary, dataset: str, row: dict[str, Any]) -> str:
    """Return the device of a row, or all its devices."""
    return "; ".join(_shared(summary, dataset, row, "device"))


def cost_notes(summary: Summary, dataset: str) -> list[str]:
    """Return what a reader must know of the figures, in sentences."""
    found = tradeoff(summary, dataset)
    against = f"AUPRO@{limit_text(summary.protocol.headline_fpr)}"
    notes = []
    for device in found.points:
        names = "; ".join(point.series.label for point in found.front(device))
        on = f" on {device}" if len(found.points) > 1 else ""
        if names:
            notes.append(f"Pareto front of speed and {against}{on}: {names}.")
    if len(found.points) > 1:
        notes.append("Speeds of different devices are not compared.")
    notes += [f"Not in the plot, {why}: {', '.join(names)}." for why, names in found.left_out.items()]
    runs = summary.runs[(summary.runs["dataset"] == dataset) & ~summary.runs["own_peak"]]
    cells = lookup(summary, dataset)
    shared = [
        row["short"]
        for row in leaderboard_rows(summary, dataset)
        if row["configuration"] in set(runs["configuration"])
        and (row["configuration"], "", "peak_host_mib", "all", None) in cells
    ]
    if shared:
        notes.append(
            f"Host memory of {', '.join(shared)}: the most since its process began, fit and earlier jobs included."
        )
    return notes


def _shared(summary: Summary, dataset: str, row: dict[str, Any], name: str) -> list[Any]:
    """Return the different values of a column of the row's runs."""
    runs = summary.runs
    own = runs[(runs["dataset"] == dataset) & (runs["configuration"] == row["configuration"])]
    values: Sequence[Any] = own[name].unique().tolist()
    return sorted((printable(v) if isinstance(v, str) else v for v in values), key=str)
