"""What the protocol is worth: the same maps under several protocols, side by side."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from hrbench.metrics import DISJOINT
from hrbench.report.columns import Column, limit_text, number_text
from hrbench.report.configurations import CountedRun, protocol_digests
from hrbench.report.summary import MIN_COMPONENTS, Estimate, Estimates, Leaderboard, Row, averages, values_of
from hrbench.report.table import Cell, Table, coverage, emphasis

__all__ = ["SENTENCE", "compare_protocols"]

SENTENCE = "Same images and same maps; only the evaluation differs."
"""What to read before the table."""


@dataclasses.dataclass(frozen=True)
class _Measured:
    """Averages under one protocol, and why configurations have none, by their number."""

    estimates: Estimates
    lacking: Mapping[int, str]


def compare_protocols(board: Leaderboard) -> Table | None:
    """Compare the protocols under which the runs of a dataset were measured; None if there is only one.

    The table has a heading for each metric, with what it counts under each protocol, and below it a line for each
    row of the leaderboard; the first column is the reference of the differences, which are the small print. A value
    needs records of every run that counts for its row: an average over other runs would be of other maps.
    """
    names = {str(name) for run in board.runs for name in run.run.records["protocol"].unique()}
    if len(names) < 2:
        return None
    reference = "native" if "native" in names else board.protocol.name
    protocols = [reference, *sorted(names - {reference})]
    measured = [_measure(board.runs, name) for name in protocols]
    rows: list[Row | str | None] = []
    cells: list[tuple[Cell, ...]] = []
    for metric in _metrics(measured, board.protocol.headline_fpr):
        block = _Block(metric, board, protocols, measured)
        if block.is_empty:
            continue
        rows += [metric.head, *board.rows]
        cells += [block.counts(), *block.lines()]
    note = (
        f"Small: difference to {reference}, in points (hundredths), where both average the same categories. "
        "n: defects that are counted; a shrunken mask loses small ones and may tear thin ones apart. "
        "tiny: the smallest quarter of those that are counted. ° Mean over fewer values than it should have."
    )
    columns = tuple(Column(name, "", name) for name in protocols)
    return Table(columns, tuple(rows), tuple(cells), kind="protocol-comparison", notes=(note,))


def _measure(runs: Sequence[CountedRun], name: str) -> _Measured:
    """Average the records of one protocol over seeds and categories, for the configurations that have all of them."""
    values = [(run, values_of(run.run, name)) for run in runs]
    digests = {id(run): protocol_digests(run.run).get(name, "") for run in runs}
    by_age = sorted(values, key=lambda pair: pair[0].created)
    rules = [digests[id(run)] for run, table in by_age if not table.empty and digests[id(run)]]
    total = Counter(run.configuration.number for run in runs)
    without = Counter(run.configuration.number for run, table in values if table.empty)
    foreign = Counter(run.configuration.number for run in runs if rules and digests[id(run)] not in ("", rules[-1]))
    lacking = {
        number: f"{runs_there} of {total[number]} runs measured under other rules named {name}"
        for number, runs_there in foreign.items()
    } | {
        number: f"{runs_there} of {total[number]} runs not measured under {name}"
        for number, runs_there in without.items()
    }
    complete = [(run, table) for run, table in values if run.configuration.number not in lacking]
    return _Measured(averages(complete) if complete else {}, lacking)


def _metrics(measured: Sequence[_Measured], headline: float) -> list[Column]:
    """Return AUPRO at the largest limit that all share and at the headline's, of all and of tiny ones, and AUROC."""
    limits = []
    for each in measured:
        present = {key[4] for key in each.estimates if key[1] == "" and key[2:4] == ("aupro", "all")}
        if present:
            limits.append({limit for limit in present if limit is not None})
    shared = set.intersection(*limits) if limits else set()
    headline = round(headline, 9)
    wanted = ([max(shared)] if shared else []) + [headline] * any(headline in present for present in limits)
    columns = []
    for limit in dict.fromkeys(wanted):
        for subset in ("all", DISJOINT[0]):
            what = "all defects" if subset == "all" else "tiny defects"
            columns.append(Column("", "", f"AUPRO@{limit_text(limit)}, {what}", "aupro", subset, limit))
    return [*columns, Column("", "", "image ROC-AUC", "image_auroc")]


class _Block:
    """One metric under all protocols: its lines of the table."""

    def __init__(
        self, metric: Column, board: Leaderboard, protocols: Sequence[str], measured: Sequence[_Measured]
    ) -> None:
        self.metric, self.protocols, self.measured = metric, protocols, measured
        self.rows = board.rows
        numbers = [row.configuration.number for row in self.rows]
        names = board.categories
        self.estimates = [[metric.estimate(each.estimates, number) for number in numbers] for each in measured]
        self.covered = [[coverage(metric, each.estimates, number, names) for number in numbers] for each in measured]

    @property
    def is_empty(self) -> bool:
        """Whether no row has a value."""
        return all(math.isnan(estimate.value) for column in self.estimates for estimate in column)

    def counts(self) -> tuple[Cell, ...]:
        """Return what the metric counts under each protocol."""
        if self.metric.metric != "aupro":
            return tuple(Cell("") for _ in self.protocols)
        counts = [max((estimate.n for estimate in column), default=0) for column in self.estimates]
        return tuple(Cell(f"n = {n:,}" if n else "–") for n in counts)

    def lines(self) -> list[tuple[Cell, ...]]:
        """Return a line for each row."""
        columns: list[list[Cell]] = []
        for name, each, estimates, covered in zip(
            self.protocols, self.measured, self.estimates, self.covered, strict=True
        ):
            # A protocol's numbers here are all under the same rules of it: others are lacking.
            places = emphasis(self.metric, estimates, covered, [True] * len(estimates))
            cells = []
            for index, (row, estimate) in enumerate(zip(self.rows, estimates, strict=True)):
                text = f"n = {estimate.n}" if estimate.few else number_text(self.metric.metric, estimate.shown)
                text += "°" * (0 < estimate.defined < estimate.total)
                small = ""
                if covered[index] == self.covered[0][index]:
                    small = _signed(100 * (estimate.shown - self.estimates[0][index].shown))
                title = each.lacking.get(row.configuration.number) or _explain(name, estimate, self.metric)
                cells.append(
                    Cell(
                        text,
                        title,
                        sort="" if math.isnan(estimate.shown) else repr(estimate.shown),
                        small=(small,) if columns else (),
                        place=places[index],
                        estimate=estimate,
                    )
                )
            columns.append(cells)
        return list(zip(*columns, strict=True))


def _signed(points: float) -> str:
    if math.isnan(points):
        return ""
    return "±0.0" if abs(points) < 0.05 else f"{points:+.1f}".replace("-", "−")


def _explain(name: str, estimate: Estimate, metric: Column) -> str:
    if estimate.total == 0:
        return f"{name} does not measure this"
    if estimate.few:
        return f"only {estimate.n} defects, no number below {MIN_COMPONENTS}"
    if math.isnan(estimate.shown):
        return "no defect of this size is left" if metric.metric == "aupro" and not estimate.n else "undefined here"
    parts = [f"{estimate.shown:.6f}", f"n = {estimate.n:,}"]
    if not math.isnan(estimate.low):
        parts.insert(1, f"interval {estimate.low:.4f} to {estimate.high:.4f}")
    return "; ".join(parts)
