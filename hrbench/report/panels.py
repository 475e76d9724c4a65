"""The pictures of a category as a figure: a line for each defect or good image, a column for each method."""

from __future__ import annotations

import logging
import textwrap

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from hrbench.errors import HrbenchError
from hrbench.report.configurations import printable
from hrbench.report.drawing import INK, MUTED, SETTINGS
from hrbench.report.picture_grid import OPACITY, PictureGrid, close_up, edges, panel_words
from hrbench.runs.picture_files import UNIT, Picture

__all__ = ["draw_panels"]

log = logging.getLogger("hrbench")

_MOST_LINES, _SIDE = 10, 1.75  # inches of a panel
_WIDTH, _SMALL = 22, 30  # letters of a line of a heading, and below a panel


def draw_panels(grid: PictureGrid, title: str) -> Figure | None:
    """Draw photograph and overlays of each line; None without any."""
    drawn = []
    for line in grid.lines:
        try:
            maps = [None if picture is None else picture.read_map() for picture in line.panels]
            drawn.append((line, (line.first.read_photo(), line.first.read_mask(), maps)))
        except HrbenchError as error:
            log.warning("%s; this picture is left out", error)
        if len(drawn) == _MOST_LINES:
            break
    if not drawn:
        return None
    names = ["Photograph", *(printable(column.row.configuration.short) for column in grid.columns)]
    with mpl.rc_context(SETTINGS):
        wide, tall = _SIDE * (len(names) + 0.6), (_SIDE + 0.15) * len(drawn) + 0.9
        figure = Figure(figsize=(wide, tall), layout="constrained")
        axes = figure.subplots(len(drawn), len(names), squeeze=False)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for row, (line, (photo, mask, maps)) in zip(axes, drawn, strict=True):
            area = f"\n{line.first.area:,} px" * bool(line.first.area)
            heading = "\n".join(textwrap.wrap(printable(line.heading), _WIDTH)[:4]) + area
            row[0].set_ylabel(heading, rotation=0, ha="right", va="center")
            _panel(row[0], line.first, photo, mask)
            for ax, column, picture, grey in zip(row[1:], grid.columns, line.panels, maps, strict=True):
                if picture is None:
                    ax.text(0.5, 0.5, "not kept", ha="center", va="center", color=MUTED, transform=ax.transAxes)
                    continue
                _panel(ax, line.first, photo, mask, grey, contour=column.pictures.threshold is not None)
                words = ", ".join(filter(None, panel_words(column, picture)))
                for together in (" × ", " %"):
                    words = words.replace(together, together.replace(" ", "\N{NO-BREAK SPACE}"))
                ax.set_xlabel("\n".join(textwrap.wrap(words, _SMALL)), fontsize=7, color=MUTED)
        for ax, name in zip(axes[0], names, strict=True):
            ax.set_title("\n".join(textwrap.wrap(name, _WIDTH)), loc="center", color=INK, pad=4)
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 2), mpl.colormaps["inferno"])
        bar = figure.colorbar(
            scale, ax=axes, orientation="horizontal", aspect=50, shrink=0.6, pad=0.01, ticks=[0, 1, 2]
        )
        bar.ax.set_xticklabels(["0: median of normal pixels", "1: threshold", "≥ 2"], fontsize=7)
        bar.outline.set_visible(False)
        if title:
            figure.suptitle(printable(title), x=0.008, ha="left", fontsize=10, fontweight="bold")
    return figure


def _panel(
    ax: Axes,
    picture: Picture,
    photo: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_] | None,
    grey: npt.NDArray[np.uint8] | None = None,
    *,
    contour: bool = False,
) -> None:
    """Draw the close-up of a photograph, with a map over it."""
    top, left, bottom, right = picture.window
    extent = (left, right, bottom, top)
    ax.imshow(photo, extent=extent, interpolation="nearest")
    if grey is not None:
        colours = mpl.colormaps["inferno"](np.linspace(0, 1, 256))
        colours[:, 3] = np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(OPACITY)), OPACITY)
        ax.imshow(grey, ListedColormap(colours), vmin=0, vmax=255, extent=extent, interpolation="nearest")
    if grey is not None and contour:
        _outline(ax, grey >= UNIT, picture, "white")
    if mask is not None:
        _outline(ax, mask, picture, "#40ff78")
    top, left, bottom, right = close_up(picture)
    ax.set(xlim=(left, right), ylim=(bottom, top))


def _outline(ax: Axes, mask: npt.NDArray[np.bool_], picture: Picture, colour: str) -> None:
    top, left, bottom, right = picture.window
    down, across = (bottom - top) / mask.shape[0], (right - left) / mask.shape[1]
    lines = [[(left + across * x, top + down * y), (left + across * u, top + down * v)] for x, y, u, v in edges(mask)]
    for drawn, width in (("#000000", 1.6), (colour, 0.8)):
        ax.add_collection(LineCollection(lines, colors=drawn, linewidths=width, capstyle="round"))
