"""The alarm scores of images and critical scores of defects that runs keep, and what follows from them at any budget.

An image alarms, and a defect is hit, if its score is above a limit: where at most m good images may alarm, that is the
(m + 1)-th largest alarm score of the good images. See :mod:`hrbench.metrics.alarms`. No evidence is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hrbench.metrics.alarms import FalseAlarms
from hrbench.metrics.detection import Detection, bootstrap_sizes, fit_detection
from hrbench.protocol import Detectability, Protocol
from hrbench.report.operating import allowed
from hrbench.report.summary import Leaderboard
from hrbench.runs.store import Run

__all__ = [
    "AllScores",
    "Band",
    "Scores",
    "accepted",
    "analyse",
    "limit_band",
    "limit_curve",
    "limits_at",
    "read_scores",
    "recalls",
    "running_median",
    "scores_of",
    "steps",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_STEPS = 60  # more steps of a curve than these are thinned
_FEWEST = 3  # alarms up to which curves go in any case, however few good images there are
_WINDOW, _SMALLEST_WINDOW = 0.3, 7  # of a running median: share of the points, and their number


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a run keeps of its test images and defects.

    Attributes
    ----------
    seed : int
    good : ndarray, (g,)
        Alarm scores of the good images; at least one.
    defective : ndarray, (d,)
        Alarm scores of the defective images.
    critical : ndarray, (K,)
        Critical scores of the defects.
    areas : ndarray of int, (K,)
        Their areas in pixels.
    intervals : dict of float to (float, float)
        Bootstrap interval of a90 by budget, where there is one; an infinite end is open.
    """

    seed: int
    good: Floats
    defective: Floats
    critical: Floats
    areas: Ints
    intervals: Mapping[float, tuple[float, float]] = dataclasses.field(default_factory=dict)


AllScores = Mapping[tuple[str, int], Sequence[Scores]]
"""Of a dataset, by category and number of the configuration: those of its seeds, the lowest first."""


def read_scores(board: Leaderboard) -> dict[tuple[str, int], list[Scores]]:
    """Read the scores of a dataset's runs; what an earlier version measured has none."""
    found: dict[tuple[str, int], list[Scores]] = {}
    for counted in sorted(board.runs, key=lambda run: run.seed):
        scores = scores_of(counted.run, board.protocol, counted.seed)
        if scores is not None:
            found.setdefault((counted.category, counted.configuration.number), []).append(scores)
    return found


def scores_of(run: Run, protocol: Protocol, seed: int = 0) -> Scores | None:
    """Read a run's scores; None if it has none, the protocol counts no alarms, or there is no good image or defect."""
    if not protocol.alarm.budgets:
        return None
    images, components = (table[table["protocol"] == protocol.name] for table in (run.images, run.components))
    if "alarm" not in images or "critical" not in components:
        return None
    good = images["label"] == 0
    if not good.any() or components.empty:
        return None
    return Scores(
        seed,
        images.loc[good, "alarm"].to_numpy(dtype=np.float64),
        images.loc[~good, "alarm"].to_numpy(dtype=np.float64),
        components["critical"].to_numpy(dtype=np.float64),
        components["area"].to_numpy(dtype=np.int64),
        _intervals(run, protocol),
    )


def _intervals(run: Run, protocol: Protocol) -> dict[float, tuple[float, float]]:
    table = run.records[(run.records["protocol"] == protocol.name) & (run.records["metric"] == "a90_matched")]
    table = table[table["ci_low"].notna() & table["ci_high"].notna()]
    ends = zip(table["fpr_limit"].round(9), table["ci_low"], table["ci_high"], strict=True)
    return {float(budget): (float(low), float(high)) for budget, low, high in ends}


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


def limits_at(scores: Scores, alarms: Ints | int) -> Floats:
    """Return the score above which at most so many good images alarm, for each number (M,) or for one."""
    falling = np.append(np.sort(scores.good)[::-1], -np.inf)
    return falling[alarms]


def _hits(scores: Scores, alarms: Ints) -> Bools:
    """Return which defects are hit if at most so many good images, (M,), may alarm: (M, K)."""
    result: Bools = scores.critical > limits_at(scores, alarms)[:, None]
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
    found: dict[int, tuple[float, float]] = {}
    for budget in budgets:
        if (ends := scores.intervals.get(round(budget, 9))) is not None:
            found.setdefault(allowed(scores.good.size, budget), ends)
    numbers = sorted({allowed(scores.good.size, budget) for budget in budgets})
    construction = "bootstrap"
    if not found:
        construction = "profile"
        found = {m: _profile(scores, m, pod) for m in numbers}
    low, high = np.array([found.get(m, (math.nan, math.nan)) for m in numbers], dtype=np.float64).T
    return Band(np.array(numbers), low, high, construction)


def _profile(scores: Scores, alarms: int, pod: Detectability) -> tuple[float, float]:
    return analyse(scores, alarms, pod).interval.get("profile", (math.nan, math.nan))


def analyse(scores: Scores, alarms: int, pod: Detectability) -> Detection:
    """Return the probability of detection if at most so many good images may alarm; without bootstrap."""
    limit = limits_at(scores, alarms)
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
