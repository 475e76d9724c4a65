"""The alarm scores of images and critical scores of defects that runs keep, and what follows from them at any budget.

An image alarms, and a defect is hit, if its score is above a limit: where at most m good images may alarm, that is the
(m + 1)-th largest alarm score of the good images. See :mod:`hrbench.metrics.alarms`. No evidence is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hrbench._util.neighbours import larger_neighbours
from hrbench.metrics import DISJOINT, size_subsets
from hrbench.metrics.alarms import FalseAlarms, allowed, matched_limits
from hrbench.metrics.detection import Detection, bootstrap_sizes, fit_detection
from hrbench.protocol import Detectability, Protocol, SizeBins
from hrbench.report.summary import Leaderboard
from hrbench.runs.store import Run

__all__ = [
    "AllScores",
    "Band",
    "Interval",
    "Intervals",
    "Scores",
    "accepted",
    "analyse",
    "limit_band",
    "limit_curve",
    "quarters",
    "read_scores",
    "recalls",
    "running_median",
    "scores_of",
    "steps",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

BOX = ["top", "left", "bottom", "right"]
_STEPS = 60  # more steps of a curve than these are thinned
_FEWEST = 3  # alarms up to which curves go in any case, however few good images there are
_WINDOW, _SMALLEST_WINDOW = 0.3, 7  # of a running median: share of the points, and their number


class Intervals(NamedTuple):
    """Those of a90 and of recall at a budget, by bootstrap; an infinite end is open."""

    size: Interval | None
    recall: Interval | None


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a run keeps of its test images and defects.

    Attributes
    ----------
    seed : int
    good, defective : ndarray, (g,), (d,)
        Alarm scores of the good and of the defective images.
    critical : ndarray, (K,)
        Critical scores of the defects.
    areas, owner, quarter : ndarray of int, (K,)
        Of the defects: pixels, number of the defective image, and which quarter by area.
    images : tuple of str
        Ids of the good and then of the defective images.
    intervals : dict of float to Intervals
        By budget, where there is any.
    unmasked : int
        How many of the defective images have no mask.
    beside : ndarray of int, (K,)
        Number of a far larger defect beside each, see :func:`hrbench._util.neighbours.larger_neighbours`; empty where
        that is not known.
    """

    seed: int
    good: Floats
    defective: Floats
    critical: Floats
    areas: Ints
    owner: Ints
    quarter: Ints
    images: tuple[str, ...] = ()
    intervals: Mapping[float, Intervals] = dataclasses.field(default_factory=dict)
    unmasked: int = 0
    beside: Ints = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def splinters(self, budget: float) -> Bools:
        """Return which defects are hit together with a far larger one beside them, (K,)."""
        hit: Bools = self.critical > self.limit(budget)
        if not self.beside.size:
            return np.zeros_like(hit)
        both: Bools = hit & (self.beside >= 0) & hit[self.beside]
        return both

    def members(self, subset: str) -> Bools:
        """Return which defects are of a quarter by area, or of "all", (K,)."""
        every: Bools = np.ones(self.areas.size, bool)
        return every if subset == "all" else self.quarter == DISJOINT.index(subset)

    def allowed(self, budget: float) -> int:
        """Return how many of the good images may alarm."""
        return allowed(self.good.size, budget)

    def limit(self, budget: float) -> float:
        """Return the limit above which images alarm and defects are hit; infinite without good images."""
        return float(matched_limits(self.good, [budget])[0, 0])

    def intervals_at(self, budget: float) -> Intervals:
        """Return the intervals measured at a budget that lets as many good images alarm."""
        same = (ends for other, ends in self.intervals.items() if self.allowed(other) == self.allowed(budget))
        return next(same, Intervals(None, None))

    def ranked(self) -> Scores:
        """Return the same with whole numbers in place of scores, their joint dense ranks: only the order counts."""
        parts = self.good, self.defective, self.critical
        ranks = np.unique(np.concatenate(parts), return_inverse=True)[1].astype(np.float64)
        good, defective, critical = np.split(ranks, np.cumsum([part.size for part in parts])[:-1])
        return dataclasses.replace(self, good=good, defective=defective, critical=critical)


