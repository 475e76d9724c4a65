"""The plot of quality against cost."""

from __future__ import annotations

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hrbench.report.cost import Point, Tradeoff
from hrbench.report.drawing import MUTED, PAPER, sheet, whisker_ends, whisker_key
from hrbench.report.marks import legible, log_ticks, whisker
from hrbench.report.plot_marks import owned_by

__all__ = ["draw_cost"]

_COLUMNS = 2
_FRONT = (0, (4, 2))


def draw_cost(found: Tradeoff, quality: str, title: str, level: float) -> Figure | None:
    """Draw quality against milliseconds per native megapixel, one panel per device; None without any point.

    Whiskers are the confidence interval, or the range over the seeds of a single category. A stair joins the rows
    that no other row on the device beats; the others are paler, and rows that are not ranked hollow.
    """
    points = [point for own in found.points.values() for point in own]
    if not points:
        return None
    ordered = sorted(points, key=lambda point: (not point.comparable, -point.quality.shown))
    series = [point.series for point in ordered]
    key = [(Line2D([], [], color=MUTED, lw=1, ls=_FRONT), "Pareto front")]
    key += whisker_key([point.quality for point in points], level)
    if not all(point.comparable for point in points):
        hollow = Line2D([], [], marker="o", ls="", mfc=PAPER, mec=MUTED, mew=1.2, ms=6)
        key.append((hollow, "hollow: not ranked"))
    if missing := sum(len(rows) for rows in found.left_out.values()):
        key.append((Line2D([], [], ls=""), f"left out: {missing} row{'s' * (missing > 1)}"))
    columns = min(_COLUMNS, len(found.points))
    rows = -(-len(found.points) // columns)
    times, values = _span([_time(speed) for point in points for speed in _speeds(point)]), _range(points)
    with sheet(series, title, markers=True, lines=False, shape=(rows, columns), height=3.6 * rows, key=key) as (
        figure,
        grid,
    ):
        for place, device in enumerate(found.points):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            _axes(axes, device, times, values, most=12 if columns == 1 else 7)
            axes.set_ylabel("" if place % columns else quality)
            axes.set_xlabel("ms per native megapixel; below it megapixels per second")
            front = found.front(device)
            _draw_front(axes, front, times[1])
            for point in found.points[device]:
                _draw_point(axes, point, point in front)
                owned_by(axes, point.series.index, point.series.look.colour)
    return figure


def _time(speed: float) -> float:
    """Return milliseconds per megapixel."""
    return 1e3 / speed


def _speeds(point: Point) -> list[float]:
    """Return the speed of a point, and its range over the seeds."""
    return [point.speed.shown, *(end for end in (point.speed.minimum, point.speed.maximum) if end > 0)]


def _span(times: list[float]) -> tuple[float, float]:
    """Return the ends of the time axis: some room around the points, at least a factor of three in all."""
    middle = math.sqrt(min(times) * max(times))
    half = max(math.sqrt(3.0), 1.25 * math.sqrt(max(times) / min(times)))
    return middle / half, middle * half


def _range(points: list[Point]) -> tuple[float, float, float]:
    """Return the ends of the quality axis and the step of its ticks: differences count, not the distance to zero."""
    ends = [end for point in points for end in (point.quality.shown, *whisker_ends(point.quality)[:2])]
    low, high = (function(end for end in ends if not math.isnan(end)) for function in (min, max))
    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if high - low <= 6 * step or step == 0.2)
    bottom, top = step * math.floor(low / step - 0.1), step * math.ceil(high / step + 0.1)
    return max(0.0, bottom), min(1.0, top), step


def _axes(axes: Axes, heading: str, times: tuple[float, float], values: tuple[float, float, float], most: int) -> None:
    low, high, step = values
    axes.set_title(textwrap.fill(heading, 60), pad=8)
    axes.set_xscale("log")
    axes.set_xlim(*times)
    ticks = log_ticks(*times, most)
    labels = [f"{_short(ms)}\n{_short(_time(ms))}" for ms in ticks]
    axes.set_xticks(*legible(axes, ticks, labels), linespacing=1.4)
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_ylim(low, high)
    steps = [step * number for number in range(round(low / step), round(high / step) + 1)]
    axes.set_yticks(steps, [f"{value:.{1 if step >= 0.1 else 2}f}" for value in steps])
    axes.grid()
    axes.set_axisbelow(True)


def _short(value: float) -> str:
    """Write a round number without digits that say nothing."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _draw_front(axes: Axes, front: list[Point], end: float) -> None:
    """Draw the best quality that each time buys."""
    x = [_time(point.speed.shown) for point in front]
    y = [point.quality.shown for point in front]
    if front:
        axes.step([*x, end], [*y, y[-1]], where="post", color=MUTED, lw=1, ls=_FRONT, zorder=2)


def _draw_point(axes: Axes, point: Point, best: bool) -> None:
    colour, marker = point.series.look.colour, point.series.look.marker
    alpha = 1.0 if best or not point.comparable else 0.65
    x, y = _time(point.speed.shown), point.quality.shown
    low, high, _ = whisker_ends(point.quality)
    whisker(axes, x, low, high, colour, alpha=alpha)
    if point.speed.minimum > 0:
        slow, fast = _time(point.speed.minimum), _time(point.speed.maximum)
        whisker(axes, y, fast, slow, colour, across=True, alpha=alpha)
    face, edge, width = (colour, PAPER, 0.6) if point.comparable else (PAPER, colour, 1.2)
    axes.plot([x], [y], marker, mfc=face, mec=edge, mew=width, ms=6.5, alpha=alpha, zorder=4, clip_on=False)
