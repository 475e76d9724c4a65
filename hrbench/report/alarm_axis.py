"""An axis of false alarms per 100 good images, and how they are written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hrbench.metrics.alarms import FalseAlarms, allowed, drifted
from hrbench.metrics.detection import Detection
from hrbench.metrics.words import budget_text
from hrbench.protocol import Alarms, Protocol
from hrbench.report.configurations import printable
from hrbench.report.drawing import GRID, INK, MUTED, Series, label_above
from hrbench.report.marks import legible, log_ticks
from hrbench.report.scores import Scores

__all__ = [
    "ALARMS",
    "AlarmAxis",
    "Several",
    "Threshold",
    "columns_of",
    "heading_of",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Several = Sequence[tuple[Series, Sequence[Scores]]]
"""What is drawn: each configuration with the scores of its seeds."""

ALARMS = "false alarms per 100 good images"
_EDGE = 2.2  # from zero alarms to one: a ratio on a logarithmic axis


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
    drift : bool
        Whether the promise is broken beyond chance, see :func:`hrbench.metrics.alarms.drifted`.
    """

    score: float
    alarms: FalseAlarms
    recall: float
    promised: float | None = None
    drift: bool = False

    @staticmethod
    def of(found: Detection, protocol: Protocol, held_out: int) -> Threshold:
        """Return what holds at the threshold of an analysis, set on so many held-out images."""
        rule = protocol.threshold
        point = Threshold(found.threshold, found.alarms, float(found.hits.mean()) if found.hits.size else math.nan)
        if rule.rule != "conformal":
            return point
        drift = drifted(found.alarms, held_out, rule.alarms, protocol.bootstrap.level)
        return replace(point, promised=rule.alarms, drift=drift)

    @property
    def text(self) -> str:
        """What was promised and what came of it: ``promised 5 → achieved 12 per 100 (7 of 60)``."""
        rate = f"{100 * self.alarms.rate:.1f}".removesuffix(".0")
        achieved = f"{rate} per 100 ({self.alarms.count:,} of {self.alarms.good:,})"
        if self.promised is None:
            return f"{achieved} alarm"
        return f"promised {budget_text(self.promised)} → achieved {achieved}{': drift!' * self.drift}"


@dataclass(frozen=True)
class AlarmAxis:
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
    def of(scores: Sequence[Scores], last: int | None = None) -> AlarmAxis:
        """Return the axis for some scores, up to a `last` number of alarms or to all of them."""
        good = max(part.good.size for part in scores)
        return AlarmAxis(good, 100.0 * (good if last is None else max(last, 1.4)) / good)

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
        """Its lower end."""
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

    @staticmethod
    def key() -> tuple[Line2D, str]:
        """Return the entry of a legend for the zone of none."""
        return Line2D([], [], color=GRID, lw=7, alpha=0.45), "no good image alarms"

    def across(self, axes: Axes, rules: Alarms, most: int = 8, label: str = ALARMS, numbers: bool = True) -> None:
        """Make it the horizontal axis; mark the budgets."""
        axes.set_xscale("log")
        axes.set_xlim(self.low, self.high)
        axes.axvspan(self.low, self.one, color=GRID, alpha=0.45, lw=0, zorder=0)
        axes.set_xticks(*legible(axes, *self._ticks(most)))
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.set_xlabel(label)
        marked = []
        for budget in sorted(rules.budgets):
            main, place = budget == rules.headline, 100 * budget
            if allowed(self.good, budget) == 0:
                if not main:
                    continue
                place = self.none
            colour, width = (INK, 0.9) if main else (MUTED, 0.5)
            axes.axvline(place, color=colour, lw=width, ls="-" if main else ":", zorder=1)
            marked.append((place, budget_text(budget), main))
        if numbers and marked:
            places, texts, mains = zip(*marked, strict=True)
            label_above(axes, places, texts, mains.index(True) if True in mains else -1)

    def up(self, axes: Axes, rules: Alarms) -> None:
        """Make it the vertical axis; mark the headline."""
        axes.set_yscale("log")
        axes.set_ylim(self.low, self.high * 1.12)
        axes.axhspan(self.low, self.one, color=GRID, alpha=0.45, lw=0, zorder=0)
        axes.set_yticks(*legible(axes, *self._ticks(9), vertical=True))
        axes.tick_params(axis="y", which="minor", left=False, labelleft=False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        height = self.none if allowed(self.good, rules.headline) == 0 else 100 * rules.headline
        axes.axhline(height, color=INK, lw=0.9, zorder=1)


def heading_of(series: Series, width: int = 42) -> str:
    """Return the label of a configuration above a panel, on two lines at most."""
    label = textwrap.shorten(printable(series.label), 2 * width, placeholder=" …")
    return textwrap.fill(label, width, break_long_words=True)


def columns_of(panels: int) -> int:
    """Return how many panels stand side by side."""
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)