AllScores = Mapping[tuple[str, int], Sequence[Scores]]
"""Of a dataset, by category and number of the configuration: those of its seeds, the lowest first."""


def read_scores(board: Leaderboard) -> dict[tuple[str, int], list[Scores]]:
    """Read the scores of a dataset's runs, once for all reports; what an earlier version measured has none."""
    return board.once(_read)


def _read(board: Leaderboard) -> dict[tuple[str, int], list[Scores]]:
    found: dict[tuple[str, int], list[Scores]] = {}
    for counted in sorted(board.runs, key=lambda run: run.seed):
        scores = scores_of(counted.run, board.protocol, counted.seed)
        if scores is not None:
            found.setdefault((counted.category, counted.configuration.number), []).append(scores)
    return found


def scores_of(run: Run, protocol: Protocol, seed: int = 0) -> Scores | None:
    """Read a run's scores; None if it has none, or the protocol counts no alarms."""
    if not protocol.alarm.budgets:
        return None
    images, components = (table[table["protocol"] == protocol.name] for table in (run.images, run.components))
    if images.empty or "alarm" not in images or "critical" not in components:
        return None
    good, defective = (images[images["label"].eq(0) == sign] for sign in (True, False))
    owner = components["image"].map({name: number for number, name in enumerate(defective["image"])})
    if images["alarm"].isna().any() or components["critical"].isna().any() or owner.isna().any():
        return None
    areas = components["area"].to_numpy(dtype=np.int64)
    return Scores(
        seed,
        good["alarm"].to_numpy(dtype=np.float64),
        defective["alarm"].to_numpy(dtype=np.float64),
        components["critical"].to_numpy(dtype=np.float64),
        areas,
        owner.to_numpy(dtype=np.int64),
        quarters(areas, protocol.size_bins),
        (*good["image"], *defective["image"]),
        _intervals(run, protocol),
        run.about.dataset.test_unmasked,
        larger_neighbours(owner.tolist(), components[BOX].to_numpy(), areas)
        if set(BOX) <= set(components)
        else np.zeros(0, np.int64),
    )


def quarters(areas: Ints, bins: SizeBins) -> Ints:
    """Return which of the quarters by area each defect is of, (K,)."""
    subsets = size_subsets(areas, bins) if areas.size else dict.fromkeys(DISJOINT, np.zeros(0, bool))
    places: Ints = np.stack([subsets[name] for name in DISJOINT]).argmax(axis=0).astype(np.int64)
    return places


def _intervals(run: Run, protocol: Protocol) -> dict[float, Intervals]:
    names, numbers = ("protocol", "subset", "metric"), ("fpr_limit", "ci_low", "ci_high")
    columns = (
        run.records[name].astype(kind).tolist() for part, kind in ((names, str), (numbers, float)) for name in part
    )
    ends: dict[tuple[str, float], Interval] = {}
    for of, subset, metric, limit, low, high in zip(*columns, strict=True):
        if (of, subset) == (protocol.name, "all") and not (math.isnan(low) or math.isnan(high)):
            ends.setdefault((metric, round(limit, 9)), (low, high))
    found = {}
    for budget in protocol.alarm.budgets:
        of_budget = (ends.get((metric, round(budget, 9))) for metric in ("a90_matched", "recall_matched"))
        if any(both := Intervals(*of_budget)):
            found[budget] = both
    return found


def steps(good: int, budgets: Sequence[float]) -> Ints:
    """Return the numbers of alarms that a curve is drawn at: none, and all that a budget up to the largest one allows.

    If there are many, those between them at equal ratios, and those of the budgets. There are a few even where no
    budget allows one, but never so many that all good images may alarm.
    """
    last = max(allowed(good, max(budgets)), min(good - 1, _FEWEST))
    if last < _STEPS:
        return np.arange(last + 1)
    own = [allowed(good, budget) for budget in budgets]
    result: Ints = np.unique([0, *own, *np.geomspace(1, last, _STEPS).round().astype(np.int64)])
    return result


