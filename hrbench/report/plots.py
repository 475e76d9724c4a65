"""Plots of a report: quality by defect size, what is found at how many false alarms, the curves behind it all, cost."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from hrbench._util.files import LONGEST, name_digest, safe_name
from hrbench._util.progress import track
from hrbench.errors import HrbenchError
from hrbench.metrics import CUMULATIVE, DISJOINT, diameter_names, pro_curve, roc_curve, size_subsets
from hrbench.metrics.context import Context
from hrbench.metrics.detection import Detection, detection_at
from hrbench.protocol import Protocol
from hrbench.report.alarm_axis import Threshold
from hrbench.report.columns import Column, limit_text, size_columns
from hrbench.report.cost import tradeoff
from hrbench.report.cost_plot import draw_cost
from hrbench.report.critical_difference import RankComparison, compare_ranks
from hrbench.report.critical_difference_plot import draw_ranking
from hrbench.report.detection_limits import Reliabilities, Reliability
from hrbench.report.differences import paired_differences
from hrbench.report.differences_plot import draw_differences
from hrbench.report.drawing import Bin, Series, draw_bins, draw_curves
from hrbench.report.embedding import FORMATS, save
from hrbench.report.operating_plot import draw_froc, draw_limits
from hrbench.report.panels import draw_panels
from hrbench.report.picture_grid import picture_grid
from hrbench.report.pod_plot import draw_detection, draw_matched
from hrbench.report.scores import AllScores, Scores, analyse, read_scores
from hrbench.report.scores_plot import draw_alarms, draw_ranks
from hrbench.report.summary import MIN_COMPONENTS, Estimate, Leaderboard, Row, Summary, summarise
from hrbench.report.without_masks import has_masks
from hrbench.runs.store import Run

__all__ = ["KINDS", "MOST_ROWS", "PlotData", "best_rows", "figures", "gather", "write_plots"]

MOST_ROWS = 12
"""Rows of a leaderboard, from the best, in plots and detection limits: a legend of more cannot be told apart."""

log = logging.getLogger("hrbench")

Floats = npt.NDArray[np.float64]
OPERATING = ("limits", "froc", "matched", "ranks", "alarms")
"""What is found at how many false alarms; drawn per category only, because each has thresholds of its own."""
KINDS = ("sizes", "diameters", *OPERATING, "differences", "critical-difference", "curves", "detection", "cost")
"""What is drawn; curves and detection need evidence, cost and critical difference are drawn per dataset only."""
FPR_GRID: Floats = np.geomspace(1e-5, 1.0, 251)
"""False-positive rates at which curves are averaged and drawn: 50 per decade."""


@dataclasses.dataclass(frozen=True)
class PlotData:
    """What the plots of a dataset need beyond its leaderboard, read from the evidence.

    Attributes
    ----------
    areas : dict
        Component areas by category.
    curves : dict
        (PRO, ROC) on :data:`FPR_GRID`, mean over the seeds, by category and number of the configuration.
    limits : dict
        Probability of detection of the lowest seed, by category and number of the configuration.
    scores : dict
        Alarm and critical scores, which need no evidence.
    """

    areas: Mapping[str, npt.NDArray[np.int64]]
    curves: Mapping[tuple[str, int], tuple[Floats, Floats]]
    limits: Reliabilities = dataclasses.field(default_factory=dict)
    scores: AllScores = dataclasses.field(default_factory=dict)


def best_rows(board: Leaderboard) -> Leaderboard:
    """Return the leaderboard with those of its rows that plots show."""
    return dataclasses.replace(board, rows=board.rows[:MOST_ROWS])


def gather(board: Leaderboard) -> PlotData:
    """Read areas, curves and limits from the evidence of the runs of the best rows; one that is damaged has none."""
    areas: dict[str, npt.NDArray[np.int64]] = {}
    curves: dict[tuple[str, int], list[tuple[Floats, Floats]]] = {}
    limits: dict[tuple[str, int], Reliability] = {}
    for counted in sorted((run for row in best_rows(board).rows for run in row.runs), key=lambda run: run.seed):
        category = counted.category
        try:  # not kept: the evidence of a whole benchmark does not fit in memory
            evidence = counted.run.load_evidence(board.protocol)
        except (HrbenchError, OSError) as error:
            if (counted.run.folder / "evidence").is_dir():
                log.warning("%s; its curves are left out", error)
            continue
        areas.setdefault(category, evidence.components["area"].to_numpy())
        key = (category, counted.configuration.number)
        if not evidence.components.empty:
            exact = (pro_curve(evidence, board.protocol), roc_curve(evidence))
            pro, roc = (np.interp(FPR_GRID, fpr, value) for fpr, value in exact)
            curves.setdefault(key, []).append((pro, roc))
        if key not in limits:
            detection = detection_at(Context(evidence, board.protocol), None)
            limits[key] = Reliability(detection, counted.seed, counted.held_out)
    return PlotData(areas, {key: _mean(pairs) for key, pairs in curves.items()}, limits, read_scores(board))


def _mean(pairs: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    pro, roc = (np.mean(curves, axis=0) for curves in zip(*pairs, strict=True))
    return pro, roc


def write_plots(
    runs: Sequence[Run],
    destination: Path,
    protocol: Protocol,
    *,
    summary: Summary | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Write all plots as PNG, SVG and PDF, and return their paths.

    For each dataset ``DATASET-sizes``, ``-diameters``, ``-differences`` and ``-curves``, averaged over its categories,
    and for each of several categories ``DATASET-CATEGORY-...``. Per category only, because each has thresholds of its
    own: at equal false alarms ``-limits`` (a90 against false alarms), ``-froc`` (recall against them, by size),
    ``-matched`` (probability of detection), ``-ranks`` (the false alarms that each defect costs) and ``-alarms`` (alarm
    scores); and ``-detection`` at the threshold that was set on training images; and ``-pictures``, the same defects
    side by side. ``-differences`` needs two rows with bootstrap replicates, ``DATASET-critical-difference`` five
    categories and three rows with a rank, ``-curves`` and ``-detection`` the runs' evidence, ``DATASET-cost`` their
    speed.

    Parameters
    ----------
    runs : sequence of Run
    destination : Path
        Folder, made if it does not exist.
    protocol : Protocol
        Whose records count.
    summary : Summary, optional
        Of the runs, if it is there already.
    formats : sequence of {"png", "svg", "pdf"}

    Raises
    ------
    HrbenchError
        If no run was measured under `protocol`.
    """
    paths = []
    taken: set[str] = set()
    for board in (summary or summarise(runs, protocol)).leaderboards:
        data = gather(board)
        categories = ["", *board.categories] if len(board.categories) > 1 else [""]
        for category in track(categories, f"drawing {board.dataset}", total=len(categories), unit="set"):
            stem = _stem(board.dataset, category, taken)
            drawn = figures(board, data, category)
            if category or len(board.categories) == 1:
                name = category or board.categories[0]
                if (shown := draw_panels(picture_grid(board, name), f"{board.dataset} / {name}")) is not None:
                    drawn["pictures"] = shown
            for kind, figure in drawn.items():
                paths += save(figure, Path(destination) / f"{stem}-{kind}", formats)
    return paths


