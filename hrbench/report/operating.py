"""What is found at a number of false alarms, for the answer that a report opens with and for the page's slider.

Of the scores only the order counts, so the page gets their ranks: all it needs to answer for every number of false
alarms.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hrbench.metrics import DISJOINT
from hrbench.metrics.alarms import FalseAlarms, allowed
from hrbench.metrics.detection import DetectionLimit, reliable_size
from hrbench.metrics.words import seen
from hrbench.protocol import Detectability, Protocol
from hrbench.report.scores import AllScores, Interval, Scores
from hrbench.report.summary import MIN_COMPONENTS, Leaderboard

__all__ = ["SUBSETS", "Point", "page_data", "point_at", "positions"]

SUBSETS = ("all", *DISJOINT)

_OFFERED = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.10, 0.15, 0.20, 0.30, 0.50)
"""Budgets that the slider stops at, where they differ in effect."""


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
    """What holds of a method in a category when at most a share of the good images may alarm.

    Attributes
    ----------
    budget : float
    limit : float
        Images alarm, and defects are hit, above this score.
    alarms : FalseAlarms
    images, called, right : int
        Defective images, those that alarm, and those that alarm with at least one defect hit.
    sizes : dict
        By subset: defects hit, and all.
    reliable : DetectionLimit
        The area found with the protocol's probability.
    unmasked : int
        Defective images whose masks are unknown.
    """

    budget: float
    limit: float
    alarms: FalseAlarms
    images: int
    called: int
    right: int
    sizes: Mapping[str, tuple[int, int]]
    reliable: DetectionLimit
    unmasked: int = 0

    @property
    def masked(self) -> int:
        """Defective images that have a mask."""
        return self.images - self.unmasked


@functools.lru_cache(maxsize=4096)
def point_at(scores: Scores, budget: float, pod: Detectability) -> Point:
    """Return what holds when at most this share of the good images may alarm."""
    limit = scores.limit(budget)
    hits = scores.critical > limit
    members = {name: scores.members(name) for name in SUBSETS}
    return Point(
        budget,
        limit,
        FalseAlarms(int((scores.good > limit).sum()), scores.good.size),
        images=scores.defective.size,
        called=int((scores.defective > limit).sum()),
        right=int(np.unique(scores.owner[hits & (scores.defective[scores.owner] > limit)]).size),
        sizes={name: (int(hits[chosen].sum()), int(chosen.sum())) for name, chosen in members.items()},
        reliable=reliable_size(scores.areas, hits, pod.probability),
        unmasked=scores.unmasked,
    )


def positions(scores: AllScores, protocol: Protocol) -> list[float]:
    """Return budgets that differ in effect: of equal ones the headline, zero, one of the protocol's, or the lowest."""
    goods = sorted({first.good.size for first, *_ in scores.values()})
    rules = protocol.alarm
    groups: dict[tuple[int, ...], list[float]] = {}
    for budget in sorted({*_OFFERED, *rules.budgets, rules.headline}):
        groups.setdefault(tuple(allowed(good, budget) for good in goods), []).append(budget)
    stops = []
    for group in groups.values():
        preferred = [b for wanted in ((rules.headline,), (0.0,), rules.budgets) for b in wanted if b in group]
        stops.append((preferred or group)[0])
    return stops


def page_data(scores: AllScores, board: Leaderboard) -> str:
    """Return what the page's script needs as JSON that may stand inside a script element."""
    protocol = board.protocol
    present = {number for _, number in scores}
    rows = []
    for row in board.rows:
        of = row.configuration
        if of.number in present:
            look = {"colour": of.look.colour, "dash": of.look.dasharray()}
            rows.append({"number": of.number, "name": of.short, "comparable": not row.foreign, **look})
    data = {
        "headline": protocol.alarm.headline,
        "probability": protocol.pod.probability,
        "level": protocol.bootstrap.level,
        "few": MIN_COMPONENTS,
        "positions": positions(scores, protocol),
        "rows": rows,
        "categories": [_category(scores, name) for name in board.categories],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _category(scores: AllScores, category: str) -> dict[str, Any]:
    """Return the methods of a category, and the layouts of defects that they share."""
    layouts: list[dict[str, Any]] = []
    methods = []
    for (name, number), (first, *_) in sorted(scores.items()):
        if name != category:
            continue
        layout = {key: getattr(first, key).tolist() for key in ("areas", "owner", "quarter")}
        if layout not in layouts:
            layouts.append(layout)
        ranks = first.ranked()
        parts = {"good": ranks.good, "bad": ranks.defective, "critical": ranks.critical}
        method: dict[str, Any] = {"number": number, "layout": layouts.index(layout)}
        method |= {key: part.astype(np.int64).tolist() for key, part in parts.items()}
        method |= {"masked": first.defective.size - first.unmasked} if first.unmasked else {}
        method["known"] = [
            [budget, _ends(seen(size, first.areas.tolist())), _ends(recall)]
            for budget, (size, recall) in first.intervals.items()
        ]
        methods.append(method)
    return {"name": category, "layouts": layouts, "methods": methods}


def _ends(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [end if math.isfinite(end) else None for end in interval]
