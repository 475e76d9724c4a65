"""Drawing with matplotlib, without pyplot: no global state, and the same input gives the same figure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from hrbench.protocol import Protocol
from hrbench.report.columns import size_text
from hrbench.report.configurations import printable
from hrbench.report.marks import CAPPED, apart, legible, points_across, whisker, width_of, wrapped, write_in
from hrbench.report.plot_marks import own_legend, owned_by
from hrbench.report.styles import Look
from hrbench.report.summary import MIN_COMPONENTS, Estimate

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "SETTINGS",
    "Bin",
    "Series",
    "draw_bins",
    "draw_curves",
    "label_above",
    "sheet",
    "value_axis",
    "whisker_ends",
    "whisker_key",
]

Floats = npt.NDArray[np.float64]

# Each occurs nowhere else in a figure: the page replaces them by its own colours in light and dark mode.
INK, MUTED, GRID, PAPER = "#111213", "#616263", "#d9dadb", "#fefdfc"

SETTINGS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.parse_math": False,  # a name may hold dollar signs
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}
_WIDTH = 9.4
_LEGEND = 72 * _WIDTH - 24.0  # points of it that a legend may take
_HANDLE = 50.0  # of them for a line, and the room around it
_FEW = f" hollow: fewer than {MIN_COMPONENTS} defects, too few for a number"


@dataclasses.dataclass(frozen=True)
class Bin:
    """A size bin as its axis label tells it.

    Attributes
    ----------
    name : str
    n : int
        Number of components.
    areas : tuple of float
        Smallest, median and largest area in it; empty where unknown.
    enough, categories : int
        In how many of the categories it holds enough components for a number.
    """

    name: str
    n: int
    areas: tuple[float, ...]
    enough: int
    categories: int

    @property
    def label(self) -> str:
        """Name, range and median of the areas (those of a fixed bin are in its name), and n."""
        lines = [size_text(self.name)]
        if self.areas and lines[0] == self.name:
            low, median, high = (_short(area) for area in self.areas)
            lines += [f"{low}–{high} px", f"median {median}"]
        lines.append(f"n = {self.n:,}" if self.n else "no defects")
        if self.n and not self.enough:
            lines.append("too few")
        elif self.n and self.enough < self.categories:
            lines.append(f"{self.enough} of {self.categories} cat.")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Series:
    """One configuration: its label, its number, how it looks, and an estimate per bin."""

    label: str
    index: int
    look: Look
    estimates: Sequence[Estimate] = ()


def _short(area: float) -> str:
    return f"{area:,.0f}" if area < 9999.5 else f"{area / 1000:,.0f}k"


def draw_bins(
    panels: Sequence[tuple[str, Sequence[Bin], Sequence[Series]]], title: str, axis: str, level: float
) -> Figure:
    """Draw value against size bin, one panel per (heading, bins, series); all panels show the same series.

    Whiskers are the confidence interval of a `level` where there is one, else the spread over seeds (of an average:
    over categories, not drawn). A hollow marker stands for too few components for a number.
    """
    every = [estimate for _, _, series in panels for item in series for estimate in item.estimates]
    with sheet(panels[0][2], title, markers=True, key=whisker_key(every, level)) as (figure, grid):
        for place, (heading, bins, series) in enumerate(panels):
            axes = figure.add_subplot(grid[place] if len(panels) > 1 else grid[:])
            value_axis(axes, heading, axis if place == 0 else "")
            axes.set_xlim(-0.5, len(bins) - 0.5)
            axes.set_xticks(range(len(bins)), [b.label for b in bins], linespacing=1.35)
            for text, b in zip(axes.get_xticklabels(), bins, strict=True):
                text.set_color(INK if b.enough else MUTED)
            for number, b in enumerate(bins):
                if not b.n:
                    write_in(axes, number, "no defects", MUTED)
            step = min(0.07, 0.5 / max(1, len(series)))
            for number, item in enumerate(series):
                _draw_series(axes, item, step * (number - (len(series) - 1) / 2))
                owned_by(axes, item.index, item.look.colour)
    return figure


def _draw_series(axes: Axes, series: Series, dodge: float) -> None:
    look = series.look
    x = [place + dodge for place in range(len(series.estimates))]
    shown = [estimate.shown for estimate in series.estimates]
    axes.plot(x, shown, color=look.colour, ls=look.line, lw=1.5, zorder=3, clip_on=False)
    for place, estimate in zip(x, series.estimates, strict=True):
        if math.isnan(estimate.value):
            continue
        low, high, _ = whisker_ends(estimate)
        if not estimate.few:
            whisker(axes, place, low, high, look.colour, alpha=0.8)
        face, edge, width = (PAPER, look.colour, 1.2) if estimate.few else (look.colour, PAPER, 0.6)
        axes.plot(
            [place], [estimate.value], look.marker, mfc=face, mec=edge, mew=width, ms=6, zorder=4, clip_on=False
        )  # fmt: skip


def whisker_ends(estimate: Estimate) -> tuple[float, float, str]:
    """Return the ends of a whisker, and what it is: the interval, else the range over the seeds, else ""."""
    if estimate.has_interval:
        return estimate.low, estimate.high, "interval"
    if estimate.maximum > estimate.minimum:
        return estimate.minimum, estimate.maximum, "range"
    return math.nan, math.nan, ""


def whisker_key(estimates: Sequence[Estimate], level: float) -> list[tuple[Line2D, str]]:
    """Return the entries of a legend that say what whiskers are, and that some values have none."""
    kinds = {whisker_ends(estimate)[2] for estimate in estimates if not math.isnan(estimate.shown)}
    words = {"interval": f"{100 * level:g} % interval", "range": "range over the seeds"}
    key = [
        (Line2D([], [], color=MUTED, ls="", marker=CAPPED, mfc="none", ms=11, mew=1.1), words[kind])
        for kind in words
        if kind in kinds
    ]
    return [*key, (Line2D([], [], ls=""), "without whiskers: no interval")] if "" in kinds else key


def draw_curves(fpr: Floats, curves: Sequence[tuple[Series, Floats, Floats]], protocol: Protocol, title: str) -> Figure:
    """Draw PRO and ROC over a logarithmic FPR axis for (series, PRO, ROC); mark the integration limits."""
    headings = ("PRO: share of each defect found, mean over defects", "ROC: share of all defect pixels found")
    with sheet([series for series, _, _ in curves], title, markers=False) as (figure, grid):
        for place, heading in enumerate(headings):
            axes = figure.add_subplot(grid[place])
            value_axis(axes, heading, "share found" if place == 0 else "", pad=16)
            axes.set_xscale("log")
            axes.set_xlim(fpr[0], 1)
            axes.set_xlabel("false-positive rate of normal pixels")
            ticks = 10.0 ** np.arange(round(math.log10(fpr[0])), 1)
            axes.set_xticks(*legible(axes, ticks.tolist(), [f"{100 * tick:g} %" for tick in ticks]))
            axes.tick_params(axis="x", pad=7)  # below the 0.0 of the other axis
            axes.minorticks_off()
            if place == 0:
                _mark_limits(axes, protocol)
            for series, *pair in curves:
                look = series.look
                axes.plot(fpr, pair[place], color=look.colour, ls=look.line, lw=1.5, zorder=3, clip_on=False)
                owned_by(axes, series.index, look.colour)
    return figure


def _mark_limits(axes: Axes, protocol: Protocol) -> None:
    limits = sorted(protocol.fpr_limits)
    label_above(axes, limits, [f"{100 * limit:g} %" for limit in limits], limits.index(protocol.headline_fpr))
    for limit in limits:
        main = limit == protocol.headline_fpr
        colour, width = (INK, 1.1) if main else (MUTED, 0.6)
        axes.axvline(limit, color=colour, lw=width, ls="-" if main else ":", zorder=1)


def label_above(axes: Axes, places: Sequence[float], texts: Sequence[str], main: int) -> None:
    """Write what verticals at ascending places stand for above the axes, the `main` one bold; none into another."""
    widths = [width_of(text, 7, number == main) for number, text in enumerate(texts)]
    where = points_across(axes, places).tolist()
    for number, (place, text, moved) in enumerate(zip(places, texts, apart(where, widths), strict=True)):
        axes.annotate(
            text, (place, 1), xycoords=("data", "axes fraction"), xytext=(moved - where[number], 3),
            textcoords="offset points", ha="center", fontsize=7, color=INK if number == main else MUTED,
            fontweight="bold" if number == main else "normal",
        )  # fmt: skip


@contextmanager
def sheet(
    series: Sequence[Series],
    title: str,
    markers: bool,
    *,
    lines: bool = True,
    shape: tuple[int, int] = (1, 2),
    height: float = 3.3,
    key: Sequence[tuple[Line2D, str]] = (),
) -> Iterator[tuple[Figure, GridSpec]]:
    """Yield a figure with room for panels, and put title and legend on it afterwards.

    Parameters
    ----------
    series : sequence of Series
        Entries of the legend.
    title : str
    markers : bool
        Whether the legend shows the series' markers.
    lines : bool
        Whether it shows their lines.
    shape : tuple of int
        Rows and columns of panels.
    height : float
        Of all panels together, in inches.
    key : sequence of (Line2D, str)
        Further entries of the legend.
    """
    with mpl.rc_context(SETTINGS):
        # Names come from files; what cannot be printed cannot stand in an SVG file either.
        labels = [" " + printable(item.label) for item in series]
        entries = [*labels, *(" " + text for _, text in key)]
        if few := any(estimate.few for item in series for estimate in item.estimates):
            entries.append(_FEW)
        columns = max(1, min(4, len(entries), int(_LEGEND / (_HANDLE + max(map(width_of, entries), default=1)))))
        rows = -(-sum(1 + wrapped(entry, _LEGEND - _HANDLE).count("\n") for entry in entries) // columns)
        figure = Figure(
            figsize=(_WIDTH, height + 0.2 * rows),
            layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.05),
        )
        yield figure, GridSpec(*shape, figure)
        handles = []
        for item in series:
            look = item.look
            handles.append(
                Line2D(
                    [],
                    [],
                    color=look.colour,
                    marker=look.marker if markers else "",
                    ls=look.line if lines else "",
                    lw=1.5,
                    mec=PAPER,
                    mew=0.6,
                )
            )
        if few:
            hollow = Line2D([], [], marker="o", ls="", mfc=PAPER, mec=MUTED, mew=1.2, ms=6)
            handles.append(hollow)
            labels.append(_FEW)
        handles += [handle for handle, _ in key]
        labels += [" " + text for _, text in key]
        labels = [wrapped(label, _LEGEND - _HANDLE) for label in labels]
        if labels:
            legend = figure.legend(
                handles, labels, loc="outside lower left", ncols=columns, frameon=False, handlelength=3.6
            )
            own_legend(legend, [item.index for item in series])
        if title:
            figure.suptitle(printable(title), x=0.008, ha="left", fontsize=10, fontweight="bold")


def value_axis(axes: Axes, heading: str, label: str, pad: float = 8) -> None:
    """Give `axes` a heading and a vertical axis from 0 to 1."""
    axes.set_title(heading, pad=pad)
    axes.set_ylim(0, 1)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{value:.1f}" for value in np.linspace(0, 1, 6)])
    axes.set_ylabel(label)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
