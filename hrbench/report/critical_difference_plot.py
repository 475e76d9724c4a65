"""The critical-difference diagram: mean ranks on an axis, and bars that join what is not told apart."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hrbench.report.alarm_axis import heading_of
from hrbench.report.critical_difference import RankComparison, p_text
from hrbench.report.drawing import INK, MUTED, PAPER, Series, sheet
from hrbench.report.plot_marks import owned_by

__all__ = ["draw_ranking"]

_UNIT = 0.2  # inches of a line of the diagram
_TOP = 2.6  # lines above the axis
_NAME = 34  # letters


def draw_ranking(found: RankComparison, title: str) -> Figure:
    """Draw mean ranks, the best at the left; a bar joins rows that are not told apart (Demšar, JMLR 7, 2006)."""
    rows, test = found.rows, found.test
    half = (len(rows) + 1) // 2
    first = 1.2 + 0.5 * len(found.groups)  # lines from the axis to the first name
    every = [Series(row.configuration.short, row.configuration.number, row.configuration.look) for row in rows]
    step = 2.1 if any("\n" in heading_of(series, _NAME) for series in every) else 1.25
    depth = first + step * (half - 1) + 0.6
    with sheet([], title, markers=False, shape=(1, 1), height=_UNIT * (depth + _TOP) + 0.3) as (figure, grid):
        axes = figure.add_subplot(grid[0])
        axes.set_axis_off()
        axes.set_xlabel("mean rank")  # for readers of the page's plot
        axes.set_xlim(1, len(rows))
        axes.set_ylim(-depth, _TOP)
        said = f"Friedman {p_text(test.p)}; bars join rows that are not told apart ({100 * test.level:g} %)"
        axes.set_title(f"mean rank by {found.metric} over {test.data_sets} categories; {said}", pad=4)
        _axis(axes, len(rows))
        if test.differ:
            axes.plot([1, 1 + test.critical], [1.9] * 2, color=INK, lw=1.1, marker="|", ms=7, mew=1.1, clip_on=False)
            axes.annotate(
                f"critical difference {test.critical:.2f}", (1 + test.critical, 1.9), xytext=(6, 0),
                textcoords="offset points", va="center", color=INK,
            )  # fmt: skip
        room = 0.04 * (len(rows) - 1)
        for place, (series, rank) in enumerate(zip(every, found.ranks, strict=True)):
            left = place < half
            height = -(first + step * (place if left else len(rows) - 1 - place))
            _name(axes, series, rank, 1 - room if left else len(rows) + room, height, left)
            owned_by(axes, series.index, series.look.colour)
        for number, (low, high) in enumerate(found.groups):
            ends = [found.ranks[low] - room / 4, found.ranks[high] + room / 4]
            axes.plot(ends, [-0.55 - 0.5 * number] * 2, color=INK, lw=3.5, solid_capstyle="round", zorder=5)
    return figure


def _axis(axes: Axes, ends: int) -> None:
    axes.plot([1, ends], [0, 0], color=MUTED, lw=0.8, clip_on=False)
    step = 1 if ends <= 15 else 5
    for rank in range(1, ends + 1, step):
        axes.plot([rank] * 2, [0, 0.25], color=MUTED, lw=0.8, clip_on=False)
        axes.text(rank, 0.4, f"{rank}", ha="center", va="bottom", color=INK)


def _name(axes: Axes, series: Series, rank: float, end: float, height: float, left: bool) -> None:
    look = series.look
    axes.plot([rank, rank, end], [0, height, height], color=look.colour, lw=1.2, ls=look.line, clip_on=False)
    axes.plot([rank], [0], look.marker, mfc=look.colour, mec=PAPER, mew=0.6, ms=6.5, zorder=6, clip_on=False)
    axes.annotate(
        f"{heading_of(series, _NAME)}  {rank:.2f}" if left else f"{rank:.2f}  {heading_of(series, _NAME)}",
        (end, height), xytext=(-4 if left else 4, 0), textcoords="offset points",
        ha="right" if left else "left", va="center", annotation_clip=False,
    )  # fmt: skip
