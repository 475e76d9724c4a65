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
from hrbench.report.styles import Look
from hrbench.report.summary import MIN_COMPONENTS, Estimate

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "Bin",
    "Series",
    "draw_bins",
    "draw_curves",
    "log_ticks",
    "sheet",
    "value_axis",
]

Floats = npt.NDArray[np.float64]

# Each occurs nowhere else in a figure: the page replaces them by its own colours in light and dark mode.
INK, MUTED, GRID, PAPER = "#111213", "#616263", "#d9dadb", "#fefdfc"

_SETTINGS: dict[Any, Any] = {
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
_CHARACTERS = 118  # of a legend that fit into the width


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
        lines.append(f"n = {self.n:,}" if self.n else "none")
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


def draw_bins(panels: Sequence[tuple[str, Sequence[Bin], Sequence[Series]]], title: str, axis: str) -> Figure:
    """Draw value against size bin, one panel per (heading, bins, series); all panels show the same series.

    Whiskers are the confidence interval where there is one, else the spread over seeds (of an average: over
    categories, not drawn). A hollow marker stands for too few components for a number.
    """
    with sheet(panels[0][2], title, markers=True) as (figure, grid):
        for place, (heading, bins, series) in enumerate(panels):
            axes = figure.add_subplot(grid[place] if len(panels) > 1 else grid[:])
            value_axis(axes, heading, axis if place == 0 else "")
            axes.set_xlim(-0.5, len(bins) - 0.5)
            axes.set_xticks(range(len(bins)), [b.label for b in bins], linespacing=1.35)
            for text, b in zip(axes.get_xticklabels(), bins, strict=True):
                text.set_color(INK if b.enough else MUTED)
            step = min(0.07, 0.5 / max(1, len(series)))
            for number, item in enumerate(series):
                _draw_series(axes, item, step * (number - (len(series) - 1) / 2))
    return figure


def _draw_series(axes: Axes, series: Series, dodge: float) -> None:
    look = series.look
    x = [place + dodge for place in range(len(series.estimates))]
    axes.plot(x, [estimate.shown for estimate in series.estimates], color=look.colour, ls=look.line, lw=1.5, zorder=3)
    for place, estimate in zip(x, series.estimates, strict=True):
        if math.isnan(estimate.value):
            continue
        if estimate.few:
            axes.plot(
                [place], [estimate.value], look.marker, mfc=PAPER, mec=look.colour, mew=1.2, ms=6, alpha=0.6, zorder=4
            )
            continue
        low, high = (
            (estimate.low, estimate.high) if estimate.low == estimate.low else (estimate.minimum, estimate.maximum)
        )
        if high > low:
            axes.plot([place, place], [low, high], color=look.colour, lw=1, alpha=0.75, zorder=2)
        axes.plot([place], [estimate.value], look.marker, mfc=look.colour, mec=PAPER, mew=0.6, ms=6.5, zorder=4)


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
            axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
            axes.minorticks_off()
            if place == 0:
                _mark_limits(axes, protocol)
            for series, *pair in curves:
                look = series.look
                axes.plot(fpr, pair[place], color=look.colour, ls=look.line, lw=1.5, zorder=3)
    return figure


def _mark_limits(axes: Axes, protocol: Protocol) -> None:
    for limit in protocol.fpr_limits:
        main = limit == protocol.headline_fpr
        colour = INK if main else MUTED
        axes.axvline(limit, color=colour, lw=1.1 if main else 0.6, ls="-" if main else ":", zorder=1)
        axes.annotate(
            f"{100 * limit:g} %", (limit, 1), xytext=(0, 3), textcoords="offset points", ha="center",
            fontsize=7, fontweight="bold" if main else "normal", color=colour,
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
    with mpl.rc_context(_SETTINGS):
        # Names come from files; what cannot be printed cannot stand in an SVG file either.
        labels = [" " + printable(item.label) for item in series]
        entries = [*labels, *(" " + text for _, text in key)]
        columns = max(1, min(4, len(entries), _CHARACTERS // (max(map(len, entries), default=0) + 7)))
        rows = -(-(len(entries) + markers) // columns)
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
        if any(estimate.few for item in series for estimate in item.estimates):
            hollow = Line2D([], [], marker="o", ls="", mfc=PAPER, mec=MUTED, mew=1.2, ms=6)
            handles.append(hollow)
            labels.append(f" hollow: fewer than {MIN_COMPONENTS} defects, too few for a number")
        handles += [handle for handle, _ in key]
        labels += [" " + text for _, text in key]
        if labels:
            figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, handlelength=3.6)
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


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers inside an interval, at most so many: the ticks of a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [number for power in powers for step in steps if low <= (number := step * 10.0**power) <= high]
        if len(ticks) <= most:
            break
    return ticks or [math.sqrt(low * high)]
