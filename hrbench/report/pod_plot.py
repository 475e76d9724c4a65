"""Plots of the probability of detection against defect size."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hrbench.metrics import equivalent_diameter
from hrbench.metrics.alarms import allowed
from hrbench.metrics.detection import Detection
from hrbench.metrics.words import budget_text, detection_limit_text, figure_text
from hrbench.protocol import Detectability, ThresholdRule
from hrbench.report.alarm_axis import Threshold, heading_of
from hrbench.report.detection_limits import limit_names, unreached
from hrbench.report.drawing import MUTED, PAPER, Series, sheet, value_axis
from hrbench.report.marks import area_text, legible, log_ticks
from hrbench.report.plot_marks import owned_by

__all__ = ["draw_detection", "draw_matched"]

Floats = npt.NDArray[np.float64]

_OVERLAID = 4  # more curves than these get a panel each
_COLUMNS = 3
_WIDTH = 36  # of a panel's heading, in letters
_STROKES = 500  # of a rug that can be told apart


def draw_detection(
    items: Sequence[tuple[Series, Detection]],
    pod: Detectability,
    title: str,
    rule: ThresholdRule | None = None,
    at: Callable[[Series], Threshold | None] = lambda _: None,
) -> Figure | None:
    """Draw POD curves at each method's own threshold, hits above and misses below; None if no defect was analysed.

    A filled marker is a90, a hollow one a90/95; a hollow arrow at the right edge says that the limit is not reached.
    Beside the limits stands how many good images alarm; `rule` is what set the thresholds, and `at` tells what it
    promised.
    """
    items = [(series, found) for series, found in items if found.areas.size]
    if not items:
        return None
    span = _span([found for _, found in items])
    heading = _promise(rule)
    if len(items) <= _OVERLAID:
        shown = [_said(s, f"{_limits(found, pod)}{_achieved(found, at(s))}") for s, found in items]
        with sheet(shown, title, markers=False, shape=(1, 1), height=3.6, key=_key(pod)) as (figure, grid):
            axes = figure.add_subplot(grid[0])
            _axes(axes, span, heading, len(items), pod.probability, most=12)
            axes.set_ylabel("probability of detection")
            axes.set_xlabel("area of the defect, px; below it the diameter of an equal circle")
            _draw(axes, items, span[1])
        return figure
    rows = -(-len(items) // _COLUMNS)
    with sheet([], title, markers=False, shape=(rows, _COLUMNS), height=2.7 * rows, key=_key(pod)) as (figure, grid):
        for place, (series, found) in enumerate(items):
            axes = figure.add_subplot(grid[place // _COLUMNS, place % _COLUMNS])
            parts = _limits(found, pod), _achieved(found, at(series))
            said = [textwrap.fill(text.removeprefix("; "), _WIDTH) for text in parts if text]
            _axes(axes, span, "\n".join([heading_of(series, _WIDTH), *said]), 1, pod.probability, most=4)
            axes.set_yticks([0, 0.5, 1], ["0.0", "0.5", ""])
            axes.set_ylabel("" if place % _COLUMNS else "probability of detection")
            axes.set_xlabel("" if place + _COLUMNS < len(items) else "area, px; ⌀ of an equal circle")
            _draw(axes, [(series, found)], span[1])
    return figure


def draw_matched(
    items: Sequence[tuple[Series, Mapping[float, Detection]]], headline: float, pod: Detectability, title: str
) -> Figure | None:
    """Draw the POD curves of all methods at equal false alarms, a panel per budget; None without any.

    Budgets that let as many good images alarm are one. The headline's panel is the large one. Neither bands nor upper
    limits are drawn: those of the likelihood do not know that the threshold is from a sample, too.
    """
    items = [(series, by_budget) for series, by_budget in items if headline in by_budget]
    if not items:
        return None
    groups: dict[tuple[int, ...], list[float]] = {}
    for budget in sorted(set.intersection(*(set(by_budget) for _, by_budget in items))):
        number = tuple(allowed(by_budget[budget].alarms.good, budget) for _, by_budget in items)
        groups.setdefault(number, []).append(budget)
    main = next(budgets for budgets in groups.values() if headline in budgets)
    others = [budgets for budgets in groups.values() if budgets is not main]
    span = _span([by_budget[headline] for _, by_budget in items])
    few = len(items) <= _OVERLAID
    shown = [_said(s, _limits(found[headline], pod, upper=False)) for s, found in items]
    columns = max(1, len(others))
    shape, height = ((5, columns), 5.6) if others else ((1, 1), 3.6)
    key = _key(pod)[:1]
    with sheet(shown, title, markers=False, shape=shape, height=height, key=key) as (figure, grid):
        axes = figure.add_subplot(grid[:3, :] if others else grid[0])
        at_headline = [(series, by_budget[headline]) for series, by_budget in items]
        heading, rugs = _at(main, [found for _, found in at_headline], True), len(items) if few else 0
        _axes(axes, span, heading, rugs, pod.probability, most=12)
        axes.set_ylabel("probability of detection")
        axes.set_xlabel("area of the defect, px; below it the diameter of an equal circle")
        _draw(axes, at_headline, span[1], few=False, rug=few)
        for place, budgets in enumerate(others):
            axes = figure.add_subplot(grid[3:, place])
            found = [(series, by_budget[budgets[0]]) for series, by_budget in items]
            heading = _at(budgets, [result for _, result in found], False)
            _axes(axes, span, heading, 0, pod.probability, most=3 if columns > 2 else 5)
            axes.set_yticks([0, 0.5, 1], ["0.0", "0.5", ""] if place == 0 else ["", "", ""])
            if place:
                axes.tick_params(axis="y", which="minor", labelleft=False)
            _draw(axes, found, span[1], few=False, rug=False)
    return figure


def _said(series: Series, text: str) -> Series:
    return dataclasses.replace(series, label=f"{series.label}, {text}")


def _at(budgets: Sequence[float], found: Sequence[Detection], main: bool) -> str:
    """Return the heading of a panel: ``at 5 false alarms per 100 good images: 3 of 60 alarmed``."""
    counts = sorted({result.alarms.count for result in found})
    goods = sorted({result.alarms.good for result in found})
    texts = ["–".join(f"{n:,}" for n in dict.fromkeys((part[0], part[-1]))) for part in (counts, goods)]
    *before, last = (budget_text(budget) for budget in budgets)
    at = f"{', '.join(before)} or {last}" if before else last
    return f"at {at}{' false alarms' * main} per 100{' good images' * main}: {texts[0]} of {texts[1]} alarmed"


def _span(found: Sequence[Detection]) -> tuple[float, float]:
    low = min(float(result.areas.min()) for result in found)
    high = max(float(result.areas.max()) for result in found)
    margin = max(1.08, (high / low) ** 0.03)
    return low / margin, high * margin


def _promise(rule: ThresholdRule | None) -> str:
    """Return the heading for thresholds that are set without the test images."""
    if rule is None:
        return ""
    if rule.rule == "conformal":
        return f"at the {rule.name}: at most {budget_text(rule.alarms)} false alarms per 100 good images"
    return f"at the {rule.name} that were held out ({rule.rule})"


def _achieved(found: Detection, point: Threshold | None) -> str:
    """Return how many good images alarm, as part of a legend; nothing where there are none."""
    point = point or Threshold(found.threshold, found.alarms, math.nan)
    return f"; {point.text}" if found.alarms.good else ""


def _limits(found: Detection, pod: Detectability, *, upper: bool = True) -> str:
    """Return a90, and if wanted its upper limit, as part of a legend."""
    if found.estimator == "none":
        return f"no curve, {int(found.hits.sum()):,} of {found.hits.size:,} hit"
    _, a90, a90_95 = limit_names(pod)
    text = f"{a90} {detection_limit_text(found.a90)}"
    return f"{text}, {a90_95} {detection_limit_text(found.a90_95)}" if upper else text


def _key(pod: Detectability) -> list[tuple[Line2D, str]]:
    _, a90, a90_95 = limit_names(pod)
    edge: dict[str, Any] = {"color": MUTED, "mec": MUTED, "mew": 1.2, "ms": 6.0}
    return [
        (Line2D([], [], marker="o", mfc=MUTED, lw=1, ls="-", **edge), a90),
        (Line2D([], [], marker="o", mfc=PAPER, lw=1, ls=(0, (4, 2)), **edge), f"{a90_95}, upper limit"),
        (Line2D([], [], marker=">", mfc=PAPER, ls="", **edge), "not reached"),
    ]


def _axes(axes: Axes, span: tuple[float, float], heading: str, rugs: int, level: float, most: int) -> None:
    value_axis(axes, heading, "")
    gap, height = _rug(rugs)
    middle, room = gap + rugs * height / 2, 1.8 * gap + rugs * height
    axes.set_ylim(-room, 1 + room)
    if rugs:
        axes.set_yticks([-middle, level, 1 + middle], ["missed", f"{level:g}", "hit"], minor=True, color=MUTED)
    else:
        axes.set_yticks([level], [f"{level:g}"], minor=True, color=MUTED)
    axes.set_xscale("log")
    axes.set_xlim(*span)
    ticks = log_ticks(*span, most)
    axes.set_xticks(*legible(axes, ticks, [_tick(area) for area in ticks]), linespacing=1.4)
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", which="minor", length=0)


def _rug(rugs: int) -> tuple[float, float]:
    """Return the gap between curves and rug, and the height of its rows."""
    return (0.09, 0.13) if rugs == 1 else (0.03, 0.05)


def _tick(area: float) -> str:
    return f"{area_text(area)}\n⌀ {figure_text(float(equivalent_diameter(area)))}"


def _draw(
    axes: Axes, items: Sequence[tuple[Series, Detection]], edge: float, few: bool = True, rug: bool = True
) -> None:
    """Draw curves, limits and rugs; what would lie at the same place at the right edge is put below each other.

    With more than a `few` curves without bands, and of the limits a90 only. Without a rug, a line at 0 or 1 stands for
    defects that were all missed or all hit, which no curve is fitted to.
    """
    axes.axhline(items[0][1].pod.probability, color=MUTED, lw=0.6, ls=":", zorder=1)
    arrows = 0
    gap, height = _rug(len(items))
    for number, (series, found) in enumerate(items):
        colour, line = series.look.colour, series.look.line
        curve = found.curve()
        if few:
            axes.fill_between(curve["area"], curve["low"], curve["high"], color=colour, alpha=0.12, lw=0, zorder=2)
        axes.plot(curve["area"], curve["pod"], color=colour, ls=line, lw=1.6, zorder=4)
        if not rug and found.hits.min() == found.hits.max():
            ends = [found.areas.min(), found.areas.max()]
            axes.plot(ends, [found.hits.mean()] * 2, color=colour, ls=line, lw=1.2, zorder=4, clip_on=False)
        for hit, base, up in ((True, 1 + gap, 1), (False, -gap, -1)) if rug else ():
            x = _strokes(found.areas[found.hits == hit])
            foot = base + up * number * height
            y = np.tile([foot, foot + up * 0.8 * height, math.nan], x.size)
            axes.plot(np.repeat(x, 3), y, color=colour, lw=1, alpha=0.8, zorder=3, solid_capstyle="butt")
        if few:
            arrows += _draw_limits(axes, series, found, edge, arrows)
        elif found.a90.area is not None:
            axes.plot([found.a90.area], [found.pod.probability], "o", mfc=colour, mec=PAPER, mew=0.5, ms=5, zorder=6)
        owned_by(axes, series.index, colour)


def _draw_limits(axes: Axes, series: Series, found: Detection, edge: float, arrows: int) -> bool:
    """Draw the two limits as verticals; return whether an arrow was needed."""
    colour = series.look.colour
    level = found.pod.probability
    marker: dict[str, Any] = {"marker": "o", "mec": colour, "mew": 1.2, "ms": 6.0, "zorder": 6, "ls": ""}
    a90, upper = found.a90, found.a90_95
    if upper.area is not None:
        axes.plot([upper.area] * 2, [0, level], color=colour, lw=1, ls=(0, (4, 2)), zorder=3)
        axes.plot([upper.area], [level], mfc=PAPER, **marker)
    if a90.area is not None:
        axes.plot([a90.area] * 2, [0, level], color=colour, lw=1, zorder=3)
        axes.plot([a90.area], [level], mfc=colour, **marker)
    if not unreached(upper):
        return False
    height = level - 0.07 * arrows
    if a90.area is not None:
        axes.plot([a90.area, edge], [height] * 2, color=colour, lw=1, ls=(0, (4, 2)), zorder=3)
    axes.plot([edge], [height], mfc=PAPER, clip_on=False, **{**marker, "marker": ">", "ms": 8.0})
    return True


def _strokes(areas: Floats) -> Floats:
    """Return the places of a rug: equal areas once, and not more of them than a reader can tell apart."""
    places: Floats = np.unique(areas)
    if places.size > _STROKES:
        x = np.log(places)
        step = np.ptp(x) / _STROKES
        places = np.exp(np.unique(np.round(x / step)) * step)
    return places
