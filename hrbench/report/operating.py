"""What is found at a number of false alarms, for the answer that a report opens with and for the page's slider.

An image alarms, and a defect is hit, if its score lies above a limit that the good test images set. Only the order of
scores counts, so they are kept as ranks: that is all the page needs to answer for every number of false alarms.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hrbench.metrics import DISJOINT, size_subsets
from hrbench.metrics.alarms import FalseAlarms, matched_limits
from hrbench.metrics.detection import DetectionLimit, reliable_size
from hrbench.protocol import Detectability, Protocol
from hrbench.report.configurations import CountedRun
from hrbench.report.drawing import style
from hrbench.report.summary import MIN_COMPONENTS, Leaderboard
from hrbench.runs.store import Run

__all__ = [
    "SUBSETS",
    "Interval",
    "Point",
    "Ranked",
    "Ranks",
    "allowed",
    "interval_at",
    "page_data",
    "point_at",
    "positions",
    "rank_scores",
]

Ints = npt.NDArray[np.int64]
Interval = tuple[float, float]
SUBSETS = ("all", *DISJOINT)

_OFFERED = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.10, 0.15, 0.20, 0.30, 0.50)
"""Budgets that the slider stops at, where they differ in effect."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """The scores of a run's test images and defects, as their joint dense ranks.

    Attributes
    ----------
    seed : int
    good, bad : ndarray of int, (G,), (B,)
        Alarm scores of the good and of the defective images.
    critical : ndarray of int, (K,)
        Critical scores of the defects.
    areas, owner, quarter : ndarray of int, (K,)
        Of the defects: pixels, number of the defective image, and which quarter by area.
    pictures : dict
        By id of an image: label, alarm score, critical scores of its defects.
    intervals : dict
        By budget: those of a90 and of recall, None where there is none.
    """

    seed: int
    good: Ints
    bad: Ints
    critical: Ints
    areas: Ints
    owner: Ints
    quarter: Ints
    pictures: Mapping[str, tuple[int, int, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    intervals: Mapping[float, tuple[Interval | None, Interval | None]] = dataclasses.field(default_factory=dict)


Ranked = Mapping[tuple[str, int], Ranks]
"""Of a dataset, by category and number of the configuration."""


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """What holds of a method in a category when at most a share of the good images may alarm.

    Attributes
    ----------
    budget : float
    limit : float
        Images alarm, and defects are hit, above this rank.
    alarms : FalseAlarms
    images, called, right : int
        Defective images, those that alarm, and those that alarm with at least one defect hit.
    sizes : dict
        By subset: defects hit, and all.
    reliable : DetectionLimit
        The area found with the protocol's probability.
    """

    budget: float
    limit: float
    alarms: FalseAlarms
    images: int
    called: int
    right: int
    sizes: Mapping[str, tuple[int, int]]
    reliable: DetectionLimit


def rank_scores(board: Leaderboard) -> dict[tuple[str, int], Ranks]:
    """Return the ranks of the lowest seed of each configuration in each category, where the run recorded its scores."""
    ranked: dict[tuple[str, int], Ranks] = {}
    if not board.protocol.alarm.budgets:
        return ranked
    for counted in sorted(board.runs, key=lambda run: run.seed):
        key = (counted.category, counted.configuration.number)
        if key not in ranked and (ranks := _ranks(counted, board.protocol)) is not None:
            ranked[key] = ranks
    return ranked


def _ranks(counted: CountedRun, protocol: Protocol) -> Ranks | None:
    run = counted.run
    images, components = (table[table["protocol"] == protocol.name] for table in (run.images, run.components))
    if images.empty or "alarm" not in images or "critical" not in components:
        return None
    bad = images[images["label"] != 0]
    owner = components["image"].map({name: number for number, name in enumerate(bad["image"])})
    if images["alarm"].isna().any() or components["critical"].isna().any() or owner.isna().any():
        return None
    parts = (images.loc[images["label"] == 0, "alarm"], bad["alarm"], components["critical"])
    joint = np.concatenate([part.to_numpy(dtype=np.float64) for part in parts])
    ranks = np.unique(joint, return_inverse=True)[1].astype(np.int64)
    good, alarms, critical = np.split(ranks, np.cumsum([len(part) for part in parts])[:-1])
    areas = components["area"].to_numpy(dtype=np.int64)
    subsets = size_subsets(areas, protocol.size_bins)
    quarter = np.array([subsets[name] for name in DISJOINT]).reshape(len(DISJOINT), areas.size).argmax(axis=0)
    owners = owner.to_numpy(dtype=np.int64)
    shown = {
        name: (0, int(rank), ()) for name, rank in zip(images.loc[images["label"] == 0, "image"], good, strict=True)
    }
    return Ranks(
        counted.seed,
        good,
        alarms,
        critical,
        areas,
        owners,
        quarter.astype(np.int64),
        {
            **shown,
            **{
                name: (1, int(alarms[number]), tuple(critical[owners == number].tolist()))
                for number, name in enumerate(bad["image"])
            },
        },
        _intervals(run, protocol),
    )


def _intervals(run: Run, protocol: Protocol) -> dict[float, tuple[Interval | None, Interval | None]]:
    """Return the intervals of a90 and of recall that were measured, by budget."""
    records = run.records
    records = records[(records["protocol"] == protocol.name) & (records["subset"] == "all")]
    found = {}
    for budget in protocol.alarm.budgets:
        at = records[np.isclose(records["fpr_limit"].astype(float), budget, rtol=0, atol=1e-9)]
        size, recall = (_interval(at[at["metric"] == metric]) for metric in ("a90_matched", "recall_matched"))
        found[budget] = (size, recall)
    return found


def _interval(rows: pd.DataFrame) -> Interval | None:
    if rows.empty:
        return None
    low, high = (float(rows[end].iloc[0]) for end in ("ci_low", "ci_high"))
    return None if math.isnan(low) or math.isnan(high) else (low, high)


def allowed(good: int, budget: float) -> int:
    """Return how many of the good images may alarm."""
    return math.floor(budget * good + 1e-9)


@functools.lru_cache(maxsize=4096)
def point_at(ranks: Ranks, budget: float, pod: Detectability) -> Point:
    """Return what holds when at most this share of the good images may alarm."""
    limit = float(matched_limits(ranks.good.astype(np.float64), [budget])[0, 0])
    hits = ranks.critical > limit
    members = {"all": np.ones(hits.size, bool)}
    members |= {name: ranks.quarter == number for number, name in enumerate(DISJOINT)}
    return Point(
        budget,
        limit,
        FalseAlarms(int((ranks.good > limit).sum()), ranks.good.size),
        images=ranks.bad.size,
        called=int((ranks.bad > limit).sum()),
        right=int(np.unique(ranks.owner[hits]).size),
        sizes={name: (int(hits[member].sum()), int(member.sum())) for name, member in members.items()},
        reliable=reliable_size(ranks.areas, hits, pod.probability),
    )


def interval_at(ranks: Ranks, budget: float) -> tuple[Interval | None, Interval | None]:
    """Return the intervals of a90 and of recall, measured at a budget that lets as many good images alarm."""
    good = ranks.good.size
    same = (pair for other, pair in ranks.intervals.items() if allowed(good, other) == allowed(good, budget))
    return next(same, (None, None))


def positions(ranked: Ranked, protocol: Protocol) -> list[float]:
    """Return budgets that differ in effect: of equal ones the headline, zero, one of the protocol's, or the lowest."""
    goods = sorted({ranks.good.size for ranks in ranked.values()})
    rules = protocol.alarm
    groups: dict[tuple[int, ...], list[float]] = {}
    for budget in sorted({*_OFFERED, *rules.budgets, rules.headline}):
        groups.setdefault(tuple(allowed(good, budget) for good in goods), []).append(budget)
    stops = []
    for group in groups.values():
        preferred = [b for wanted in ((rules.headline,), (0.0,), rules.budgets) for b in wanted if b in group]
        stops.append((preferred or group)[0])
    return stops


