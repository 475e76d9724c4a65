"""Plots over false alarms: the smallest defect found, recall by size, the alarms that each defect costs, the scores."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hrbench.metrics import DISJOINT, equivalent_diameter, size_subsets
from hrbench.metrics.alarms import FalseAlarms
from hrbench.protocol import Alarms, Protocol
from hrbench.report.configurations import printable
from hrbench.report.detection_limits import limit_names
from hrbench.report.drawing import GRID, INK, MUTED, PAPER, Series, log_ticks, sheet, style, value_axis
from hrbench.report.scores import (
    Band,
    Scores,
    accepted,
    allowed,
    limit_band,
    limit_curve,
    recalls,
    running_median,
    steps,
)
from hrbench.report.summary import MIN_COMPONENTS

__all__ = ["Threshold", "draw_alarms", "draw_froc", "draw_limits", "draw_ranks", "per_hundred", "promise_text"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Several = Sequence[tuple[Series, Sequence[Scores]]]

_OVERLAID = 4  # more methods than these get a panel each
_EDGE = 2.2  # from zero alarms to one: a ratio on a logarithmic axis
_POINTS = 40  # more points of a curve than these are drawn as a line
_BINS = 36
_STROKES = 60  # more images than these get no stroke each
_ALARMS = "false alarms per 100 good images"


def per_hundred(share: float) -> str:
    """Write a share of the good images as a number per 100: ``5``, ``0.5``."""
    return f"{100 * share:.3g}"


def promise_text(alarms: FalseAlarms, promised: float | None) -> str:
    """Write ``promised 5 → achieved 12 per 100 (7 of 60)``, and say where the promise is broken beyond chance."""
    rate = f"{100 * alarms.rate:.1f}".removesuffix(".0")
    achieved = f"{rate} per 100 ({alarms.count:,} of {alarms.good:,})"
    if promised is None:
        return f"{achieved} alarm"
    drift = ": drift!" if alarms.interval()[0] > promised else ""
    return f"promised {per_hundred(promised)} → achieved {achieved}{drift}"


@dataclass(frozen=True)
class _AlarmAxis:
    """A logarithmic axis of false alarms per 100 good images, with a zone for none at its lower end.

    Attributes
    ----------
    good : int
        Good images.
    high : float
        Its upper end.
    """

    good: int
    high: float

    @staticmethod
    def of(scores: Sequence[Scores], last: int | None = None) -> _AlarmAxis:
        good = max(part.good.size for part in scores)
        return _AlarmAxis(good, 100.0 * (good if last is None else max(last, 1.4)) / good)

    @property
    def one(self) -> float:
        """A single alarm."""
        return 100 / self.good

    @property
    def none(self) -> float:
        """The place of no alarm."""
        return self.one / math.sqrt(_EDGE)

    @property
    def low(self) -> float:
        return self.one / _EDGE

    def places(self, alarms: Ints, good: int) -> Floats:
        """Return where numbers of alarms among so many good images lie."""
        return np.where(alarms == 0, self.none, 100 * np.maximum(alarms, 1) / good)

    def edges(self, alarms: Ints, good: int) -> Floats:
        """Return where steps begin: that of no alarm at the end of the axis."""
        return np.where(alarms == 0, self.low, 100 * np.maximum(alarms, 1) / good)

    def _ticks(self, most: int) -> tuple[list[float], list[str]]:
        places = [place for place in log_ticks(self.one, self.high, most) if self.one <= place <= self.high]
        return [self.none, *places], ["0", *(f"{place:.3g}" for place in places)]

    def across(self, axes: Axes, rules: Alarms, most: int = 8, label: str = _ALARMS, numbers: bool = True) -> None:
        """Make it the horizontal axis; mark the budgets."""
        axes.set_xscale("log")
        axes.set_xlim(self.low, self.high)
        axes.axvspan(self.low, self.one, color=GRID, alpha=0.45, lw=0, zorder=0)
        axes.set_xticks(*self._ticks(most))
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.set_xlabel(label)
        for budget in rules.budgets:
            main, place = budget == rules.headline, 100 * budget
            if allowed(self.good, budget) == 0:
                if not main:
                    continue
                place = self.none
            colour = INK if main else MUTED
            axes.axvline(place, color=colour, lw=0.9 if main else 0.5, ls="-" if main else ":", zorder=1)
            if numbers:
                axes.annotate(
                    per_hundred(budget), (place, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                    textcoords="offset points", ha="center", fontsize=7, color=colour,
                    fontweight="bold" if main else "normal",
                )  # fmt: skip

    def up(self, axes: Axes, rules: Alarms) -> None:
        """Make it the vertical axis; mark the headline."""
        axes.set_yscale("log")
        axes.set_ylim(self.low, self.high * 1.12)
        axes.axhspan(self.low, self.one, color=GRID, alpha=0.45, lw=0, zorder=0)
        axes.set_yticks(*self._ticks(9))
        axes.tick_params(axis="y", which="minor", left=False, labelleft=False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        height = self.none if allowed(self.good, rules.headline) == 0 else 100 * rules.headline
        axes.axhline(height, color=INK, lw=0.9, zorder=1)


def _heading(series: Series, width: int = 42) -> str:
    label = textwrap.shorten(printable(series.label), 2 * width, placeholder=" …")
    return textwrap.fill(label, width, break_long_words=True)


def _columns(panels: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def _images(good: int) -> str:
    return f"{good:,} good image{'s' * (good != 1)}"


def draw_limits(items: Several, protocol: Protocol, title: str) -> Figure | None:
    """Draw a90 against false alarms, with its band; None without any scores.

    Bars with an arrow, above the largest defect: not reached. Bars below the smallest one: every defect is hit.
    """
    if not items:
        return None
    rules, name = protocol.alarm, limit_names(protocol.pod)[1]
    curves = [_Limit.of(series, scores[0], protocol) for series, scores in items]
    axis = _AlarmAxis.of([scores[0] for _, scores in items], max(int(curve.alarms[-1]) for curve in curves))
    ways = {curve.band.construction for curve in curves if np.isfinite(curve.band.low).any()}
    words = {"bootstrap": "bootstrap over images", "profile": "profile likelihood"}
    level = f"{100 * protocol.bootstrap.level:g} %"
    band = Line2D([], [], color=MUTED, lw=7, alpha=0.3)
    arrow = Line2D([], [], color=MUTED, lw=2, marker="^", mfc=PAPER, mec=MUTED, mew=1.2, ms=6)
    key = [(arrow, f"{name} not reached")] if any(_missed(curve).any() for curve in curves) else []
    if ways:
        key.insert(0, (band, f"{level}, {' or '.join(words[way] for way in sorted(ways))}"))
    across = f"{_ALARMS} ({_images(axis.good)})"
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
    columns = _columns(len(curves))
    rows = -(-len(curves) // columns)
    key.append((Line2D([], [], color=MUTED, lw=0.7, alpha=0.6), "the others"))
    with sheet([], title, markers=False, shape=(rows, columns), height=2.6 * rows, key=key) as (figure, grid):
        for place, curve in enumerate(curves):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            axes.set_title(_heading(curve.series), pad=13)
            axis.across(axes, rules, 5, "" if place + columns < len(curves) else _ALARMS)
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

    def line(self, axis: _AlarmAxis) -> tuple[Floats, Floats]:
        return axis.places(self.alarms, self.good), np.where(self.reached, self.areas, np.nan)

    def draw(self, axes: Axes, axis: _AlarmAxis, heights: _Heights, over: int, under: int) -> None:
        colour, marker, line = style(self.series.index)
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
        axes.set_yticks(ticks, [f"{area:,.0f}  ⌀ {_across(area)}" for area in ticks])
        strips = [(self.above(0), self.above(self.over - 1), "not reached")] if self.over else []
        strips += [(self.below(0), self.below(self.under - 1), "all found")] if self.under else []
        axes.set_yticks([math.sqrt(a * b) for a, b, _ in strips], [text for _, _, text in strips], minor=True)
        axes.tick_params(axis="y", which="minor", length=0, labelcolor=MUTED)
        axes.set_ylabel(label)
        axes.grid(axis="y")
        axes.set_axisbelow(True)


def _across(area: float) -> str:
    across = float(equivalent_diameter(area))
    return f"{across:.{0 if across >= 9.95 else 1}f}"


@dataclass(frozen=True)
class Threshold:
    """What holds at a method's own threshold, which was set without the test images.

    Attributes
    ----------
    score : float
    alarms : FalseAlarms
    recall : float
        Share of the defects that are hit.
    promised : float or None
        Share of the good images that may alarm, if its rule promises one.
    """

    score: float
    alarms: FalseAlarms
    recall: float
    promised: float | None


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
    axis = _AlarmAxis.of([part for _, scores in items for part in scores], max(int(a[-1]) for a in alarms.values()))
    own = {series.index: point for series, _ in items if (point := at(series)) is not None}
    key = []
    if own:
        promise = any(point.promised is not None for point in own.values())
        hollow = Line2D([], [], marker="o", ls="", mfc=PAPER, mec=MUTED, mew=1.2, ms=6)
        key.append((hollow, f"at the {'promised' if promise else 'automatic'} threshold (arrow: beyond)"))
    with sheet([s for s, _ in items], title, markers=False, shape=(2, 4), height=4.4, key=key) as (figure, grid):
        whole = figure.add_subplot(grid[:, :2])
        small = [figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (2, 3)]
        for axes, subset in zip((whole, *small), ("all", *DISJOINT), strict=True):
            main = axes is whole
            value_axis(axes, _size_heading(subset, items[0][1][0], protocol), "share of defects found" * main, pad=15)
            axes.set_ylim(-0.015, 1.015)
            lower = main or subset in DISJOINT[2:]
            label = f"{_ALARMS} ({_images(axis.good)})" if main else "per 100 good images"
            axis.across(axes, rules, 8 if main else 5, label if lower else "")
            if not main:
                axes.set_yticks([0, 0.5, 1], ["0.0", "0.5", "1.0"])
            for series, scores in items:
                curve = _mean_recall(scores, alarms[id(scores)], subset, protocol)
                colour, _, line = style(series.index)
                good = scores[0].good.size
                x = np.append(axis.edges(alarms[id(scores)], good), axis.high)
                axes.step(x, np.append(curve, curve[-1]), where="post", color=colour, ls=line, lw=1.5, zorder=3)
                if main and series.index in own:
                    _mark_threshold(axes, axis, series, own[series.index])
    return figure


def _mark_threshold(axes: Axes, axis: _AlarmAxis, series: Series, point: Threshold) -> None:
    colour, marker, _ = style(series.index)
    x = float(axis.places(np.array(point.alarms.count), point.alarms.good))
    beyond = x > axis.high
    axes.plot(
        [min(x, axis.high)], [point.recall], ">" if beyond else marker,
        mfc=PAPER, mec=colour, mew=1.3, ms=7, zorder=5, clip_on=False,
    )  # fmt: skip


def _mean_recall(scores: Sequence[Scores], alarms: Ints, subset: str, protocol: Protocol) -> Floats:
    """Return the mean over the seeds; too few defects for a number give none."""
    curves = []
    for part in scores:
        members = size_subsets(part.areas, protocol.size_bins)[subset]
        if part.good.size == scores[0].good.size and (subset == "all" or members.sum() >= MIN_COMPONENTS):
            curves.append(recalls(part, alarms, members))
    return np.mean(curves, axis=0) if curves else np.full(alarms.size, np.nan)


def _size_heading(subset: str, scores: Scores, protocol: Protocol) -> str:
    areas = scores.areas[size_subsets(scores.areas, protocol.size_bins)[subset]]
    if subset != "all" and areas.size < MIN_COMPONENTS:
        return f"{subset}: " + ("too few" if areas.size else "none")
    if subset == "all":
        return f"all defects: {areas.size:,}, {areas.min():,}–{areas.max():,} px"
    return f"{subset}: {areas.size:,}, {areas.min():,}–{areas.max():,} px"


def draw_ranks(items: Several, protocol: Protocol, title: str) -> Figure | None:
    """Draw for each defect how many false alarms must be accepted to find it; None without any scores."""
    if not items:
        return None
    rules = protocol.alarm
    first = [(series, scores[0]) for series, scores in items]
    axis = _AlarmAxis.of([scores for _, scores in first])
    across = [equivalent_diameter(scores.areas) for _, scores in first]
    low, high = min(float(part.min()) for part in across), max(float(part.max()) for part in across)
    margin = max(1.1, (high / low) ** 0.04)
    each = len(items) > 2
    columns = _columns(len(items)) if each else 1
    rows = -(-len(items) // columns) if each else 1
    key = [
        (Line2D([], [], color=MUTED, marker="o", ls="", ms=4, alpha=0.7), "a defect"),
        (Line2D([], [], color=MUTED, lw=2), "running median"),
        (Line2D([], [], color=INK, lw=0.9), f"below: found at {per_hundred(rules.headline)} per 100"),
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
                words = (
                    f"false alarms to accept, per 100 ({_images(axis.good)})" if rows == 1 else "false alarms to accept"
                )
                axes.set_ylabel("" if place % columns else words)
            counts = accepted(scores)
            if each:
                found = int((counts <= allowed(scores.good.size, rules.headline)).sum())
                axes.set_title(
                    f"{_heading(series)}\n{found:,} of {counts.size:,} found at {per_hundred(rules.headline)} per 100",
                    pad=6,
                )
            _draw_ranks(axes, axis, series, size, counts, scores.good.size, marked=not each)
    return figure


def _draw_ranks(
    axes: Axes, axis: _AlarmAxis, series: Series, diameters: Floats, counts: Ints, good: int, marked: bool
) -> None:
    colour, marker, line = style(series.index)
    y = axis.places(counts, good)
    if marked:
        axes.plot(diameters, y, marker, mfc=colour, mec=PAPER, mew=0.4, ls="", ms=4.5, alpha=0.75, zorder=3)
    else:  # short strokes with round ends: one path, where each marker would be an element of the page
        x = np.stack([diameters, diameters * 1.0005, np.full(diameters.size, np.nan)], axis=1).ravel()
        axes.plot(x, np.repeat(y, 3), color=colour, lw=3.8, alpha=0.6, solid_capstyle="round", zorder=3)
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
    columns = _columns(len(items))
    rows = -(-len(items) // columns)
    own = [at(series) for series, _ in items]
    key = [(Line2D([], [], color=INK, lw=1.1), f"matched: {per_hundred(rules.headline)} of 100 good images alarm")]
    present = [point for point in own if point is not None]
    if present:
        name = "automatic" if present[0].promised is None else f"promised: at most {per_hundred(present[0].promised)}"
        key.append((Line2D([], [], color=INK, lw=1.1, ls=(0, (4, 2))), f"{name}, set on training images"))
    height = 2.9 if rows == 1 else 2.2 * rows
    with sheet([], title, markers=False, shape=(rows, columns), height=height, key=key) as (figure, grid):
        for place, ((series, scores), point) in enumerate(zip(items, own, strict=True)):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            said = "" if point is None else promise_text(point.alarms, point.promised)
            said = said.replace(" (", "\n(", 1) if columns > 2 else said
            axes.set_title(f"{_heading(series)}\n{said}".strip(), pad=6)
            _draw_scores(axes, series, scores[0], rules, point)
            axes.set_yticks(
                [0.55, -0.55], ["good", "defective"] if place % columns == 0 else ["", ""], rotation=90, va="center"
            )
            axes.set_xlabel("" if place + columns < len(items) else "alarm score")
    return figure


def _draw_scores(axes: Axes, series: Series, scores: Scores, rules: Alarms, point: Threshold | None) -> None:
    colour, _, _ = style(series.index)
    limit = float(np.append(np.sort(scores.good)[::-1], -np.inf)[allowed(scores.good.size, rules.headline)])
    marks = [limit] + ([] if point is None else [point.score])
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
