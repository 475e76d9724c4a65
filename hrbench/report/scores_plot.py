"""Plots of alarm and critical scores: the false alarms that each defect costs, and the images with the thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hrbench.metrics import equivalent_diameter
from hrbench.metrics.words import budget_text, counted
from hrbench.protocol import Alarms, Protocol
from hrbench.report.alarm_axis import (
    AlarmAxis,
    Several,
    Threshold,
    columns_of,
    heading_of,
)
from hrbench.report.drawing import INK, MUTED, PAPER, Series, sheet
from hrbench.report.marks import log_ticks
from hrbench.report.plot_marks import owned_by
from hrbench.report.scores import Scores, accepted, running_median

__all__ = ["draw_alarms", "draw_ranks"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BINS = 36
_STROKES = 60  # more images than these get no stroke each


def draw_ranks(items: Several, protocol: Protocol, title: str) -> Figure | None:
    """Draw for each defect how many false alarms must be accepted to find it; None without any scores."""
    if not items:
        return None
    rules = protocol.alarm
    first = [(series, scores[0]) for series, scores in items]
    axis = AlarmAxis.of([scores for _, scores in first])
    across = [equivalent_diameter(scores.areas) for _, scores in first]
    low, high = min(float(part.min()) for part in across), max(float(part.max()) for part in across)
    margin = max(1.1, (high / low) ** 0.04)
    each = len(items) > 2
    columns = columns_of(len(items)) if each else 1
    rows = -(-len(items) // columns) if each else 1
    words = "false alarms to accept" + (f", per 100 ({counted(axis.good, 'good image')})" if rows == 1 else "")
    key = [
        (Line2D([], [], color=MUTED, marker="o", ls="", ms=4, alpha=0.7), "a defect"),
        (Line2D([], [], color=MUTED, lw=2), "running median"),
        (Line2D([], [], color=INK, lw=0.9), f"below: found at {budget_text(rules.headline)} per 100"),
        AlarmAxis.key(),
    ]
    legend = [] if each else [series for series, _ in items]
    with sheet(
        legend, title, markers=True, shape=(rows, columns), height=3.8 if rows == 1 else 2.8 * rows, key=key
    ) as (
        figure,
        grid,
    ):
        axes = None
        for place, ((series, scores), size) in enumerate(zip(first, across, strict=True)):
            if axes is None or each:
                axes = figure.add_subplot(grid[place // columns, place % columns])
                axis.up(axes, rules)
                axes.set_xscale("log")
                axes.set_xlim(low / margin, high * margin)
                ticks = log_ticks(low / margin, high * margin, 6 if each else 10)
                axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
                axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
                axes.set_xlabel("" if each and place + columns < len(items) else "equivalent diameter, px")
                axes.set_ylabel("" if place % columns else words)
            counts = accepted(scores)
            if each:
                found = int((counts <= scores.allowed(rules.headline)).sum())
                said = f"{found:,} of {counts.size:,} found at {budget_text(rules.headline)} per 100"
                axes.set_title(f"{heading_of(series)}\n{said}", pad=6)
            _draw_ranks(axes, axis, series, size, counts, scores.good.size, marked=not each)
            owned_by(axes, series.index, series.look.colour)
    return figure


def _draw_ranks(
    axes: Axes, axis: AlarmAxis, series: Series, diameters: Floats, counts: Ints, good: int, marked: bool
) -> None:
    colour, marker, line = series.look.colour, series.look.marker, series.look.line
    y = axis.places(counts, good)
    if marked:
        axes.plot(diameters, y, marker, mfc=colour, mec=PAPER, mew=0.4, ls="", ms=4.5, alpha=0.75, zorder=3)
    else:
        # Short strokes with round ends: one path, where each marker would be an element of the page. Snapped to pixels
        # they would have no length, and not be drawn.
        x = np.stack([diameters, diameters * 1.001, np.full(diameters.size, np.nan)], axis=1).ravel()
        axes.plot(x, np.repeat(y, 3), color=colour, lw=3.8, alpha=0.6, solid_capstyle="round", snap=False, zorder=3)
    at = np.unique(np.log(diameters))
    smooth = running_median(np.log(diameters), counts.astype(np.float64), at)
    height = np.where(smooth < 1, axis.none * (axis.one / axis.none) ** smooth, 100 * np.maximum(smooth, 1) / good)
    axes.plot(np.exp(at), height, color=colour, ls=line if marked else "-", lw=2, zorder=4)


def draw_alarms(
    items: Several, protocol: Protocol, title: str, at: Callable[[Series], Threshold | None] = lambda _: None
) -> Figure | None:
    """Draw the alarm scores of good images above and of defective ones below, with the thresholds; None without any."""
    if not items:
        return None
    rules = protocol.alarm
    columns = columns_of(len(items))
    rows = -(-len(items) // columns)
    own = [at(series) for series, _ in items]
    key = [(Line2D([], [], color=INK, lw=1.1), f"matched: {budget_text(rules.headline)} of 100 good images alarm")]
    present = [point for point in own if point is not None]
    if present:
        promise = present[0].promised
        most = "" if promise is None else f": at most {budget_text(promise)} of 100"
        key.append((Line2D([], [], color=INK, lw=1.1, ls=(0, (4, 2))), f"{protocol.threshold.name}{most}"))
    height = 2.9 if rows == 1 else 2.2 * rows
    with sheet([], title, markers=False, shape=(rows, columns), height=height, key=key) as (figure, grid):
        for place, ((series, scores), point) in enumerate(zip(items, own, strict=True)):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            said = "" if point is None else point.text
            said = said.replace(" (", "\n(", 1) if columns > 2 else said
            axes.set_title(f"{heading_of(series)}\n{said}".strip(), pad=6)
            _draw_scores(axes, series, scores[0], rules, point)
            owned_by(axes, series.index, series.look.colour)
            axes.set_yticks(
                [0.55, -0.55], ["good", "defective"] if place % columns == 0 else ["", ""], rotation=90, va="center"
            )
            if not any(first.defective.size for _, (first, *_) in items):
                axes.set_ylim(-0.06, 1.18)
                axes.set_yticks([0.55], ["good"] if place % columns == 0 else [""], rotation=90, va="center")
            axes.set_xlabel("" if place + columns < len(items) else "alarm score")
    return figure


def _draw_scores(axes: Axes, series: Series, scores: Scores, rules: Alarms, point: Threshold | None) -> None:
    colour = series.look.colour
    marks = [scores.limit(rules.headline)] + ([] if point is None else [point.score])
    every = np.concatenate([scores.good, scores.defective, marks])
    every = every[np.isfinite(every)]
    low, high = float(every.min()), float(every.max())
    if low > 0 and high > 30 * low:
        axes.set_xscale("log")
        edges = np.geomspace(low, high * 1.0001, _BINS + 1)
        ticks = log_ticks(low, high, 5)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    else:
        room = 0.02 * ((high - low) or 1.0)
        edges = np.linspace(low - room, high + room, _BINS + 1)
    axes.set_xlim(edges[0], edges[-1])
    for values, sign, face in ((scores.good, 1, MUTED), (scores.defective, -1, colour)):
        counts = np.histogram(values, edges)[0]
        bars = sign * 0.92 * counts / max(1, counts.max())
        axes.stairs(bars, edges, fill=True, color=face, alpha=0.55, lw=0, zorder=2)
        if values.size <= _STROKES:
            y = np.tile([sign * 1.0, sign * 1.12, math.nan], values.size)
            axes.plot(np.repeat(values, 3), y, color=face, lw=0.9, alpha=0.9, zorder=3, solid_capstyle="butt")
    axes.axhline(0, color=MUTED, lw=0.6, zorder=3)
    axes.set_ylim(-1.18, 1.18)
    for mark, line in zip(marks, ("-", (0, (4, 2))), strict=False):
        if math.isfinite(mark):
            axes.axvline(mark, color=INK, lw=1.1, ls=line, zorder=4)