def page_data(ranked: Ranked, board: Leaderboard) -> str:
    """Return what the page's script needs as JSON that may stand inside a script element."""
    protocol = board.protocol
    present = {number for _, number in ranked}
    rows = []
    for row in board.rows:
        of = row.configuration
        if of.number in present:
            colour, _, line = style(of.number)
            dash = "" if isinstance(line, str) else " ".join(f"{1.6 * part:g}" for part in line[1])
            rows.append(
                {"number": of.number, "name": of.short, "comparable": not row.foreign, "colour": colour, "dash": dash}
            )
    data = {
        "headline": protocol.alarm.headline,
        "probability": protocol.pod.probability,
        "level": protocol.bootstrap.level,
        "few": MIN_COMPONENTS,
        "positions": positions(ranked, protocol),
        "rows": rows,
        "categories": [_category(ranked, name) for name in board.categories],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _category(ranked: Ranked, category: str) -> dict[str, Any]:
    """Return the methods of a category, and the layouts of defects that they share."""
    layouts: list[dict[str, Any]] = []
    methods = []
    for (name, number), ranks in sorted(ranked.items()):
        if name != category:
            continue
        layout = {key: getattr(ranks, key).tolist() for key in ("areas", "owner", "quarter")}
        if layout not in layouts:
            layouts.append(layout)
        method: dict[str, Any] = {"number": number, "layout": layouts.index(layout)}
        method |= {key: getattr(ranks, key).tolist() for key in ("good", "bad", "critical")}
        method["known"] = [[budget, *map(_ends, pair)] for budget, pair in ranks.intervals.items() if any(pair)]
        methods.append(method)
    return {"name": category, "layouts": layouts, "methods": methods}


def _ends(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [end if math.isfinite(end) else None for end in interval]