def _stem(dataset: str, category: str, taken: set[str]) -> str:
    """Return what the names of plots begin with: not what is taken, as by dataset ``a-b``, or ``A`` on some disks."""
    names = [name for name in (dataset, category) if name]
    stem = "-".join(map(safe_name, names))
    if len(stem) > LONGEST or stem.casefold() in taken:
        stem = f"{stem[:LONGEST]}~{name_digest('/'.join(names))}"
    taken.add(stem.casefold())
    return stem


def figures(
    board: Leaderboard,
    data: PlotData,
    category: str = "",
    *,
    titled: bool = True,
    kinds: Collection[str] = KINDS,
) -> dict[str, Figure]:
    """Draw the plots of a category, or of the average over all (``""``), by kind: those of `kinds` there are."""
    sheet = _Sheet(board, data, category)
    if not sheet.rows:
        return {}
    protocol, title = board.protocol, sheet.title() if titled else ""
    axis = f"AUPRO up to FPR {limit_text(protocol.headline_fpr)}"
    drawn = {}
    if not has_masks(board, category):
        kinds = [kind for kind in kinds if kind in ("alarms", "differences", "cost")]
    if "sizes" in kinds:
        panels = [
            ("Quarters of the defects, by area", sheet.bins(DISJOINT), sheet.series(DISJOINT)),
            ("The same, cumulative (q4 = all)", sheet.bins(CUMULATIVE), sheet.series(CUMULATIVE)),
        ]
        drawn["sizes"] = draw_bins(panels, title, axis, protocol.bootstrap.level)
    if "diameters" in kinds and (fixed := diameter_names(protocol.size_bins)):
        panels = [("Equivalent diameter of the defects, px", sheet.bins(fixed), sheet.series(fixed))]
        drawn["diameters"] = draw_bins(panels, title, axis, protocol.bootstrap.level)
    maybe: dict[str, Callable[[], Figure | None]] = {
        "limits": lambda: draw_limits(sheet.scores(), protocol, title),
        "froc": lambda: draw_froc(sheet.scores(), protocol, title, sheet.threshold),
        "matched": lambda: draw_matched(sheet.matched(), protocol.alarm.headline, protocol.pod, title),
        "ranks": lambda: draw_ranks(sheet.scores(), protocol, title),
        "alarms": lambda: draw_alarms(sheet.scores(defects=False), protocol, title, sheet.threshold),
        "differences": lambda: sheet.differences(title),
        "critical-difference": lambda: sheet.ranking(title),
        "curves": lambda: draw_curves(FPR_GRID, curves, protocol, title) if (curves := sheet.curves()) else None,
        "detection": lambda: draw_detection(
            sheet.detections(), protocol.pod, title, protocol.threshold, sheet.threshold
        ),
        "cost": lambda: None if category else draw_cost(tradeoff(sheet.board), axis, title, protocol.bootstrap.level),
    }
    for kind, draw in maybe.items():
        if kind in kinds and (figure := draw()) is not None:
            drawn[kind] = figure
    return drawn


