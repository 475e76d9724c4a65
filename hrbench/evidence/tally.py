"""What is left of one image: its map, mask and decision, reduced to one value that evidence is made of.

It takes three steps, so that a map need not be where its mask is: :class:`Places`, from the mask alone, says which
pixels' scores are wanted; what is :class:`Counted` of the map, here or on a device, are bins of all pixels and the
scores of those places; :class:`Tally` puts both together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hrbench.errors import HrbenchError
from hrbench.evidence.histograms import (
    KEY_SHIFT,
    Histogram,
    NormalScores,
    Scores,
    SortedKeys,
    check_map,
    check_size,
    drops_bits,
    image_score,
    top_mean,
    top_pixels,
)
from hrbench.evidence.predicted import PredictedMap
from hrbench.evidence.regions import Regions
from hrbench.evidence.spec import EvidenceSpec
from hrbench.imaging import Region
from hrbench.imaging.components import Components, find_components
from hrbench.imaging.pixel_count import PixelCount
from hrbench.imaging.resample import bilinear, nearest
from hrbench.imaging.rims import RimPixels, find_rims
from hrbench.protocol import ImageScoreRule

__all__ = ["Counted", "Places", "RimTally", "Tally", "count", "tally", "tally_predicted"]

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """The pixels of an image whose scores are wanted one by one.

    Attributes
    ----------
    components : Components
        Of the defect pixels.
    rims : RimPixels or None
        Of the components; None where the mask was shrunk, and a pixel is another length.
    """

    components: Components
    rims: RimPixels | None = None

    @staticmethod
    def of(mask: Bools | None, spec: EvidenceSpec) -> Places:
        """Choose pixels by an image's mask, (H, W) bool or None."""
        defect = np.zeros((0, 1), bool) if mask is None else mask
        components = find_components(defect, spec.connectivity)
        return Places(components, find_rims(defect, components) if spec.side is None else None)

    @property
    def groups(self) -> tuple[Ints, ...]:
        """Flat indices into the map, one array for each use; the first are the defect pixels, which are not normal."""
        return (self.components.pixels, *([] if self.rims is None else [self.rims.outer]))


@dataclass(frozen=True)
class Counted:
    """What a map and a decision come down to.

    Attributes
    ----------
    normals : NormalScores
        All pixels but those of the first group of places.
    scores : tuple of ndarray
        At each group of places.
    decided : tuple of ndarray of bool, or None
        The method's decision there.
    decisions : int or None
        Pixels that the method decided to be defects.
    lossless : bool
        Whether the bins of `normals` dropped no set bit.
    """

    normals: NormalScores
    scores: tuple[Scores, ...]
    decided: tuple[Bools, ...] | None
    decisions: int | None
    lossless: bool

    @staticmethod
    def of(found: PixelCount, groups: Sequence[Ints]) -> Counted:
        """Take over what was counted elsewhere of the places of all `groups`, one after the other."""
        cuts = np.cumsum([places.size for places in groups])[:-1]
        scores = tuple(np.split(found.scores, cuts))
        return Counted(
            Histogram.counted(found.keys, found.counts, KEY_SHIFT).without(scores[0]),
            scores,
            None if found.decided is None else tuple(np.split(found.decided, cuts)),
            found.decisions,
            not found.dropped,
        )


@dataclass(frozen=True)
class RimTally:
    """The rims of one image's components: columns of ``Rims.table``, and its arrays."""

    columns: Mapping[str, Sequence[Any]]
    outer_scores: Scores
    inner: Bools


@dataclass(frozen=True)
class Tally:
    """The evidence of one image.

    Attributes
    ----------
    image : mapping of str to value
        The row of ``Evidence.images``.
    components : mapping of str to sequence
        The columns of its rows of ``Evidence.components``.
    scores : ndarray of float32 or float64, (sum of areas,)
        Of its components' pixels.
    normals : NormalScores
        Its normal pixels; all pixels of an image that is defective and its mask not known.
    unmasked : bool
        Whether it is such an image.
    lossless : bool
        Whether no score lost a set bit.
    regions : Regions or None
        Its annotated regions, where they are known and it has some.
    rims : RimTally or None
        Of its components.
    """

    image: Mapping[str, Any]
    components: Mapping[str, Sequence[Any]]
    scores: Scores
    normals: NormalScores
    unmasked: bool
    lossless: bool
    regions: Regions | None = None
    rims: RimTally | None = None


def tally(
    spec: EvidenceSpec,
    image_id: str,
    anomaly_map: npt.ArrayLike,
    mask: Bools | None,
    *,
    unmasked: bool = False,
    score: float | None = None,
    defect_type: str = "",
    decision: Bools | None = None,
    seconds: float = math.nan,
    group: str = "",
    condition: str = "",
    regions: Sequence[Region] | None = None,
) -> Tally:
    """Reduce one image; the arguments are those of :meth:`hrbench.evidence.EvidenceCollector.update`."""
    scores = check_map(anomaly_map, None if mask is None else mask.shape, image_id)
    defective = unmasked or (mask is not None and bool(mask.any()))  # shrinking may lose the whole defect
    if score is None:
        score = image_score(scores, ImageScoreRule(spec.rule))
    elif not math.isfinite(score):
        raise HrbenchError(f"{image_id}: the image score is {score}, expected a finite number")
    if spec.side is not None:
        size = (spec.side, spec.side)
        scores = bilinear(scores, size)
        mask = None if mask is None else nearest(mask, size)
        decision = None if decision is None else nearest(decision, size)
    places = Places.of(mask, spec)
    counted = count(scores, decision, places.groups, exact=spec.exact, name=image_id)
    image = _Image(image_id, defective, unmasked, group, condition, scores.shape, score, seconds, defect_type)
    return image.tally(places, counted, mask, regions if spec.side is None else None)


