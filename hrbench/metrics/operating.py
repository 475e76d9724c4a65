"""What is found and what alarms at an operating point: shares of components and of images, exact and for draws.

At a budget of false alarms the threshold belongs to the sample: in every draw it is set anew on the good images drawn.
The words are those of :mod:`hrbench.metrics.alarms`; a budget counts only where the threshold is matched to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hrbench.evidence.histograms import key_scores, score_keys
from hrbench.metrics.alarms import FalseAlarms, matched_limits
from hrbench.metrics.context import Context
from hrbench.metrics.curves import UNDEFINED, Certified
from hrbench.metrics.segmentation import AUTOMATIC, MATCHED, OperatingPoint
from hrbench.metrics.weighted import Draw

__all__ = [
    "alarm_share",
    "called_share",
    "drawn_alarms",
    "drawn_called",
    "drawn_false_pixels",
    "drawn_mean_recall",
    "drawn_recall",
    "drawn_right",
    "false_alarms",
    "false_pixels",
    "mean_recall",
    "recall",
    "right_share",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Place = tuple[OperatingPoint, float | None]


class Calls(NamedTuple):
    """Which images alarm, (n,), surely and at most, and which components are hit, (K,).

    Surely and at most differ only where a threshold is no edge of the evidence's bins.
    """

    surely: Bools
    at_most: Bools
    hits: Bools


def _place(at: OperatingPoint, budget: float) -> Place:
    return at, budget if at == MATCHED else None


def _calls(context: Context) -> Mapping[Place, Calls]:
    """Return what alarms and is hit at every operating point that there is."""
    calls: dict[Place, Calls] = {}
    for at, hits in context.hits.items():
        if hits is not None:
            surely, at_most = _called(context, context.threshold) if at == AUTOMATIC else _decided(context)
            calls[at, None] = Calls(surely, at_most, hits)
    for budget, point in context.matched.items():
        called = context.alarms > point.limit
        calls[MATCHED, budget] = Calls(called, called, context.critical > point.limit)
    return calls


def _called(context: Context, threshold: float | None) -> tuple[Bools, Bools]:
    evidence = context.evidence
    wanted = np.array([threshold], dtype=evidence.defect_scores.dtype)
    edge = key_scores(score_keys(wanted, evidence.shift), evidence.shift)
    at_least, above = context.alarms >= edge, context.alarms > edge
    if edge == wanted:
        return at_least, at_least
    return above, above if evidence.lossless else at_least  # lossless scores are edges: none lies between two


def _decided(context: Context) -> tuple[Bools, Bools]:
    images = context.evidence.images
    pixels = images["decision_tp"].to_numpy(dtype=np.int64) + images["decision_fp"].to_numpy(dtype=np.int64)
    called = pixels >= context.protocol.alarm.pixels
    return called, called


def _right(context: Context, hits: Bools) -> Bools:
    """Return of which images (n,) a component is hit, for hits (..., K) of each draw (..., n)."""
    right = np.zeros((*hits.shape[:-1], context.labels.size), bool)
    images, first = np.unique(context.evidence.component_images, return_index=True)  # components lie image by image
    right[..., images] = np.logical_or.reduceat(hits, first, axis=-1)
    return right


def recall(context: Context, at: OperatingPoint, subset: str, budget: float) -> Certified:
    """Return the share of the subset's components that are hit."""
    calls, members = context.once(_calls).get(_place(at, budget)), context.subsets[subset]
    return UNDEFINED if calls is None or not members.any() else Certified.exactly(float(calls.hits[members].mean()))


def mean_recall(context: Context, subset: str) -> Certified:
    """Return the mean recall over the budgets of the protocol's summary."""
    budgets = context.protocol.alarm.summary
    return Certified.exactly(float(np.mean([recall(context, MATCHED, subset, budget).value for budget in budgets])))


def called_share(context: Context, at: OperatingPoint, subset: str, budget: float) -> Certified:
    """Return the share of the subset's defective images that alarm, wherever in the image."""
    return _alarming(context, at, context.image_subsets[subset], budget)


def right_share(context: Context, at: OperatingPoint, budget: float) -> Certified:
    """Return the share of the defective images that alarm, and of which a component is hit."""
    calls, defective = context.once(_calls).get(_place(at, budget)), _with_masks(context)
    if calls is None or not defective.any():
        return UNDEFINED
    right = _right(context, calls.hits) & calls.at_most
    return Certified.exactly(float(right[defective].mean()))


def _with_masks(context: Context) -> Bools:
    """Return which images are defective and have a mask to be called rightly by, (n,)."""
    result: Bools = (context.labels == 1) & context.evidence.known
    return result


def alarm_share(context: Context, at: OperatingPoint, budget: float) -> Certified:
    """Return the share of the good images that alarm."""
    return _alarming(context, at, context.labels == 0, budget)


def _alarming(context: Context, at: OperatingPoint, members: Bools, budget: float) -> Certified:
    calls = context.once(_calls).get(_place(at, budget))
    if calls is None or not members.any():
        return UNDEFINED
    low, high = (float(alarm[members].mean()) for alarm in (calls.surely, calls.at_most))
    return Certified((low + high) / 2, low, high)


def false_alarms(context: Context, at: OperatingPoint, budget: float) -> FalseAlarms | None:
    """Return the good images that alarm; None where there is no such operating point."""
    calls, good = context.once(_calls).get(_place(at, budget)), context.labels == 0
    return None if calls is None else FalseAlarms(int(calls.at_most[good].sum()), int(good.sum()))


