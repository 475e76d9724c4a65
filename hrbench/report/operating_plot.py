"""Plots of what is found at how many false alarms: the smallest defect found reliably, and recall by size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hrbench.metrics import DISJOINT, equivalent_diameter
from hrbench.metrics.words import counted, figure_text
from hrbench.protocol import Protocol
from hrbench.report.alarm_axis import ALARMS, AlarmAxis, Several, Threshold, columns_of, heading_of
from hrbench.report.detection_limits import limit_names
from hrbench.report.drawing import MUTED, PAPER, Series, sheet, value_axis
from hrbench.report.marks import area_text, log_ticks
from hrbench.report.plot_marks import owned_by
from hrbench.report.scores import Band, Scores, limit_band, limit_curve, recalls, steps
from hrbench.report.summary import MIN_COMPONENTS

__all__ = ["draw_froc", "draw_limits"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_OVERLAID = 4  # more methods than these get a panel each
_POINTS = 40  # more points of a curve than these are drawn as a line


def draw_limits(items: Several, protocol: Protocol, title: str) -> Figure | None:
    """Draw a90 against false alarms, with its band; None without any scores.

    Bars with an arrow, above the largest defect: not reached. Bars below the smallest one: every defect is hit.
    """
    if not items:
        return None
    rules, name = protocol.alarm, limit_names(protocol.pod)[1]
    curves = [_Limit.of(series, scores[0], protocol) for series, scores in items]
    axis = AlarmAxis.of([scores[0] for _, scores in items], max(int(curve.alarms[-1]) for curve in curves))
    ways = {curve.band.construction for curve in curves if np.isfinite(curve.band.low).any()}
    words = {"bootstrap": "bootstrap", "profile": "profile likelihood"}
    level = f"{100 * protocol.bootstrap.level:g} %"
    band = Line2D([], [], color=MUTED, lw=7, alpha=0.3)
    arrow = Line2D([], [], color=MUTED, lw=2, marker="^", mfc=PAPER, mec=MUTED, mew=1.2, ms=6)
    key = [(arrow, f"{name} not reached")] if any(_missed(curve).any() for curve in curves) else []
    if ways:
        key.insert(0, (band, f"{level}, {' or '.join(words[way] for way in sorted(ways))}"))
    key.append(AlarmAxis.key())
    across = f"{ALARMS} ({counted(axis.good, 'good image')})"
    heights = _Heights.of(curves)
    if len(curves) <= _OVERLAID:
        with sheet([s for s, _ in items], title, markers=True, shape=(1, 1), height=3.8, key=key) as (figure, grid):
            axes = figure.add_subplot(grid[0])
            axis.across(axes, rules, label=across)
            heights.up(axes, f"{name}: area found {100 * protocol.pod.probability:g} % of the time, px", most=9)
            over = under = 0
            for curve in curves:
                curve.draw(axes, axis, heights, over, under)
                over, under = over + bool(_missed(curve).any()), under + bool(_all_hit(curve).any())
        return figure
    columns = columns_of(len(curves))
    rows = -(-len(curves) // columns)
    key.append((Line2D([], [], color=MUTED, lw=0.7, alpha=0.6), "the others"))
    with sheet([], title, markers=False, shape=(rows, columns), height=2.6 * rows, key=key) as (figure, grid):
        for place, curve in enumerate(curves):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            axes.set_title(heading_of(curve.series, 34), pad=13)
            axis.across(axes, rules, 5, "" if place + columns < len(curves) else ALARMS)
            heights.up(axes, "" if place % columns else f"{name}, px", most=5)
            others = [
                np.append(other.line(axis), [[np.nan], [np.nan]], axis=1) for other in curves if other is not curve
            ]
            axes.plot(*np.concatenate(others, axis=1), color=MUTED, lw=0.7, alpha=0.6, zorder=2)
            curve.draw(axes, axis, heights, 0, 0)
    return figure


@dataclass(frozen=True, eq=False)
class _Limit:
    """One curve of a90."""

    series: Series
    good: int
    alarms: Ints
    areas: Floats
    band: Band
    seen: tuple[float, float]

    @staticmethod
    def of(series: Series, scores: Scores, protocol: Protocol) -> _Limit:
        budgets = protocol.alarm.budgets
        alarms = steps(scores.good.size, budgets)
        areas, band = limit_curve(scores, alarms, protocol.pod), limit_band(scores, budgets, protocol.pod)
        seen = float(scores.areas.min()), float(scores.areas.max())
        return _Limit(series, scores.good.size, alarms, areas, band, seen)

    @property
    def reached(self) -> Bools:
        return np.isfinite(self.areas) & (self.areas > 0)

    def line(self, axis: AlarmAxis) -> tuple[Floats, Floats]:
        return axis.places(self.alarms, self.good), np.where(self.reached, self.areas, np.nan)

    def draw(self, axes: Axes, axis: AlarmAxis, heights: _Heights, over: int, under: int) -> None:
        look = self.series.look
        colour, marker, line = look.colour, look.marker, look.line
        x, y = self.line(axis)
        band = self.band
        # An open end goes on to the largest defect: nothing larger was seen.
        low, high = (np.clip(ends, heights.low, heights.largest) for ends in (band.low, band.high))
        inside = ~(np.isnan(band.low) | (low >= high))
        axes.fill_between(
            axis.places(band.alarms, self.good), low, high, where=inside, color=colour, alpha=0.13, lw=0, zorder=2
        )
        alone = inside & ~np.append(inside[1:], False) & ~np.insert(inside[:-1], 0, False)
        for place in np.flatnonzero(alone):  # has no width of its own
            at = float(axis.places(band.alarms, self.good)[place])
            axes.plot(
                [at] * 2, [low[place], high[place]], color=colour, alpha=0.2, lw=6, solid_capstyle="butt", zorder=2
            )
        few = self.alarms.size <= _POINTS
        axes.plot(x, y, color=colour, ls=line, lw=1.5, zorder=4)
        places = np.flatnonzero(self.reached)
        if not few:  # ends of pieces only, so that a single point is seen
            places = places[~np.isin(places - 1, places) | ~np.isin(places + 1, places)]
        axes.plot(x[places], y[places], marker, mfc=colour, mec=PAPER, mew=0.6, ms=5.5, ls="", zorder=5)
        edges = np.append(axis.edges(self.alarms, self.good), axis.high)
        for missing, height, arrow in (
            (_missed(self), heights.above(over), "^"),
            (_all_hit(self), heights.below(under), "v"),
        ):
            for start, end in _stretches(missing):
                ends = edges[start], edges[end]
                if ends[0] == ends[1]:  # the last one, at the end of the axis
                    ends = edges[start - 1], edges[end]
                axes.plot(ends, [height] * 2, color=colour, lw=2, solid_capstyle="butt", zorder=3)
                middle = math.sqrt(ends[0] * ends[1])
                axes.plot([middle], [height], arrow, mfc=PAPER, mec=colour, mew=1.2, ms=6, zorder=5)
        owned_by(axes, self.series.index, colour)


def _missed(curve: _Limit) -> Bools:
    return np.isinf(curve.areas)


def _all_hit(curve: _Limit) -> Bools:
    result: Bools = curve.areas == 0
    return result


def _stretches(chosen: Bools) -> list[tuple[int, int]]:
    """Return begin and end of each run of true values."""
    turns = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in turns.reshape(-1, 2)]


@dataclass(frozen=True)
class _Heights:
    """The vertical axis of areas: what was seen, and rows for limits beyond it on both sides."""

    low: float
    largest: float
    over: int
    under: int

    @staticmethod
    def of(curves: Sequence[_Limit]) -> _Heights:
        smallest, largest = min(curve.seen[0] for curve in curves), max(curve.seen[1] for curve in curves)
        shown = [curve.areas[curve.reached] for curve in curves]
        shown += [curve.band.low[curve.band.low > 0] for curve in curves]
        under = sum(bool(_all_hit(curve).any()) for curve in curves)
        lowest = smallest if under else float(np.concatenate([*shown, [largest / 10]]).min()) / 1.5
        low = max(lowest, smallest / 3)
        over = sum(bool(_missed(curve).any()) for curve in curves)
        if len(curves) > _OVERLAID:  # a panel each
            over, under = min(over, 1), min(under, 1)
        return _Heights(low, max(largest, 1.5 * low), over, under)

    @property
    def _row(self) -> float:
        """Height of a row, as a logarithm."""
        return 0.05 * math.log(self.largest / self.low)

    def above(self, row: int) -> float:
        return self.largest * math.exp(self._row * (1.2 + row))

    def below(self, row: int) -> float:
        return self.low / math.exp(self._row * (1.2 + row))

    def up(self, axes: Axes, label: str, most: int) -> None:
        axes.set_yscale("log")
        room = math.exp(0.7 * self._row)
        ends = [self.low / room, self.largest * room]
        if self.over:
            axes.axhline(self.largest, color=MUTED, lw=0.6, zorder=1)
            ends[1] = self.above(self.over - 1) * room
        if self.under:
            axes.axhline(self.low, color=MUTED, lw=0.6, zorder=1)
            ends[0] = self.below(self.under - 1) / room
        axes.set_ylim(*ends)
        ticks = log_ticks(self.low, self.largest, most)
        axes.set_yticks(
            ticks, [f"{area_text(area)}  ⌀ {figure_text(float(equivalent_diameter(area)))}" for area in ticks]
        )
        strips = [(self.above(0), self.above(self.over - 1), "not reached")] if self.over else []
        strips += [(self.below(0), self.below(self.under - 1), "all found")] if self.under else []
        axes.set_yticks([math.sqrt(a * b) for a, b, _ in strips], [text for _, _, text in strips], minor=True)
        axes.tick_params(axis="y", which="minor", length=0, labelcolor=MUTED)
        axes.set_ylabel(label)
        axes.grid(axis="y")
        axes.set_axisbelow(True)


def draw_froc(
    items: Several, protocol: Protocol, title: str, at: Callable[[Series], Threshold | None] = lambda _: None
) -> Figure | None:
    """Draw recall against false alarms for all defects and each quarter by size; None without any scores.

    Values are means over the seeds. Hollow markers in the panel of all defects: the method's own threshold.
    """
    if not items:
        return None
    rules = protocol.alarm
    alarms = {id(scores): steps(scores[0].good.size, rules.budgets) for _, scores in items}
    axis = AlarmAxis.of([part for _, scores in items for part in scores], max(int(a[-1]) for a in alarms.values()))
    own = {series.index: point for series, _ in items if (point := at(series)) is not None}
    key = [AlarmAxis.key()]
    if own:
        hollow = Line2D([], [], marker="o", ls="", mfc=PAPER, mec=MUTED, mew=1.2, ms=6)
        key.append((hollow, f"at the {protocol.threshold.name} (arrow: beyond)"))
    with sheet([s for s, _ in items], title, markers=False, shape=(2, 4), height=4.4, key=key) as (figure, grid):
        whole = figure.add_subplot(grid[:, :2])
        small = [figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (2, 3)]
        for axes, subset in zip((whole, *small), ("all", *DISJOINT), strict=True):
            main = axes is whole
            value_axis(axes, _size_heading(subset, items[0][1][0]), "share of defects found" * main, pad=15)
            axes.set_ylim(-0.015, 1.015)
            lower = main or subset in DISJOINT[2:]
            label = f"{ALARMS} ({counted(axis.good, 'good image')})" if main else "per 100 good images"
            axis.across(axes, rules, 8 if main else 5, label if lower else "")
            if not main:
                axes.set_yticks([0, 0.5, 1], ["0.0", "0.5", "1.0"])
            for series, scores in items:
                curve = _mean_recall(scores, alarms[id(scores)], subset)
                colour, line = series.look.colour, series.look.line
                good = scores[0].good.size
                x = np.append(axis.edges(alarms[id(scores)], good), axis.high)
                axes.step(x, np.append(curve, curve[-1]), where="post", color=colour, ls=line, lw=1.5, zorder=3)
                if main and series.index in own:
                    _mark_threshold(axes, axis, series, own[series.index])
                owned_by(axes, series.index, series.look.colour)
    return figure


def _mark_threshold(axes: Axes, axis: AlarmAxis, series: Series, point: Threshold) -> None:
    colour, marker = series.look.colour, series.look.marker
    x = float(axis.places(np.array(point.alarms.count), point.alarms.good))
    beyond = x > axis.high
    axes.plot(
        [min(x, axis.high)], [point.recall], ">" if beyond else marker,
        mfc=PAPER, mec=colour, mew=1.3, ms=7, zorder=5, clip_on=False,
    )  # fmt: skip


def _mean_recall(scores: Sequence[Scores], alarms: Ints, subset: str) -> Floats:
    """Return the mean over the seeds; too few defects for a number give none."""
    curves = []
    for part in scores:
        members = part.members(subset)
        if part.good.size == scores[0].good.size and (subset == "all" or members.sum() >= MIN_COMPONENTS):
            curves.append(recalls(part, alarms, members))
    return np.mean(curves, axis=0) if curves else np.full(alarms.size, np.nan)


def _size_heading(subset: str, scores: Scores) -> str:
    areas = scores.areas[scores.members(subset)]
    if subset != "all" and areas.size < MIN_COMPONENTS:
        return f"{subset}: " + ("too few" if areas.size else "none")
    if subset == "all":
        return f"all defects: {areas.size:,}, {areas.min():,}–{areas.max():,} px"
    return f"{subset}: {areas.size:,}, {areas.min():,}–{areas.max():,} px"
