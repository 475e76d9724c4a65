"""Which defects and good images a run keeps pictures of.

Most follow from the masks alone, so that runs of all methods keep the same: two defects of each quarter by area, and
two good images. Beside these a run keeps its own smallest defect found, its largest missed, its worst false alarm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hrbench.evidence import Evidence
from hrbench.evidence.histograms import key_scores, ranked
from hrbench.metrics import DISJOINT, size_subsets
from hrbench.metrics.alarms import alarm_scores, critical_scores, matched_point
from hrbench.protocol import Protocol

__all__ = ["ALARM", "FOUND", "GOOD", "HIGHEST", "LOWEST", "MISSED", "Choice", "Scale", "choose", "scale_of"]

FOUND, MISSED, ALARM = "smallest found", "largest missed", "worst false alarm"
GOOD = "good"
LOWEST, HIGHEST = "lowest score", "highest score"  # of defective images without masks
_PER_BIN, _GOOD, _UNMASKED = 2, 2, 3
_REACHED = 0.9995  # share of the normal pixels below what stands in for a threshold


@dataclass(frozen=True)
class Choice:
    """What one picture shows.

    Attributes
    ----------
    image : str
        Id of the sample.
    kinds : tuple of str
        Why it was chosen: a quarter by area, :data:`FOUND`, :data:`MISSED`, :data:`ALARM`, :data:`GOOD`, ...
    defect : tuple of float or None
        Its box, (top, left, bottom, right) in shares of the image's sides; None where a whole image was chosen.
    area : int
        Of the defect, in the pixels in which it was measured; 0 without one.
    score : float
        Critical score of the defect, alarm score of an image.
    reached : float or None
        Share of the defect's pixels at or above the threshold; None without either.
    """

    image: str
    kinds: tuple[str, ...]
    defect: tuple[float, float, float, float] | None
    area: int
    score: float
    reached: float | None = None


@dataclass(frozen=True)
class Scale:
    """How scores become grey.

    Attributes
    ----------
    low : float
        The median of all normal pixels; of all pixels where none is known to be normal.
    unit : float
        What is as far above it as the threshold: the threshold itself, or what 1 in 2000 normal pixels reach.
    threshold : float or None
        The matched one at `budget`: a pixel is predicted defective at or above it. None where there is none.
    budget : float
        Share of the good images that may alarm.
    """

    low: float
    unit: float
    threshold: float | None
    budget: float


def scale_of(evidence: Evidence, protocol: Protocol) -> Scale:
    """Return the scale of a run's maps."""
    parts = evidence.normals if evidence.normal_pixels else evidence.pixels
    last = sum(part.total for part in parts) - 1
    low, high = key_scores(ranked(parts, [last // 2, int(_REACHED * last)]), evidence.shift).astype(float).tolist()
    budget = protocol.alarm.headline
    point = matched_point(evidence, alarm_scores(evidence, protocol.alarm.pixels), budget)
    threshold = point.threshold if point and np.isfinite(point.threshold) else None
    unit = high if threshold is None else threshold
    return Scale(low if low < unit else unit - 1.0, unit, threshold, budget)


def choose(evidence: Evidence, protocol: Protocol, threshold: float | None) -> list[Choice]:
    """Return what to keep, each defect and image once, in the order in which a report shows it."""
    images, components = evidence.images, evidence.components
    alarms = alarm_scores(evidence, protocol.alarm.pixels)
    sizes = images.set_index("id")[["height", "width"]].loc[components["image"]].to_numpy(dtype=float)
    boxes = components[["top", "left", "bottom", "right"]].to_numpy(dtype=float) / np.tile(sizes, 2)
    areas, owners = components["area"].to_numpy(dtype=np.int64), components["image"].tolist()
    critical = critical_scores(evidence, protocol.pod.share)
    ids, labels = images["id"].tolist(), images["label"].to_numpy()

    def of_defect(kind: str, number: int) -> Choice:
        top, left, bottom, right = boxes[number].tolist()
        box, area = (top, left, bottom, right), int(areas[number])
        return Choice(owners[number], (kind,), box, area, float(critical[number]), reached(number))

    def reached(number: int) -> float | None:
        if threshold is None:
            return None
        start, ranks = evidence.component_starts[number], evidence.ranks
        keys = ranks.keys[ranks.place[start : start + areas[number]]]
        return float(np.mean(key_scores(keys, evidence.shift) >= threshold))

    def of_image(kind: str, number: int) -> Choice:
        return Choice(ids[number], (kind,), None, 0, float(alarms[number]))

    chosen: list[Choice] = []
    if areas.size:
        for name in DISJOINT:
            members = np.flatnonzero(size_subsets(areas, protocol.size_bins)[name]).tolist()
            picked = _drawn(members, lambda k: f"{owners[k]} {boxes[k].round(6).tolist()}")[:_PER_BIN]
            chosen += [of_defect(name, number) for number in picked]
        if threshold is not None:
            hit = critical >= threshold
            found = sorted(np.flatnonzero(hit).tolist(), key=lambda k: (areas[k], -critical[k]))[:1]
            missed = sorted(np.flatnonzero(~hit).tolist(), key=lambda k: (-areas[k], critical[k]))[:1]
            chosen += [of_defect(kind, k) for kind, some in ((FOUND, found), (MISSED, missed)) for k in some]
    else:
        rising = sorted(np.flatnonzero(labels == 1).tolist(), key=lambda k: (alarms[k], ids[k]))
        chosen += [of_image(LOWEST, k) for k in rising[:_UNMASKED]]
        chosen += [of_image(HIGHEST, k) for k in rising[_UNMASKED:][-1:]]
    good = np.flatnonzero(labels == 0).tolist()
    chosen += [of_image(ALARM, k) for k in sorted(good, key=lambda k: (-alarms[k], ids[k]))[:1]]
    chosen += [of_image(GOOD, k) for k in _drawn(good, lambda k: ids[k])[:_GOOD]]
    return _merged(chosen)


def _drawn(numbers: Sequence[int], name: Callable[[int], str]) -> list[int]:
    """Return numbers in an order that looks random and depends on their names only."""
    return sorted(numbers, key=lambda number: hashlib.sha256(name(number).encode()).digest())


def _merged(choices: Iterable[Choice]) -> list[Choice]:
    """Return each defect and each image once, with all its kinds; a good image that shows another part twice."""
    found: dict[Any, Choice] = {}
    for choice in choices:
        key = choice.image, choice.defect, choice.kinds == (GOOD,)
        first = found.setdefault(key, choice)
        if first is not choice:
            found[key] = replace(first, kinds=(*first.kinds, *choice.kinds))
    return list(found.values())
