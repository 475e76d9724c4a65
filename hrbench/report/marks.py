"""Marks that plots share: whiskers, what runs beyond an axis, words where nothing is, labels that do not collide."""

from __future__ import annotations

import functools
import itertools
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.path import Path

__all__ = [
    "CAPPED",
    "WHISKER",
    "apart",
    "area_text",
    "breadth",
    "legible",
    "log_ticks",
    "points_across",
    "whisker",
    "width_of",
    "wrapped",
    "write_in",
]

Floats = npt.NDArray[np.float64]

WHISKER = "whisker"
"""The ``gid`` of whiskers, by which other code finds them."""

CAPPED = Path([(-0.3, 1), (0.3, 1), (0, 1), (0, -1), (-0.3, -1), (0.3, -1)], [1, 2] * 3)
"""A whisker as the marker of a legend."""

_CAP = 8.5  # points: wider than the markers, so that an interval shorter than one is still seen
_GAP = 3.0  # points between labels
_STEPS: tuple[tuple[float, ...], ...] = (
    (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
)  # fmt: skip


def whisker(
    axes: Axes, at: float, low: float, high: float, colour: str, *, across: bool = False, alpha: float = 1.0
) -> None:
    """Draw a whisker with caps, up or `across`; an arrow stands where it runs beyond the axis, whose limits are set.

    Parameters
    ----------
    axes : Axes
    at : float
        Its place on the other axis.
    low, high : float
        Its ends; nothing is drawn unless they differ.
    colour : str
    across : bool
        Whether it is horizontal.
    alpha : float
    """
    if not high > low:
        return
    ends = axes.get_xlim() if across else axes.get_ylim()
    inside = [min(max(end, min(ends)), max(ends)) for end in (low, high)]
    style: dict[str, Any] = {"color": colour, "alpha": alpha, "zorder": 3.5, "clip_on": False, "gid": WHISKER}
    places = (inside, [at] * 2) if across else ([at] * 2, inside)
    shown = [number for number, end in enumerate((low, high)) if end == inside[number]]
    axes.plot(*places, lw=1.1, marker="|" if across else "_", ms=_CAP, mew=1.1, markevery=shown, **style)
    for number, arrow in enumerate("<>" if across else "v^"):
        if number not in shown:
            place = [[values[number]] for values in places]
            axes.plot(*place, ls="", marker=arrow, ms=4.5, mew=0, **style)


def write_in(axes: Axes, place: float, text: str, colour: str) -> None:
    """Write words upwards into the room of a place on the horizontal axis that nothing is drawn in."""
    axes.text(
        place, 0.5, text, rotation=90, ha="center", va="center", color=colour, transform=axes.get_xaxis_transform()
    )


@functools.lru_cache(maxsize=4096)
def width_of(text: str, size: float = 8.5, bold: bool = False) -> float:
    """Return the width of a text's longest line, in points."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")))
    font.set_size(size, 72)
    widths = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks is a box, which has a width
        for line in text.split("\n"):
            font.set_text(line)
            widths.append(font.get_width_height()[0] / 64)
    return float(max(widths))


def wrapped(text: str, width: float) -> str:
    """Break a text of one line into lines of at most so many points."""
    lines, letters = text, len(text)
    while (now := width_of(lines)) > width and letters > 8:
        letters = min(letters - 2, int(letters * width / now) + 2)
        lines = textwrap.fill(text, letters, subsequent_indent="   ")
    return lines


def breadth(axes: Axes) -> tuple[float, float]:
    """Return width and height of the axes in points, before the layout: a little more than is left by it."""
    scale = 72 / axes.figure.dpi
    return scale * axes.bbox.width, scale * axes.bbox.height


def points_across(axes: Axes, places: Sequence[float], vertical: bool = False) -> Floats:
    """Return where values lie along an axis whose limits and scale are set, in points."""
    axis, ends, length = (
        (axes.yaxis, axes.get_ylim(), breadth(axes)[1]) if vertical else (axes.xaxis, axes.get_xlim(), breadth(axes)[0])
    )
    to = axis.get_transform().transform
    low, high = to(np.array(ends, dtype=float))
    share: Floats = (to(np.array(places, dtype=float)) - low) / (high - low)
    return share * length


def apart(places: Sequence[float], widths: Sequence[float], gap: float = _GAP) -> list[float]:
    """Move labels as little as it takes for them not to overlap: least squares, in the order of their places.

    Parameters
    ----------
    places, widths : sequence of float
        Middles, ascending, and widths.
    gap : float
        Between two labels.

    Returns
    -------
    list of float
        Middles.
    """
    # Places less the room before them must not fall: isotonic regression by pooling (Ayer et al., 1955).
    room = np.cumsum([0.0, *((a + b) / 2 + gap for a, b in itertools.pairwise(widths))])[: len(widths)]
    pools: list[list[float]] = []
    for value in np.asarray(places, dtype=float) - room:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [float(mean + before) for mean, before in zip((np.mean(p) for p in pools for _ in p), room, strict=True)]


def legible(
    axes: Axes, places: Sequence[float], texts: Sequence[str], vertical: bool = False
) -> tuple[list[float], list[str]]:
    """Return those of an axis's ticks whose labels do not run into the one before; the first is kept."""
    kept: list[int] = []
    end = -math.inf
    where = points_across(axes, places, vertical)
    for number in np.argsort(where, kind="stable"):
        half = (10.0 if vertical else width_of(texts[number])) / 2
        if where[number] - half >= end:
            kept.append(int(number))
            end = float(where[number]) + half + (0 if vertical else _GAP)
    return [places[number] for number in kept], [texts[number] for number in kept]


def area_text(area: float) -> str:
    """Return an area at a tick, which is a round number."""
    return f"{area:,.0f}" if area >= 10 else f"{area:.3g}"


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers inside an interval for a logarithmic axis: at most so many, three at least if it can be."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for steps in _STEPS:
        ticks = [number for power in powers for step in steps if low <= (number := step * 10.0**power) <= high]
        if len(ticks) <= most and len(ticks) > len(best):
            best = ticks
        if len(best) >= 3:
            break
    return best or [math.sqrt(low * high)]
