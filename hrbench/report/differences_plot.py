"""The plot of paired differences: a forest of intervals around zero."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hrbench.report.configurations import printable
from hrbench.report.differences import Difference, Differences
from hrbench.report.drawing import INK, MUTED, PAPER, Series, sheet
from hrbench.report.marks import whisker
from hrbench.report.plot_marks import owned_by

__all__ = ["draw_differences"]

_STEP = 0.155  # inches between the rows of one metric
_GAP = 0.28  # and between metrics


def draw_differences(found: Differences, first: Series, others: Sequence[Series], level: float, title: str) -> Figure:
    """Draw each row's difference to the first one with its interval, metric by metric.

    A filled marker: the interval leaves out zero. A hollow one: it holds zero, or there is none.
    """
    number = len(found.metrics)
    panels = [list(range(number))] if number <= 3 else [list(range(number - 4)), list(range(number - 4, number))]
    tallest = max(map(len, panels))
    height = 0.9 + tallest * (_GAP + _STEP * len(others))
    hollow = Line2D([], [], marker="o", ls="", mfc=PAPER, mec=MUTED, mew=1.2, ms=5.5)
    key = [(hollow, f"hollow: the {100 * level:g} % interval holds zero, or there is none")]
    span = _span([entry for _, entries in found.rows for entry in entries if entry is not None])
    with sheet(others, title, markers=True, lines=False, shape=(1, len(panels)), height=height, key=key) as (
        figure,
        grid,
    ):
        for place, metrics in enumerate(panels):
            axes = figure.add_subplot(grid[place])
            _axes(axes, [found.metrics[metric] for metric in metrics], len(others), tallest, span)
            heading = f"difference to {printable(first.label)}: right of zero is better"
            axes.set_title(textwrap.fill(textwrap.shorten(heading, 120), 60) if place == 0 else found.heading, pad=8)
            for line, metric in enumerate(metrics):
                for row, (series, (_, entries)) in enumerate(zip(others, found.rows, strict=True)):
                    _draw(axes, series, entries[metric], _height(line, row, len(others)))
                    owned_by(axes, series.index, series.look.colour)
    return figure


def _height(line: int, row: float, number: int) -> float:
    """Return the place of a row: inches down from the first one."""
    return line * (_GAP + _STEP * number) + row * _STEP


def _span(entries: Sequence[Difference]) -> tuple[float, float]:
    ends = [end for entry in entries for end in (entry.value, entry.low, entry.high) if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    room = 0.05 * max(high - low, 0.02)
    return low - room, high + room


def _axes(axes: Axes, names: Sequence[str], number: int, tallest: int, span: tuple[float, float]) -> None:
    axes.set_xlim(*span)
    axes.set_ylim(_height(tallest - 1, number - 1, number) + _GAP, -_GAP)
    middles = [_height(line, (number - 1) / 2, number) for line in range(len(names))]
    axes.set_yticks(middles, names)
    for line in range(1, len(names)):
        axes.axhline(_height(line, 0, number) - (_GAP + _STEP) / 2, color=MUTED, lw=0.4, alpha=0.5, zorder=0)
    axes.axvline(0, color=INK, lw=0.9, zorder=1)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.2g}".replace("-", "−") if abs(value) > 1e-9 else "0")


def _draw(axes: Axes, series: Series, entry: Difference | None, height: float) -> None:
    if entry is None:
        return
    colour, marker = series.look.colour, series.look.marker
    apart = entry.low > 0 or entry.high < 0
    whisker(axes, height, entry.low, entry.high, colour, across=True)
    face, edge = (colour, PAPER) if apart else (PAPER, colour)
    axes.plot([entry.value], [height], marker, mfc=face, mec=edge, mew=0.5 if apart else 1.2, ms=5.5, zorder=4)