class _Sheet:
    """What the plots of one category, or of a dataset's average, have in common."""

    def __init__(self, board: Leaderboard, data: PlotData, category: str) -> None:
        self.rows_in_all, self.data, self.category = len(board.rows), data, category
        self.board = board = best_rows(board)
        self.categories = [category] if category else board.categories
        self.rows = [row for row in board.rows if category not in row.missing]

    def title(self) -> str:
        best = f", best {MOST_ROWS} of {self.rows_in_all} rows" if self.rows_in_all > MOST_ROWS else ""
        if len(self.categories) == 1:
            return f"{self.board.dataset} / {self.categories[0]}{best}"
        return f"{self.board.dataset}, mean over {len(self.categories)} categories{best}"

    def _one(self, row: Row, estimates: Sequence[Estimate] = ()) -> Series:
        label = row.configuration.short if self.category else row.short_of_average
        return Series(label, row.configuration.number, row.configuration.look, estimates)

    def series(self, subsets: Sequence[str]) -> list[Series]:
        columns = size_columns(self.board.protocol, subsets)
        # With a single category its own numbers: their spread is that over seeds, which whiskers may show.
        category = self.categories[0] if len(self.categories) == 1 else ""
        drawn = []
        for row in self.rows:
            estimates = [
                column.estimate(self.board.estimates, row.configuration.number, category) for column in columns
            ]
            if not category:  # the spread over categories is no uncertainty of their average
                estimates = [dataclasses.replace(e, minimum=math.nan, maximum=math.nan) for e in estimates]
            drawn.append(self._one(row, estimates))
        return drawn

    def curves(self) -> list[tuple[Series, Floats, Floats]]:
        drawn = []
        for row in self.rows:
            keys = [(name, row.configuration.number) for name in self.categories]
            pairs = [self.data.curves[key] for key in keys if key in self.data.curves]
            covered = len(self.categories) - (0 if self.category else len(row.missing))
            if len(pairs) == covered:  # an average over what happens to have evidence left would mislead
                drawn.append((self._one(row), *_mean(pairs)))
        return drawn

    def detections(self) -> list[tuple[Series, Detection]]:
        if len(self.categories) != 1:  # each category has a threshold of its own
            return []
        entries = []
        for row in self.rows:
            entry = self.data.limits.get((self.categories[0], row.configuration.number))
            if entry is not None and entry.detection is not None:
                entries.append((self._one(row), entry.detection))
        return entries

    def scores(self, *, defects: bool = True) -> list[tuple[Series, Sequence[Scores]]]:
        if len(self.categories) != 1:
            return []
        drawn: list[tuple[Series, Sequence[Scores]]] = []
        for row in self.rows:
            of_seeds = self.data.scores.get((self.categories[0], row.configuration.number), ())
            if chosen := [scores for scores in of_seeds if scores.good.size and (scores.areas.size or not defects)]:
                drawn.append((self._one(row), chosen))
        return drawn

    def matched(self) -> list[tuple[Series, Mapping[float, Detection]]]:
        """Return the analysis at each budget, from the scores alone; those that let as many images alarm share it."""
        rules, pod = self.board.protocol.alarm, self.board.protocol.pod
        entries: list[tuple[Series, Mapping[float, Detection]]] = []
        for series, (scores, *_) in self.scores():
            number = {budget: scores.allowed(budget) for budget in rules.budgets}
            found = {alarms: analyse(scores, alarms, pod) for alarms in set(number.values())}
            entries.append((series, {budget: found[alarms] for budget, alarms in number.items()}))
        return entries

    def threshold(self, series: Series) -> Threshold | None:
        """Return what holds at the threshold that was set on training images; None where it is not known."""
        entry = self.data.limits.get((self.categories[0], series.index))
        if entry is None or entry.detection is None or not entry.detection.alarms.good:
            return None
        return Threshold.of(entry.detection, self.board.protocol, entry.held_out)

    def differences(self, title: str) -> Figure | None:
        found = paired_differences(self.board, self.category)
        if found is None:
            return None
        first, *others = (self._one(row) for row in (found.first, *(row for row, _ in found.rows)))
        return draw_differences(found, first, others, self.board.protocol.bootstrap.level, title)

    def ranking(self, title: str) -> Figure | None:
        found = None if self.category else compare_ranks(self.board)
        return draw_ranking(found, title) if isinstance(found, RankComparison) else None

    def bins(self, subsets: Sequence[str]) -> list[Bin]:
        return [self._bin(column) for column in size_columns(self.board.protocol, subsets)]

    def _bin(self, column: Column) -> Bin:
        counts: list[int] = []
        parts: list[npt.NDArray[np.int64]] = []
        for name in self.categories:
            numbers = (row.configuration.number for row in self.rows)
            counts.append(max(column.estimate(self.board.estimates, number, name).n for number in numbers))
            areas = self.data.areas.get(name)
            if areas is not None and areas.size:
                parts.append(areas[size_subsets(areas, self.board.protocol.size_bins)[column.subset]])
        span: tuple[float, ...] = ()
        if len(parts) == len(counts) and (pooled := np.concatenate(parts)).size:
            span = tuple(float(area) for area in np.quantile(pooled, [0, 0.5, 1]))
        enough = sum(n >= MIN_COMPONENTS for n in counts)
        return Bin(column.subset, sum(counts), span, enough, len(counts))