def _limits(scores: Scores, alarms: Ints | int) -> Floats:
    """Return the limit where at most so many good images may alarm, for each number (M,) or for one."""
    falling = np.append(np.sort(scores.good)[::-1], -np.inf)
    return falling[alarms]


def _hits(scores: Scores, alarms: Ints) -> Bools:
    """Return which defects are hit if at most so many good images, (M,), may alarm: (M, K)."""
    result: Bools = scores.critical > _limits(scores, alarms)[:, None]
    return result


def recalls(scores: Scores, alarms: Ints, members: Bools) -> Floats:
    """Return the share of the defects in `members`, (K,), that are hit if at most so many good images, (M,), may alarm.

    NaN without any.
    """
    chosen = _hits(scores, alarms)[:, members]
    return chosen.mean(axis=1) if members.any() else np.full(alarms.size, np.nan)


def limit_curve(scores: Scores, alarms: Ints, pod: Detectability) -> Floats:
    """Return the area that is found with the protocol's probability if at most so many good images, (M,), may alarm.

    Infinite where it is not reached among the defects seen, 0 where all of them are hit, NaN where all have one size.
    """
    hits = _hits(scores, alarms)
    sizes = bootstrap_sizes(np.log(scores.areas), hits, np.ones(hits.shape), pod.probability)
    areas: Floats = np.exp(np.minimum(sizes, 700))
    areas[areas > scores.areas.max()] = np.inf
    areas[hits.all(axis=1)] = 0
    if np.ptp(scores.areas) == 0:
        areas[hits.any(axis=1) & ~hits.all(axis=1)] = np.nan
    return areas


@dataclasses.dataclass(frozen=True, eq=False)
class Band:
    """The interval of a90 at the protocol's budgets.

    Attributes
    ----------
    alarms : ndarray of int, (B,)
        Good images that may alarm.
    low, high : ndarray, (B,)
        Areas in pixels; infinite where open, NaN where there is none.
    construction : {'bootstrap', 'profile'}
    """

    alarms: Ints
    low: Floats
    high: Floats
    construction: str


def limit_band(scores: Scores, budgets: Sequence[float], pod: Detectability) -> Band:
    """Return the interval of a90 at each budget: that of the bootstrap where the run has one, else the profile's."""
    found = {scores.allowed(budget): scores.intervals_at(budget).size for budget in budgets}
    construction = "bootstrap" if any(found.values()) else "profile"
    if construction == "profile":
        found = {alarms: analyse(scores, alarms, pod).interval.get("profile") for alarms in found}
    numbers = sorted(found)
    low, high = np.array([found[alarms] or (math.nan, math.nan) for alarms in numbers], dtype=np.float64).T
    return Band(np.array(numbers), low, high, construction)


def analyse(scores: Scores, alarms: int, pod: Detectability) -> Detection:
    """Return the probability of detection if at most so many good images may alarm; without bootstrap."""
    limit = _limits(scores, alarms)
    found = fit_detection(scores.areas, scores.critical > limit, pod)
    return dataclasses.replace(found, alarms=FalseAlarms(int((scores.good > limit).sum()), scores.good.size))


def accepted(scores: Scores) -> Ints:
    """Return how many good images alarm once a defect is hit, (K,): those whose alarm score is not below its own."""
    below = np.searchsorted(np.sort(scores.good), scores.critical, side="left")
    result: Ints = scores.good.size - below
    return result


def running_median(x: Floats, y: Floats, at: Floats) -> Floats:
    """Return the median of y over the points nearest in x to each of `at`: three in ten of them, at least seven.

    NaN where there are fewer than twice as many in all.
    """
    window = max(_SMALLEST_WINDOW, round(_WINDOW * x.size))
    if x.size < 2 * _SMALLEST_WINDOW:
        return np.full(at.size, np.nan)
    nearest = np.argsort(np.abs(x - at[:, None]), axis=1, kind="stable")[:, :window]
    result: Floats = np.median(y[nearest], axis=1)
    return result
