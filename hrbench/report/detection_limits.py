"""Detection limits as a report says them: the smallest defect that is reliably found, and at how many false calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from hrbench.metrics import equivalent_diameter
from hrbench.metrics.detection import Detection, DetectionLimit
from hrbench.metrics.words import pixels_text
from hrbench.protocol import Detectability, Protocol, ThresholdRule
from hrbench.report.columns import Column
from hrbench.report.summary import Leaderboard, Row
from hrbench.report.table import Cell, Table

__all__ = [
    "Reliabilities",
    "Reliability",
    "limit_names",
    "limit_overview",
    "limit_table",
    "missing_cell",
    "unreached",
]

_FAR = 1e9  # px: nobody has to read what a curve says beyond
_CONSTRUCTIONS = {"firth": "Firth logistic", "ml": "maximum-likelihood logistic"}


@dataclasses.dataclass(frozen=True)
class Reliability:
    """The hit/miss analysis of a configuration in a category at the threshold that is set on normal images.

    Attributes
    ----------
    detection : Detection or None
        None where there is no such threshold.
    seed : int
        Of the run it belongs to: the lowest one.
    held_out : int
        Normal training images that the threshold was set on.
    """

    detection: Detection | None
    seed: int
    held_out: int = 0


Reliabilities = Mapping[tuple[str, int], Reliability]
"""Of a dataset, by category and number of the configuration."""


def limit_names(pod: Detectability) -> tuple[str, str, str]:
    """Return the names of the limits: ``a50``, ``a90``, ``a90/95``."""
    reliable = f"a{100 * pod.probability:g}"
    return "a50", reliable, f"{reliable}/{100 * pod.level:g}"


def unreached(limit: DetectionLimit) -> bool:
    """Tell a limit that lies beyond what was seen from one that cannot be estimated."""
    return limit.area is None and limit.reason.startswith("not reached")


def limit_table(reliabilities: Reliabilities, board: Leaderboard, category: str) -> Table | None:
    """Return the limits in one category with all that belongs to them; None without any evidence.

    A table without rows has notes that say why.
    """
    analysed, silent, lost = _sort_out(reliabilities, board, category)
    if not analysed and not silent:
        return None
    pod, rule = board.protocol.pod, board.protocol.threshold
    a90_95 = limit_names(pod)[2]
    cautions = list(dict.fromkeys(caution for _, detection in analysed for caution in detection.cautions))
    notes, how = [], ""
    if analysed:
        if fits := {_CONSTRUCTIONS[found.estimator] for _, found in analysed if found.estimator != "none"}:
            how = (
                f"{' and '.join(sorted(fits))} regression of hit on ln(area); {a90_95}: profile likelihood, beside it "
                "the bootstrap over images. In the plot the band is Wald's, each edge one-sided with "
                f"{100 * pod.level:g} % confidence, and need not cross there."
            )
        notes.append(f"The {rule.name} knows no test image, only normal images that were held out of the fit.")
        if seeds := _seeds(reliabilities, board, category):
            notes.append(seeds)
    return Table(
        columns=_columns(board.protocol),
        rows=tuple(row for row, _ in analysed),
        cells=tuple(_cells(detection, cautions) for _, detection in analysed),
        kind="detection-limits",
        caption=f"Defects of this area are found at the {rule.name}; area in px, ⌀ diameter of an equal circle",
        notes=(*notes, *_absent(silent, lost, rule)),
        cautions=tuple(cautions),
        how=how,
    )


def _columns(protocol: Protocol) -> tuple[Column, ...]:
    a50, a90, a90_95 = limit_names(protocol.pod)
    reached, upper = "area found with probability", f"{a90_95}, upper limit of {a90}"
    confidence = f"With {100 * protocol.pod.level:g} % confidence at most this: "
    heads = (
        (reached, a50, "Half of the defects of this area are found"),
        (reached, a90, f"{100 * protocol.pod.probability:g} % of the defects of this area are found"),
        (upper, "profile", confidence + "profile likelihood; hits of one image count as independent"),
        (upper, "images", confidence + "bootstrap over images, or groups of them, whose defects share their fate"),
        ("defects", "hit", f"At least {100 * protocol.pod.share:g} % of the defect is at or above the threshold"),
        ("false calls", "good images", "Share of the good test images with a pixel at or above the threshold"),
        ("false calls", "normal pixels", f"Share of all normal test pixels; {_rule(protocol)}"),
    )
    return tuple(_column(*head) for head in heads)


def _column(group: str, head: str, title: str) -> Column:
    """Return a column of limits or of what belongs to them: no row wins by a figure that needs the others beside it."""
    return Column(head, group, head, title=title, contest=False, least=True)


def limit_overview(reliabilities: Reliabilities, board: Leaderboard) -> Table | None:
    """Return the upper limits of all categories side by side; None without any, or for a single category."""
    categories = board.categories
    known = [entry.detection for entry in reliabilities.values() if entry.detection is not None]
    if len(categories) < 2 or not any(detection.areas.size for detection in known):
        return None
    a90, a90_95 = limit_names(board.protocol.pod)[1:]
    cells, silent = [], []
    for row in board.rows:
        entries = [reliabilities.get((category, row.configuration.number)) for category in categories]
        cells.append(tuple(_upper_cell(entry) for entry in entries))
        if all(entry is not None and entry.detection is None for entry in entries):
            silent.append(row.configuration.short)
    notes = ["False calls and cautions belong to every figure: see the categories. No average: thresholds differ."]
    return Table(
        columns=tuple(_column(a90_95, category, f"{a90_95} in {category}") for category in categories),
        rows=board.rows,
        cells=tuple(cells),
        kind="detection-limits",
        caption=f"Upper limit of {a90}, per category; area in px, ⌀ diameter of an equal circle",
        notes=(*notes, *_absent(silent, [], board.protocol.threshold)),
    )


def _upper_cell(entry: Reliability | None) -> Cell:
    if entry is None:
        return Cell("–", "no run, or its evidence is gone")
    if entry.detection is None:
        return Cell("–", "no such threshold: no held-out normal images, or too few")
    return _limit_cell(entry.detection.a90_95)


def _sort_out(
    reliabilities: Reliabilities, board: Leaderboard, category: str
) -> tuple[list[tuple[Row, Detection]], list[str], list[str]]:
    """Return rows with an analysis, and the labels of those without threshold and without evidence."""
    analysed, silent, lost = [], [], []
    for row in board.rows:
        if category in row.missing:
            continue
        entry = reliabilities.get((category, row.configuration.number))
        if entry is None:
            lost.append(row.configuration.short)
        elif entry.detection is None:
            silent.append(row.configuration.short)
        else:
            analysed.append((row, entry.detection))
    return analysed, silent, lost


def _absent(silent: Sequence[str], lost: Sequence[str], rule: ThresholdRule) -> list[str]:
    texts = []
    if silent:
        texts.append(
            f"No {rule.name}, hence neither hits nor misses: {', '.join(silent)}. It takes normal images "
            "that were held out; finished maps need maps of such images beside them."
        )
    if lost:
        texts.append(f"Evidence is gone: {', '.join(lost)}.")
    return texts


def _seeds(reliabilities: Reliabilities, board: Leaderboard, category: str) -> str:
    """Say which seed stands for its configuration where there are several."""
    runs = [run for run in board.runs if run.category == category]
    seeds = {(run.configuration.number, run.seed) for run in runs}
    configurations = {number for number, _ in seeds}
    if len(seeds) == len(configurations):
        return ""
    keys = ((category, number) for number in configurations)
    shown = {reliabilities[key].seed for key in keys if key in reliabilities}
    return (
        f"Of several seeds the lowest one stands here (seed {', '.join(map(str, sorted(shown)))}): hits of different "
        "seeds are not independent."
    )


def _rule(protocol: Protocol) -> str:
    rule = protocol.threshold
    values = {
        "normal-quantile": f"a share of {rule.fpr:g}",
        "mean+k*sigma": f"k = {rule.k:g}",
        "conformal": f"at most {100 * rule.alarms:g} alarms per 100 good images",
    }
    return f"the {rule.name} is by the rule {rule.rule} with {values[rule.rule]}, on held-out normal images"


def _cells(detection: Detection, cautions: Sequence[str]) -> tuple[Cell, ...]:
    marks = " ".join(str(cautions.index(caution) + 1) for caution in detection.cautions)
    bootstrap = detection.upper.get("bootstrap")
    few = Cell("–", "no bootstrap: too few images with defects, or no draws")
    hits, number = int(detection.hits.sum()), detection.hits.size
    return (
        _limit_cell(detection.a50),
        _limit_cell(detection.a90),
        dataclasses.replace(_limit_cell(detection.a90_95), mark=marks),
        few if bootstrap is None else _limit_cell(bootstrap),
        Cell(f"{hits:,} / {number:,}", f"{hits:,} of {number:,} defects hit", sort=str(hits)),
        _share(detection.alarms.rate, "of the good test images with at least one pixel predicted defective"),
        _share(detection.false_per_pixel, "of the normal test pixels predicted defective"),
    )


def _limit_cell(limit: DetectionLimit) -> Cell:
    if limit.area is None:
        return missing_cell(limit)
    across = f"{float(equivalent_diameter(limit.area)):.1f} px"
    title = f"{limit.area:.6g} px, the area of a circle {across} across"
    return Cell(pixels_text(limit.area), title, sort=repr(limit.area), small=(f"⌀ {across}",))


def missing_cell(limit: DetectionLimit) -> Cell:
    """Return the cell of a limit that is not reached, or cannot be estimated."""
    text, _, why = limit.reason.partition(" (")
    title = limit.reason
    if limit.estimate < _FAR:
        title += f"; the curve, extrapolated, would reach it at {pixels_text(limit.estimate)}: not a result"
    return Cell(text, title, small=(why.removesuffix(")"),) if why else ())


def _share(value: float, what: str) -> Cell:
    if math.isnan(value):
        return Cell("–", "no good test image")
    return Cell(f"{100 * value:.3g} %", f"{100 * value:.6g} % {what}", sort=repr(value))
