"""What quality costs: the table of speed and memory, and which rows no other one beats in both speed and quality."""

from __future__ import annotations

import dataclasses
import math

from hrbench.report.columns import Column, cost_columns, limit_text
from hrbench.report.configurations import THROUGHPUT, untimed_rows
from hrbench.report.drawing import Series
from hrbench.report.summary import NO_ESTIMATE, Estimate, Leaderboard, Row
from hrbench.report.table import Cell, Table, metric_table

__all__ = ["Point", "Tradeoff", "cost_table", "device_text", "tradeoff"]

_UNTIMED = "without comparable times"
_DEVICE = Column("device", "measured", "on", title="Where the test images were predicted", contest=False, least=True)


@dataclasses.dataclass(frozen=True)
class Point:
    """A row of the leaderboard as cost and quality.

    Attributes
    ----------
    series : Series
        Its label and style.
    speed, quality : Estimate
        Native megapixels per second; AUPRO at the headline limit.
    comparable : bool
        Whether it has a rank: a mean over other categories or other rules neither beats nor is beaten.
    """

    series: Series
    speed: Estimate
    quality: Estimate
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
        Other rows by the reason: without a speed that was measured and compares, without a quality, or measured on
        several devices.
    """

    points: dict[str, list[Point]]
    left_out: dict[str, list[str]]

    def front(self, device: str) -> list[Point]:
        """Return the Pareto front of a device, fastest first: the rows that no other one beats."""
        rows = [point for point in self.points[device] if point.comparable]
        best = [point for point in rows if not any(other.beats(point) for other in rows)]
        return sorted(best, key=lambda point: (-point.speed.shown, point.quality.shown))


def tradeoff(board: Leaderboard) -> Tradeoff:
    """Set the rows of a dataset's leaderboard against what they cost."""
    estimates, limit = board.estimates, round(board.protocol.headline_fpr, 9)
    place = board.categories[0] if len(board.categories) == 1 else ""
    points: dict[str, list[Point]] = {}
    left_out: dict[str, list[str]] = {}
    for row in board.rows:
        number, short = row.configuration.number, row.configuration.short
        devices = _devices(row)
        speed = estimates.get((number, place, THROUGHPUT, "all", None), NO_ESTIMATE)
        quality = estimates.get((number, place, "aupro", "all", limit), NO_ESTIMATE)
        if not place:  # the spread over categories is no uncertainty of their average
            speed, quality = (dataclasses.replace(e, minimum=math.nan, maximum=math.nan) for e in (speed, quality))
        if speed.untimed:
            left_out.setdefault(_UNTIMED, []).append(short)
        elif math.isnan(speed.shown) or speed.defined < speed.total:
            left_out.setdefault("without a measured speed", []).append(short)
        elif math.isnan(quality.shown):
            left_out.setdefault("without AUPRO", []).append(short)
        elif len(devices) > 1:
            left_out.setdefault("measured on several devices", []).append(short)
        else:
            point = Point(
                Series(row.short_of_average, number, row.configuration.look), speed, quality, not math.isnan(row.rank)
            )
            points.setdefault(devices[0], []).append(point)
    return Tradeoff(dict(sorted(points.items())), left_out)


def cost_table(board: Leaderboard) -> Table | None:
    """Return speed, time per image, peak memory and device of every row; None if no row has any."""
    caption = "Prediction of the test images, mean over seeds, then over categories"
    table = metric_table(board, cost_columns(), drop_empty=True, caption=caption)
    if not any(cell.sort for line in table.cells for cell in line):
        return None
    devices = []
    for row in board.rows:
        sizes = sorted({f"{run.batch_size:g}" for run in row.runs if run.batch_size})
        small = [f"up to {' or '.join(sizes)} inputs at a time"] if sizes else []
        small += ["compiled"] * any(run.compiled for run in row.runs)
        text = device_text(row)
        devices.append([Cell(text, _DEVICE.title, text, tuple(small))])
    notes = tuple(_notes(board))
    return dataclasses.replace(table.beside([_DEVICE], devices), kind="cost", notes=notes)


def device_text(row: Row) -> str:
    """Return the device of a row, or all its devices."""
    return "; ".join(_devices(row))


def _devices(row: Row) -> list[str]:
    return sorted({run.device for run in row.runs})


def _notes(board: Leaderboard) -> list[str]:
    """Return what a reader must know of the figures, in sentences."""
    costs = tradeoff(board)
    against = f"AUPRO@{limit_text(board.protocol.headline_fpr)}"
    notes = untimed_rows(board.runs)
    for device in costs.points:
        names = "; ".join(point.series.label for point in costs.front(device))
        on = f" on {device}" if len(costs.points) > 1 else ""
        if names:
            notes.append(f"Pareto front of speed and {against}{on}: {names}.")
    if len(costs.points) > 1:
        notes.append("Speeds of different devices are not compared.")
    others = {why: names for why, names in costs.left_out.items() if why != _UNTIMED}  # the first note names them
    if costs.points or len(others) > 1 or "without AUPRO" not in others:  # else there is no plot
        notes += [f"Not in the plot, {why}: {', '.join(names)}." for why, names in others.items()]
    shared = [
        row.configuration.short
        for row in board.rows
        if not all(run.own_peak for run in row.runs)
        and (row.configuration.number, "", "peak_host_mib", "all", None) in board.estimates
    ]
    if shared:
        notes.append(
            f"Host memory of {', '.join(shared)}: the most since its process began, fit and earlier jobs included."
        )
    return notes
