"""Which defects and good images a run keeps pictures of.

Most follow from the masks alone, so that runs of all methods keep the same: two defects of each quarter by area, and
two good images. Beside these a run keeps its own smallest defect found, its largest missed, its worst false alarm; and
the places of those of other runs, once they are known, so that all can be seen side by side.
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
from hrbench.runs.picture_files import Box, Picture

__all__ = [
    "ALARM",
    "EXTREMES",
    "FOUND",
    "GOOD",
    "HIGHEST",
    "LOWEST",
    "MISSED",
    "SIDE_BY_SIDE",
    "WITH_EXTREMES",
    "Choice",
    "Scale",
    "choose",
    "choose_again",
    "native_box",
    "scale_of",
]

SIDE_BY_SIDE = 6
"""Methods, from the best, whose pictures stand side by side."""
WITH_EXTREMES = 3
"""Of these, from the best, those whose extremes are shown."""

FOUND, MISSED, ALARM = "smallest found", "largest missed", "worst false alarm"
GOOD = "good"
LOWEST, HIGHEST = "lowest score", "highest score"  # of defective images without masks
EXTREMES = (FOUND, MISSED, ALARM, LOWEST, HIGHEST)
"""What is chosen by a run's own scores."""
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
        Why it was chosen: a quarter by area, :data:`FOUND`, :data:`MISSED`, :data:`ALARM`, :data:`GOOD`, ...; none
        where another run has chosen it.
    defect : tuple of float or None
        Its box, (top, left, bottom, right) in shares of the image's sides; None where a whole image was chosen.
    area : int
        Of the defect, in the pixels in which it was measured; 0 without one.
    score : float
        Critical score of the defect, alarm score of an image.
    reached : float or None
        Share of the defect's pixels at or above the threshold; None without either.
    window : tuple of int or None
        What is shown, (top, left, bottom, right) in native pixels, where another run has chosen it.
    """

    image: str
    kinds: tuple[str, ...]
    defect: tuple[float, float, float, float] | None
    area: int
    score: float
    reached: float | None = None
    window: Box | None = None


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
    there = _There(evidence, protocol, threshold)
    areas, critical, alarms, ids = there.areas, there.critical, there.alarms, there.ids
    labels = evidence.images["label"].to_numpy()
    chosen: list[Choice] = []
    if areas.size:
        for name in DISJOINT:
            members = np.flatnonzero(size_subsets(areas, protocol.size_bins)[name]).tolist()
            picked = _drawn(members, lambda k: f"{there.owners[k]} {there.boxes[k].round(6).tolist()}")[:_PER_BIN]
            chosen += [there.defect(number, (name,)) for number in picked]
        if threshold is not None:
            hit = critical >= threshold
            found = sorted(np.flatnonzero(hit).tolist(), key=lambda k: (areas[k], -critical[k]))[:1]
            missed = sorted(np.flatnonzero(~hit).tolist(), key=lambda k: (-areas[k], critical[k]))[:1]
            chosen += [there.defect(k, (kind,)) for kind, some in ((FOUND, found), (MISSED, missed)) for k in some]
    else:
        rising = sorted(np.flatnonzero(labels == 1).tolist(), key=lambda k: (alarms[k], ids[k]))
        chosen += [there.image(k, (LOWEST,)) for k in rising[:_UNMASKED]]
        chosen += [there.image(k, (HIGHEST,)) for k in rising[_UNMASKED:][-1:]]
    good = np.flatnonzero(labels == 0).tolist()
    chosen += [there.image(k, (ALARM,)) for k in sorted(good, key=lambda k: (-alarms[k], ids[k]))[:1]]
    chosen += [there.image(k, (GOOD,)) for k in _drawn(good, lambda k: ids[k])[:_GOOD]]
    return _merged(chosen)


def choose_again(
    evidence: Evidence, protocol: Protocol, threshold: float | None, elsewhere: Iterable[Picture]
) -> list[Choice]:
    """Return what other runs have chosen, as this one scores it; what is not among its images and defects is left out.

    Parameters
    ----------
    evidence : Evidence
    protocol : Protocol
    threshold : float or None
    elsewhere : iterable of Picture
        Of other runs.
    """
    there = _There(evidence, protocol, threshold)
    chosen = []
    for picture in elsewhere:
        if picture.defect is None:
            found = [there.image(number) for number in np.flatnonzero(there.ids == picture.image).tolist()]
        else:
            size = picture.height, picture.width
            same = np.flatnonzero((there.owners == picture.image) & (there.areas == picture.area)).tolist()
            boxes = {number: native_box(tuple(there.boxes[number].tolist()), size) for number in same}
            found = [there.defect(number) for number, box in boxes.items() if box == picture.defect]
        chosen += [replace(choice, window=picture.window) for choice in found[:1]]
    return chosen


def native_box(shares: tuple[float, float, float, float], size: tuple[int, int]) -> Box:
    """Return a box of shares of an image's sides in pixels."""
    top, left, bottom, right = (round(share * side) for share, side in zip(shares, size * 2, strict=True))
    return top, left, max(bottom, top + 1), max(right, left + 1)


class _There:
    """The defects and images of a run, by their numbers in its evidence, and their scores."""

    def __init__(self, evidence: Evidence, protocol: Protocol, threshold: float | None) -> None:
        images, components = evidence.images, evidence.components
        sizes = images.set_index("id")[["height", "width"]].loc[components["image"]].to_numpy(dtype=float)
        self.boxes = components[["top", "left", "bottom", "right"]].to_numpy(dtype=float) / np.tile(sizes, 2)
        self.areas = components["area"].to_numpy(dtype=np.int64)
        self.owners, self.ids = components["image"].to_numpy(dtype=object), images["id"].to_numpy(dtype=object)
        self.critical = critical_scores(evidence, protocol.pod.share)
        self.alarms = alarm_scores(evidence, protocol.alarm.pixels)
        self._evidence, self._threshold = evidence, threshold

    def defect(self, number: int, kinds: tuple[str, ...] = ()) -> Choice:
        top, left, bottom, right = self.boxes[number].tolist()
        facts = self.owners[number], kinds, (top, left, bottom, right), int(self.areas[number])
        return Choice(*facts, float(self.critical[number]), self._reached(number))

    def image(self, number: int, kinds: tuple[str, ...] = ()) -> Choice:
        return Choice(self.ids[number], kinds, None, 0, float(self.alarms[number]))

    def _reached(self, number: int) -> float | None:
        if self._threshold is None:
            return None
        start, ranks = self._evidence.component_starts[number], self._evidence.ranks
        keys = ranks.keys[ranks.place[start : start + self.areas[number]]]
        return float(np.mean(key_scores(keys, self._evidence.shift) >= self._threshold))


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
