"""Plots of a report: quality by defect size, the curves behind the areas, probability of detection, cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from hrbench._files import safe_name
from hrbench.errors import HrbenchError
from hrbench.metrics import CUMULATIVE, DISJOINT, diameter_names, pro_curve, roc_curve, size_subsets
from hrbench.metrics.detection import Detection
from hrbench.protocol import Protocol
from hrbench.report.columns import Column, limit_text, size_columns
from hrbench.report.cost import tradeoff
from hrbench.report.cost_plot import draw_cost
from hrbench.report.detection_limits import Reliability
from hrbench.report.drawing import Bin, Series, draw_bins, draw_curves
from hrbench.report.embedding import save
from hrbench.report.pod_plot import draw_detection
from hrbench.report.summary import MIN_COMPONENTS, Cell, Summary, lookup, summarise
from hrbench.scoring import detection_of
from hrbench.store import Run

__all__ = ["KINDS", "PlotData", "figures", "gather", "write_plots"]

Floats = npt.NDArray[np.float64]
KINDS = ("sizes", "diameters", "curves", "detection", "cost")
"""What is drawn; curves and detection need evidence, cost is drawn per dataset only."""
FPR_GRID: Floats = np.geomspace(1e-5, 1.0, 251)
"""False-positive rates at which curves are averaged and drawn: 50 per decade."""


@dataclasses.dataclass(frozen=True)
class PlotData:
    """What plots need beyond the summary, read from the evidence.

    Attributes
    ----------
    areas : dict
        Component areas by (dataset, category).
    curves : dict
        (PRO, ROC) on :data:`FPR_GRID`, mean over the seeds, by (dataset, category, configuration).
    limits : dict
        Probability of detection of the lowest seed, by (dataset, category, configuration).
    """

    areas: Mapping[tuple[str, str], npt.NDArray[np.int64]]
    curves: Mapping[tuple[str, str, int], tuple[Floats, Floats]]
    limits: Mapping[tuple[str, str, int], Reliability] = dataclasses.field(default_factory=dict)


def gather(runs: Sequence[Run], summary: Summary) -> PlotData:
    """Read areas, curves and limits from the evidence of `runs`; a run whose evidence is gone contributes none."""
    areas: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
    found: dict[tuple[str, str, int], list[tuple[Floats, Floats]]] = {}
    limits: dict[tuple[str, str, int], Reliability] = {}
    for row in summary.runs.sort_values("seed", kind="stable").to_dict("records"):
        place = (str(row["dataset"]), str(row["category"]))
        try:  # not kept: the evidence of a whole benchmark does not fit in memory
            evidence = runs[row["position"]].load_evidence(summary.protocol)
        except (HrbenchError, OSError):
            continue
        areas.setdefault(place, evidence.components["area"].to_numpy())
        curves = (pro_curve(evidence, summary.protocol), roc_curve(evidence))
        pro, roc = (np.interp(FPR_GRID, fpr, value) for fpr, value in curves)
        key = (*place, row["configuration"])
        found.setdefault(key, []).append((pro, roc))
        if key not in limits:
            limits[key] = Reliability(detection_of(evidence, summary.protocol), row["seed"])
    return PlotData(areas, {key: _mean(pairs) for key, pairs in found.items()}, limits)


def _mean(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    pro, roc = (np.mean(curves, axis=0) for curves in zip(*pairs, strict=True))
    return pro, roc


def write_plots(runs: Sequence[Run], destination: Path, protocol: Protocol) -> list[Path]:
    """Write all plots as PNG and SVG, and return their paths.

    For each dataset ``DATASET-sizes``, ``-diameters`` and ``-curves``, averaged over its categories, and for
    each of several categories ``DATASET-CATEGORY-...``. Curves need the runs' evidence, and ``-detection``, drawn
    per category only, an operating threshold. ``DATASET-cost`` needs runs that recorded their speed.

    Parameters
    ----------
    runs : sequence of Run
    destination : Path
        Folder, made if it does not exist.
    protocol : Protocol
        Whose records count.

    Raises
    ------
    HrbenchError
        If no run was measured under `protocol`.
    """
    summary = summarise(runs, protocol)
    material = gather(runs, summary)
    paths = []
    for dataset in summary.notes:
        names = summary.category_names(dataset)
        for category in ["", *names] if len(names) > 1 else [""]:
            stem = "-".join(safe_name(part) for part in (dataset, category) if part)
            for kind, figure in figures(summary, material, dataset, category).items():
                paths += save(figure, Path(destination) / f"{stem}-{kind}")
    return paths


def figures(
    summary: Summary,
    material: PlotData,
    dataset: str,
    category: str = "",
    *,
    titled: bool = True,
    kinds: Collection[str] = KINDS,
) -> dict[str, Figure]:
    """Draw the plots of a category, or of the average over all (``""``), by kind: those of `kinds` there are."""
    sheet = _Sheet(summary, material, dataset, category)
    if not sheet.shown:
        return {}
    protocol, title = summary.protocol, sheet.title() if titled else ""
    axis = f"AUPRO up to FPR {limit_text(protocol.headline_fpr)}"
    drawn = {}
    if "sizes" in kinds:
        panels = [
            ("Quarters of the defects, by area", sheet.bins(DISJOINT), sheet.series(DISJOINT)),
            ("The same, cumulative (q4 = all)", sheet.bins(CUMULATIVE), sheet.series(CUMULATIVE)),
        ]
        drawn["sizes"] = draw_bins(panels, title, axis)
    if "diameters" in kinds and (fixed := diameter_names(protocol.size_bins)):
        panels = [("Equivalent diameter of the defects, px", sheet.bins(fixed), sheet.series(fixed))]
        drawn["diameters"] = draw_bins(panels, title, axis)
    if "curves" in kinds and (curves := sheet.curves()):
        drawn["curves"] = draw_curves(FPR_GRID, curves, protocol, title)
    if "detection" in kinds:
        detection = draw_detection(sheet.detections(), protocol.pod, title)
        drawn |= {} if detection is None else {"detection": detection}
    if "cost" in kinds and not category:
        cost = draw_cost(tradeoff(summary, dataset), axis, title)
        drawn |= {} if cost is None else {"cost": cost}
    return drawn


class _Sheet:
    """What the plots of one category, or of a dataset's average, have in common."""

    def __init__(self, summary: Summary, material: PlotData, dataset: str, category: str) -> None:
        self.summary, self.material, self.dataset, self.category = summary, material, dataset, category
        self.cells = lookup(summary, dataset)
        every = summary.category_names(dataset)
        self.categories = [category] if category else every
        board = summary.leaderboard[summary.leaderboard["dataset"] == dataset]
        self.rows = board.join(summary.configurations["short"], on="configuration")
        lacking = [category in missing for missing in self.rows["missing"]]
        self.shown = self.rows[~np.array(lacking, bool)].to_dict("records")

    def title(self) -> str:
        if len(self.categories) == 1:
            return f"{self.dataset} / {self.categories[0]}"
        return f"{self.dataset}, mean over {len(self.categories)} categories"

    def _one(self, row: Mapping[Any, Any], cells: Sequence[Cell] = ()) -> Series:
        lacks = "" if self.category or not row["missing"] else f" (lacks {', '.join(row['missing'])})"
        return Series(row["short"] + lacks, int(row["configuration"]), cells)

    def series(self, subsets: Sequence[str]) -> list[Series]:
        columns = size_columns(self.summary.protocol, subsets)
        # With a single category its own cells: their spread is that over seeds, which whiskers may show.
        category = self.categories[0] if len(self.categories) == 1 else ""
        drawn = []
        for row in self.shown:
            cells = [column.cell(self.cells, row["configuration"], category) for column in columns]
            if not category:  # the spread over categories is no uncertainty of their average
                cells = [dataclasses.replace(cell, minimum=math.nan, maximum=math.nan) for cell in cells]
            drawn.append(self._one(row, cells))
        return drawn

    def curves(self) -> list[tuple[Series, Floats, Floats]]:
        drawn = []
        for row in self.shown:
            keys = [(self.dataset, name, row["configuration"]) for name in self.categories]
            pairs = [self.material.curves[key] for key in keys if key in self.material.curves]
            covered = len(self.categories) - (0 if self.category else len(row["missing"]))
            if len(pairs) == covered:  # an average over what happens to have evidence left would mislead
                drawn.append((self._one(row), *_mean(pairs)))
        return drawn

    def detections(self) -> list[tuple[Series, Detection]]:
        if len(self.categories) != 1:  # each category has a threshold of its own
            return []
        entries = []
        for row in self.shown:
            entry = self.material.limits.get((self.dataset, self.categories[0], row["configuration"]))
            if entry is not None and entry.detection is not None:
                entries.append((self._one(row), entry.detection))
        return entries

    def bins(self, subsets: Sequence[str]) -> list[Bin]:
        return [self._bin(column) for column in size_columns(self.summary.protocol, subsets)]

    def _bin(self, column: Column) -> Bin:
        counts: list[int] = []
        parts: list[npt.NDArray[np.int64]] = []
        for name in self.categories:
            counts.append(max(column.cell(self.cells, row["configuration"], name).n for row in self.shown))
            areas = self.material.areas.get((self.dataset, name))
            if areas is not None and areas.size:
                parts.append(areas[size_subsets(areas, self.summary.protocol.size_bins)[column.subset]])
        span: tuple[float, ...] = ()
        if len(parts) == len(counts) and (pooled := np.concatenate(parts)).size:
            span = tuple(float(area) for area in np.quantile(pooled, [0, 0.5, 1]))
        enough = sum(n >= MIN_COMPONENTS for n in counts)
        return Bin(column.subset, sum(counts), span, enough, len(counts))
