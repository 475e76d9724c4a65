"""The best rows of a dataset, each against each, over the same draws of the images."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np

from hrbench.metrics.bootstrap import MIN_IMAGES, Replicates
from hrbench.metrics.pairwise import Pairwise, pairwise
from hrbench.metrics.sizes import DISJOINT
from hrbench.report.columns import limit_text
from hrbench.report.differences import row_replicates
from hrbench.report.summary import Leaderboard, Row

__all__ = ["MOST_PAIRED", "Matrix", "Pairs", "compact", "compare_rows", "key_text", "matrices"]

MOST_PAIRED = 12
"""Rows, from the best, that are compared each with each."""


def key_text(metric: str, subset: str, limit: float | None) -> str:
    """Return the key of a number: ``aupro@0.05_tiny``, ``image_auroc``."""
    return metric + ("" if limit is None else f"@{limit:g}") + ("" if subset == "all" else f"_{subset}")


def compact(value: float) -> float | None:
    """Return a number with six digits for the page's script; None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Differences of the best rows of a dataset, each to each, over the same draws of the images.

    Attributes
    ----------
    rows : tuple of Row, (M,)
    lines : tuple of (str, str)
        Key and name of each metric and size, (R,).
    found : Pairwise
        Of shape (M, M, R).
    level : float
    units : tuple of int
        Images, or groups of them, that each metric's draws can take in or leave out, (R,): of a mean over categories
        their mean.
    """

    rows: tuple[Row, ...]
    lines: tuple[tuple[str, str], ...]
    found: Pairwise
    level: float
    units: tuple[int, ...]

    def data(self) -> dict[str, Any]:
        """Return the pairs for the page's script: those of which the first row stands below the second in the list."""
        below = [(i, j) for i in range(len(self.rows)) for j in range(i)]
        arrays = {"low": self.found.low, "high": self.found.high, "share": self.found.share_better}
        lists = {name: [[compact(v) for v in array[i, j]] for i, j in below] for name, array in arrays.items()}
        return {
            "rows": [row.configuration.number for row in self.rows],
            "lines": [list(line) for line in self.lines],
            "units": list(self.units),
            "fewest": MIN_IMAGES,
            "difference": [[compact(v) for v in self.found.difference[i, j]] for i, j in below],
            **lists,
        }


def compare_rows(board: Leaderboard) -> Pairs | None:
    """Compare the best rows of a dataset each with each; None where fewer than two keep draws of the same images."""
    protocol = board.protocol
    rows = [row for row in board.rows if not (row.missing or row.foreign)][:MOST_PAIRED]
    kept = [(row, part) for row in rows if (part := row_replicates(row, protocol)) is not None]
    kept = [(row, part) for row, part in kept if _same_draws(part, kept[0][1])]
    if len(kept) < 2:
        return None
    every = [_keys(part) for _, part in kept]
    rules, headline = protocol.alarm, limit_text(protocol.headline_fpr)
    at = f"recall at {100 * rules.headline:g} false alarms per 100"
    wanted: list[tuple[str, str, float | None, str]] = [
        ("aupro", "all", protocol.headline_fpr, f"AUPRO@{headline}"),
        *(("aupro", name, protocol.headline_fpr, f"the same, {name} defects") for name in DISJOINT),
        ("recall_matched", "all", rules.headline, at),
        *(("recall_matched", name, rules.headline, f"the same, {name} defects") for name in DISJOINT),
        ("mean_recall", "all", None, "mean recall"),
    ]
    lines, places = [], []
    for metric, subset, limit, name in wanted:
        key = (metric, subset, None if limit is None else round(limit, 9))
        if all(key in keys for keys in every):
            lines.append((key_text(metric, subset, limit), name))
            places.append(key)
    if not lines:
        return None
    parts = [part.only([keys.index(key) for key in places]) for (_, part), keys in zip(kept, every, strict=True)]
    found = pairwise(parts, level=protocol.bootstrap.level)
    units = tuple(np.min([part.units for part in parts], axis=0).astype(int).tolist())
    return Pairs(tuple(row for row, _ in kept), tuple(lines), found, protocol.bootstrap.level, units)


def _same_draws(part: Replicates, other: Replicates) -> bool:
    return (part.sample, len(part.values)) == (other.sample, len(other.values))


def _keys(part: Replicates) -> list[tuple[str, str, float | None]]:
    return [
        (metric, subset, None if math.isnan(limit) else round(float(limit), 9))
        for metric, subset, limit in part.keys.itertuples(index=False)
    ]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A table of differences, each row minus each column.

    Attributes
    ----------
    name : str
        The metric.
    cells : list of list of (str, str, str)
        Text, explanation, and ``better``, ``worse`` or "" where the interval holds zero, or there is none.
    """

    name: str
    cells: list[list[tuple[str, str, str]]]


def matrices(paired: Pairs) -> list[Matrix]:
    """Return a matrix for AUPRO and one for recall at equal false alarms."""
    shown = [place for place, (key, _) in enumerate(paired.lines) if re.match(r"(aupro|recall_matched)@[^_]+$", key)]
    of = paired.found
    names = [row.configuration.short for row in paired.rows]

    def cell(i: int, j: int, place: int) -> tuple[str, str, str]:
        if i == j:
            return "", "", ""
        value, low, high = (float(array[i, j, place]) for array in (of.difference, of.low, of.high))
        if math.isnan(value):
            return "–", "not measured", ""
        title = f"{names[i]} minus {names[j]}: {value:+.3f}"
        if math.isnan(low):
            few = f": too few images with such defects, {paired.units[place]}" * (paired.units[place] < MIN_IMAGES)
            return f"{value:+.3f}", f"{title}, no interval can be given{few}", ""
        title += f", {100 * paired.level:g} % interval {low:+.3f} to {high:+.3f}"
        kind = "better" if low > 0 else "worse" if high < 0 else ""
        share = f"better in {100 * of.share_better[i, j, place]:.0f} % of the draws"
        return f"{value:+.3f}", f"{title}; {share}", kind

    numbers = range(len(names))
    return [Matrix(paired.lines[k][1], [[cell(i, j, k) for j in numbers] for i in numbers]) for k in shown]
