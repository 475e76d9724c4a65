"""AUPRO from a few sampled thresholds, as published codes compute it: for comparison with their numbers only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.integrate import trapezoid

from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Keys, key_scores, score_keys
from hrbench.metrics.curves import UNDEFINED, Certified
from hrbench.protocol import Curve

__all__ = ["sampled_aupro"]

Floats = npt.NDArray[np.float64]


def sampled_aupro(
    evidence: Evidence, curve: Curve, limit: float, subsets: Mapping[str, npt.NDArray[np.bool_]]
) -> dict[str, Certified]:
    """Return AUPRO up to an FPR limit per subset, from the thresholds that `curve` samples.

    ``equal-rank``: n thresholds at equal ranks of the normal scores; the false-positive rate is taken from the
    rank, ``0, 1/(n-1), ..., 1``, whatever the ties; the point (1, 1) is added; straight lines, cut at the limit.
    ``uniform``: n thresholds in equal steps from the lowest score of all upward; only points with a rate below the
    limit count, and the axis is rescaled by the largest of these, as in the code of RD4AD and its descendants.
    In both a pixel counts if its score is strictly above the threshold.

    Returns
    -------
    dict of str to Certified
        The interval covers where in its bin a threshold or a score may lie. Rescaling the axis by the largest rate
        below the limit jumps with a single threshold, so binned evidence certifies nothing for ``uniform``: the
        interval is NaN. A subset without components is NaN altogether.
    """
    normal = evidence.normal
    if curve.sampling == "equal-rank":
        rate = np.linspace(0, 1, curve.thresholds)
        ranks = np.round((1 - rate) * (normal.total - 1)).astype(np.int64)  # from the lowest score
        keys = normal.ranked(ranks)
        rates = [rate, rate]
        bins = [keys, keys + keys.dtype.type(1)]
        if evidence.lossless:
            bins[0] = bins[1]
    else:
        ends = np.array([normal.keys[0], normal.keys[-1]])
        low, high = key_scores(ends, evidence.shift)
        scores = evidence.defect_scores
        low, high = min(low, scores.min()), max(high, scores.max())
        levels = (low + (high - low) * np.arange(curve.thresholds) / curve.thresholds)[::-1]
        keys = score_keys(levels.astype(scores.dtype), evidence.shift)
        above = keys + keys.dtype.type(1)
        bins = [above, above] if evidence.lossless else [keys, above]
        rates = [normal.at_least(edge) / normal.total for edge in bins]
    shares = [_component_shares(evidence, edge) for edge in bins]  # the largest and the smallest possible

    result = {}
    for name, members in subsets.items():
        if not members.any():
            result[name] = UNDEFINED
            continue
        # more found at fewer false positives is the upper end
        high_curve = _area(rates[1], shares[0][:, members].mean(axis=1), limit, curve)
        low_curve = _area(rates[0], shares[1][:, members].mean(axis=1), limit, curve)
        value = (low_curve + high_curve) / 2
        certified = curve.sampling == "equal-rank" or evidence.lossless
        result[name] = Certified(value, *((low_curve, high_curve) if certified else (np.nan, np.nan)))
    return result


def _component_shares(evidence: Evidence, edges: Keys) -> Floats:
    """Return (thresholds, components): the share of each component's pixels with a key at or above each edge."""
    keys = score_keys(evidence.defect_scores, evidence.shift)
    areas = evidence.components["area"].to_numpy()
    owner = np.repeat(np.arange(areas.size), areas)
    order = np.argsort(edges, kind="stable")
    reached = np.searchsorted(edges[order], keys, side="right")  # a pixel is above that many of the lowest edges
    counts = np.zeros((edges.size + 1, areas.size))
    np.add.at(counts, (reached, owner), 1.0)
    at_least = counts[::-1].cumsum(axis=0)[::-1][1:]
    shares = np.empty_like(at_least)
    shares[order] = at_least / areas
    return shares


def _area(rate: Floats, overlap: Floats, limit: float, curve: Curve) -> float:
    """Integrate a curve given from low to high rates."""
    if curve.sampling == "uniform":
        inside = rate < limit
        if inside.sum() < 2 or rate[inside].max() == 0:
            return float("nan")
        return float(trapezoid(overlap[inside], rate[inside] / rate[inside].max()))
    rate, overlap = np.append(rate, 1.0), np.append(overlap, 1.0)
    inside = rate < limit
    rate_in = np.append(rate[inside], limit)
    overlap_in = np.append(overlap[inside], np.interp(limit, rate, overlap))
    return float(trapezoid(overlap_in, rate_in) / limit)