def _false_counts(context: Context) -> tuple[Floats, Floats]:
    """Return the distinct alarm scores of good images, (U,), and each image's normal pixels above each, (n, U)."""
    evidence = context.evidence
    levels = np.unique(context.alarms[context.labels == 0])
    keys = score_keys(levels.astype(evidence.defect_scores.dtype), evidence.shift)
    return levels, np.array([part.above(keys) for part in evidence.normals], dtype=np.float64)


def false_pixels(context: Context, budget: float) -> Certified:
    """Return the share of normal pixels that are predicted defective at a budget, which may be any."""
    point = context.matched_at(budget)
    if point is None:
        return UNDEFINED
    levels, counts = context.once(_false_counts)
    column = int(np.searchsorted(levels, point.limit))
    return Certified.exactly(float(counts[:, column].sum() / context.evidence.normal_pixels))


class _DrawnCalls(NamedTuple):
    """The same in each draw, or where the threshold is the same in all of them once for all."""

    images: Floats  # that alarm, (B, n) or (1, n)
    hits: Floats  # (B, K) or (1, K)


def _drawn_limits(draw: Draw) -> Floats:
    """Return the limit of every budget in each draw, (B, L)."""
    context = draw.context
    good = context.labels == 0
    return matched_limits(context.alarms[good], context.protocol.alarm.budgets, draw.weights[:, good])


def _drawn_calls(draw: Draw) -> Mapping[Place, _DrawnCalls]:
    context = draw.context
    calls: dict[Place, _DrawnCalls] = {}
    for place, fixed in context.once(_calls).items():
        at, budget = place
        if at == MATCHED:
            limit = draw.once(_drawn_limits)[:, [context.protocol.alarm.budgets.index(budget)]]
            # Without a good image drawn (groups may hold them all) there is no such threshold.
            images, hits = (np.where(limit < np.inf, of > limit, np.nan) for of in (context.alarms, context.critical))
        else:
            images = (fixed.surely.astype(np.float64) + fixed.at_most)[None] / 2
            hits = fixed.hits[None].astype(np.float64)
        calls[place] = _DrawnCalls(images, hits)
    return calls


def _recalls(draw: Draw) -> Mapping[Place, dict[str, Floats]]:
    context = draw.context
    weights = draw.weights[:, context.evidence.component_images]
    hits = {place: calls.hits for place, calls in draw.once(_drawn_calls).items()}
    return _shares_by_subset(weights, hits, context.subsets)


def _called_shares(draw: Draw) -> Mapping[Place, dict[str, Floats]]:
    images = {place: calls.images for place, calls in draw.once(_drawn_calls).items()}
    return _shares_by_subset(draw.weights, images, draw.context.image_subsets)


def _shares_by_subset(
    weights: Floats, found: Mapping[Place, Floats], subsets: Mapping[str, Bools]
) -> Mapping[Place, dict[str, Floats]]:
    """Return at every operating point the weighted share of each subset that is found, (B,)."""
    members = np.stack(list(subsets.values()), axis=1).astype(np.float64)
    counts = weights @ members
    shares = {place: (weights * of_place) @ members / counts for place, of_place in found.items()}
    return {place: dict(zip(subsets, of_place.T, strict=True)) for place, of_place in shares.items()}


def drawn_recall(draw: Draw, at: OperatingPoint, subset: str, budget: float) -> Floats:
    """Return :func:`recall` in each draw, (B,)."""
    found = draw.once(_recalls).get(_place(at, budget))
    return draw.undefined if found is None else found[subset]


def drawn_mean_recall(draw: Draw, subset: str) -> Floats:
    """Return :func:`mean_recall` in each draw, (B,)."""
    budgets = draw.context.protocol.alarm.summary
    result: Floats = np.mean([drawn_recall(draw, MATCHED, subset, budget) for budget in budgets], axis=0)
    return result


def drawn_called(draw: Draw, at: OperatingPoint, subset: str, budget: float) -> Floats:
    """Return :func:`called_share` in each draw, (B,)."""
    found = draw.once(_called_shares).get(_place(at, budget))
    return draw.undefined if found is None else found[subset]


def drawn_right(draw: Draw, at: OperatingPoint, budget: float) -> Floats:
    """Return :func:`right_share` in each draw, (B,)."""
    calls = draw.once(_drawn_calls).get(_place(at, budget))
    if calls is None:
        return draw.undefined
    defective = _with_masks(draw.context)
    right, weights = (
        (_right(draw.context, calls.hits > 0) & (calls.images > 0))[:, defective],
        draw.weights[:, defective],
    )
    result: Floats = (weights * right).sum(axis=1) / weights.sum(axis=1)
    return np.where(np.isnan(calls.hits).any(axis=1), np.nan, result)


def drawn_alarms(draw: Draw, at: OperatingPoint, budget: float) -> Floats:
    """Return :func:`alarm_share` in each draw, (B,)."""
    calls = draw.once(_drawn_calls).get(_place(at, budget))
    if calls is None:
        return draw.undefined
    good = draw.context.labels == 0
    weights = draw.weights[:, good]
    result: Floats = (weights * calls.images[:, good]).sum(axis=1) / weights.sum(axis=1)
    return result


def drawn_false_pixels(draw: Draw, budget: float) -> Floats:
    """Return :func:`false_pixels` in each draw, (B,)."""
    context = draw.context
    if budget not in context.matched:
        return draw.undefined
    levels, counts = context.once(_false_counts)
    limits = draw.once(_drawn_limits)[:, context.protocol.alarm.budgets.index(budget)]
    column = np.searchsorted(levels, limits).clip(max=levels.size - 1)
    result: Floats = (draw.weights * counts[:, column].T).sum(axis=1) / draw.normal
    return np.where(limits < np.inf, result, np.nan)