def tally_predicted(
    spec: EvidenceSpec,
    image_id: str,
    predicted: PredictedMap,
    mask: Bools | None,
    *,
    unmasked: bool = False,
    defect_type: str = "",
    group: str = "",
    condition: str = "",
    regions: Sequence[Region] | None = None,
) -> Tally:
    """Reduce one image whose map may lie on a device: there, unless `spec` takes all of it."""
    if spec.takes_map or not predicted.elsewhere:
        return tally(
            spec,
            image_id,
            predicted.scores(),
            mask,
            unmasked=unmasked,
            defect_type=defect_type,
            decision=predicted.decision(),
            seconds=predicted.seconds,
            group=group,
            condition=condition,
            regions=regions,
        )
    check_size(predicted.shape, None if mask is None else mask.shape, image_id)
    places, rule = Places.of(mask, spec), ImageScoreRule(spec.rule)
    found = predicted.counted(
        np.concatenate(places.groups),
        shift=KEY_SHIFT,
        top=top_pixels(math.prod(predicted.shape), rule),
        moments=rule.share == 1,
    )
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        check_map(predicted.scores(), None, image_id)  # it raises, with their number
    score = found.high if found.top is None else top_mean(found.top)
    counted = Counted.of(found, places.groups)
    defective = unmasked or places.components.areas.size > 0
    image = _Image(
        image_id,
        defective,
        unmasked,
        group,
        condition,
        predicted.shape,
        score if found.moments is None else found.moments[0],
        predicted.seconds,
        defect_type,
    )
    return image.tally(places, counted, mask, regions)


def count(
    scores: Scores, decision: Bools | None, groups: Sequence[Ints], *, exact: bool = False, name: str = ""
) -> Counted:
    """Count a map in the host's memory.

    Parameters
    ----------
    scores : (H, W) float32 or float64
        Finite.
    decision : (H, W) bool or None
    groups : sequence of (P,) int64
        Flat indices; those of the first are none of the normal pixels.
    exact : bool
        Keep all bits of every pixel.
    name : str
        Of the image, for errors.

    Raises
    ------
    HrbenchError
        If float64 scores exceed the range of float32, unless `exact`.
    """
    pixels = scores.ravel()
    values = pixels if exact else _narrowed(pixels, name)
    found = tuple(values[places] for places in groups)
    if exact:
        normals: NormalScores = SortedKeys.of(np.delete(values, groups[0]) if groups[0].size else values)
    else:
        normals = Histogram.of(values, KEY_SHIFT, without=found[0])
    return Counted(
        normals,
        found,
        None if decision is None else tuple(decision.ravel()[places] for places in groups),
        None if decision is None else int(np.count_nonzero(decision)),
        exact or (not drops_bits(values, KEY_SHIFT) and (values is pixels or bool((values == pixels).all()))),
    )


def _narrowed(scores: Scores, name: str) -> Scores:
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32, copy=False)
    if narrow is not scores and not np.isfinite(narrow).all():
        raise HrbenchError(f"{name}: the anomaly map exceeds the range of float32")
    return narrow


@dataclass(frozen=True)
class _Image:
    """What is known of an image beside its pixels."""

    id: str
    defective: bool
    unmasked: bool
    group: str
    condition: str
    size: tuple[int, ...]
    score: float
    seconds: float
    defect_type: str

    def tally(self, places: Places, counted: Counted, mask: Bools | None, regions: Sequence[Region] | None) -> Tally:
        """Put together what was counted."""
        components, areas = places.components, places.components.areas
        hits = None if counted.decided is None else _sums(counted.decided[0], areas)
        defects, found = int(areas.sum()), 0 if hits is None else int(hits.sum())
        row = {
            "id": self.id,
            "label": int(self.defective),
            "group": self.group,
            "condition": self.condition,
            "height": self.size[0],
            "width": self.size[1],
            "score": self.score,
            "normal_pixels": 0 if self.unmasked else math.prod(self.size) - defects,
            "defect_pixels": defects,
            "decision_tp": None if counted.decisions is None else found,
            "decision_fp": None if counted.decisions is None else counted.decisions - found,
            "seconds": self.seconds,
        }
        columns: dict[str, Sequence[Any]] = {
            "image": [self.id] * areas.size,
            "defect_type": [self.defect_type] * areas.size,
            "area": areas.tolist(),
            **dict(zip(("top", "left", "bottom", "right"), components.boxes.T.tolist(), strict=True)),
            "decision_pixels": [None] * areas.size if hits is None else hits.tolist(),
        }
        measured = None
        if regions is not None and mask is not None and (defects or regions):
            measured = Regions.of(self.id, self.defect_type, regions, mask, components.pixels, counted.scores[0])
        rims = None if places.rims is None else _rims(columns["image"], areas, places.rims, counted)
        return Tally(row, columns, counted.scores[0], counted.normals, self.unmasked, counted.lossless, measured, rims)


def _rims(images: Sequence[str], areas: Ints, pixels: RimPixels, counted: Counted) -> RimTally:
    columns: dict[str, Sequence[Any]] = {"image": images, "outer": pixels.counts.tolist()}
    columns |= dict.fromkeys(("outer_decided", "inner_decided"), [None] * len(images))
    if counted.decided is not None:
        inner, outer = counted.decided
        columns["outer_decided"] = _sums(outer, pixels.counts).tolist()
        columns["inner_decided"] = _sums(inner & pixels.inner, areas).tolist()
    return RimTally(columns, counted.scores[1], pixels.inner)


def _sums(values: Bools, lengths: Ints) -> Ints:
    """Add up consecutive groups of so many values."""
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(lengths)
    sums: Ints = totals[ends] - totals[ends - lengths]
    return sums
