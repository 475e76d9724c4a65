"""Brute-force definitions of the metrics: slow, literal, independent of the code under test."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from skimage.measure import label


def components(masks):
    """Return (image index, boolean mask) of every 8-connected component."""
    found = []
    for index, mask in enumerate(masks):
        labels = label(mask, connectivity=2)
        found += [(index, labels == number) for number in range(1, labels.max() + 1)]
    return found


def thresholds(maps):
    """Return every distinct score, highest first."""
    return np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]


def pro_points(maps, masks, chosen=None):
    """Return the PRO curve over all thresholds as (FPR, PRO), starting at (0, 0)."""
    parts = components(masks)
    parts = parts if chosen is None else [part for part, keep in zip(parts, chosen, strict=True) if keep]
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for t in thresholds(maps):
        overlap = np.mean([np.mean(maps[index][part] >= t) for index, part in parts])
        points.append((np.mean(normal >= t), overlap))
    return np.array(points)


def area_up_to(points, limit):
    """Integrate a curve with straight lines from 0 to `limit`, divided by `limit`."""
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        total += (end - x0) * (y0 + y_end) / 2
    return total / limit


def aupro(maps, masks, limit, chosen=None):
    """Return AUPRO at an FPR limit by the definition."""
    return area_up_to(pro_points(maps, masks, chosen), limit)


def best_iou(maps, masks):
    """Return the highest pooled IoU over all thresholds."""
    scores = np.concatenate([m.ravel() for m in maps])
    defect = np.concatenate([k.ravel() for k in masks])
    return max(np.sum(defect & (scores >= t)) / np.sum(defect | (scores >= t)) for t in np.unique(scores))


def best_mean_iou(maps, masks):
    """Return the highest mean IoU of the defective images over all common thresholds."""
    pairs = [(m, k) for m, k in zip(maps, masks, strict=True) if k.any()]
    return max(np.mean([np.sum(k & (m >= t)) / np.sum(k | (m >= t)) for m, k in pairs]) for t in thresholds(maps))


def aupimo(maps, masks, low, high):
    """Return AUPIMO of each image by the definition, NaN of good ones: segment by segment over all thresholds."""
    good = [m for m, k in zip(maps, masks, strict=True) if not k.any()]
    levels = thresholds(maps)
    rate = [0.0, *(np.mean([np.mean(m >= t) for m in good]) for t in levels)]
    values = []
    for scores, mask in zip(maps, masks, strict=True):
        found = [0.0, *(np.mean(scores[mask] >= t) for t in levels)] if mask.any() else [np.nan] * len(rate)
        total = 0.0
        for (x0, x1), (y0, y1) in zip(pairwise(rate), pairwise(found), strict=True):
            start, end = max(x0, low), min(x1, high)
            if start < end:  # y = y0 + slope (x - x0), over dx / x
                slope = (y1 - y0) / (x1 - x0)
                total += (y0 - slope * x0) * np.log(end / start) + slope * (end - start)
        values.append(total / np.log(high / low) if mask.any() else np.nan)
    return np.array(values)


def matched(maps, masks, budget, pixels, share):
    """Return what holds at the lowest threshold at which at most the budgeted share of good images alarms."""
    good = [m for m, k in zip(maps, masks, strict=True) if not k.any()]
    bad = [(m, k) for m, k in zip(maps, masks, strict=True) if k.any()]
    names = ("recall", "called", "called_right", "fpr", "alarms")
    if not good:
        return dict.fromkeys(names, np.nan)

    def alarm(m, t):
        return np.sum(m >= t) >= min(pixels, m.size)

    scores = thresholds(maps)
    candidates = [np.inf, *np.nextafter(scores, np.inf)]  # just above each score
    allowed = int(np.floor(budget * len(good) + 1e-9))
    t = min(c for c in candidates if sum(alarm(m, c) for m in good) <= allowed)
    hits = [[np.sum(m[part] >= t) >= max(1, share * part.sum() - 1e-9) for _, part in components([k])] for m, k in bad]
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    return {
        "recall": np.mean([hit for own in hits for hit in own]),
        "called": np.mean([alarm(m, t) for m, _ in bad]),
        "called_right": np.mean([any(own) and alarm(m, t) for own, (m, _) in zip(hits, bad, strict=True)]),
        "fpr": np.mean(normal >= t),
        "alarms": np.mean([alarm(m, t) for m in good]),
    }


def spro(maps, regions, kinds, limits):
    """Return per FPR limit the mean over kinds of the area under the sPRO curve; good images are of every kind.

    `regions` holds a list of pairs (mask, saturation) for each image, and `kinds` a name, "" for a good one.
    """
    values, levels = [], thresholds(maps)

    def reached(scores):
        """Count the scores at or above each threshold."""
        return scores.size - np.searchsorted(np.sort(scores), levels, side="left")

    for kind in sorted(set(kinds) - {""}):
        chosen = [pair for pair, own in zip(zip(maps, regions, strict=True), kinds, strict=True) if own in ("", kind)]
        normal = np.concatenate(
            [m[~np.any([np.zeros(m.shape, bool), *(k for k, _ in own)], axis=0)] for m, own in chosen]
        )
        shares = [np.minimum(reached(m[mask]) / enough, 1) for m, own in chosen for mask, enough in own]
        points = np.stack([reached(normal) / normal.size, np.mean(shares, axis=0)], axis=1)
        values.append([area_up_to([(0.0, 0.0), *points.tolist()], limit) for limit in limits])
    return dict(zip(limits, np.mean(values, axis=0), strict=True))
