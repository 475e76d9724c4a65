"""From runs to averages: the one source of every table, page and plot.

A *configuration* is what a leaderboard row stands for: method, preset, view, weights and options, measured
under one set of rules. Its value in a category is the mean over its seeds, and its value on a dataset the
plain (macro) mean over the categories. Nothing is left out silently: every mean carries how many values it
had and how many it should have had.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.report.configurations import (
    THROUGHPUT,
    TIMES,
    Configuration,
    CountedRun,
    costs_of,
    describe,
    identify,
    protocol_digests,
    remarks,
    why_untimed,
    without_duplicates,
)
from hrbench.report.labels import relabel
from hrbench.report.ranking import headline_ranks
from hrbench.runs.store import Run

__all__ = [
    "MIN_COMPONENTS",
    "NO_ESTIMATE",
    "SIZED",
    "Estimate",
    "Estimates",
    "Row",
    "Summary",
    "averages",
    "summarise",
    "values_of",
]

MIN_COMPONENTS = 3
"""A size bin with fewer components, or defective images, than this gets no number."""

SIZED = (
    "aupro", "recall", "recall_decision", "recall_matched", "mean_recall", "called_matched", "aupimo", "image_auroc",
    "miou", "miou_decision",
)  # fmt: skip
"""Metrics by size of defect that the rule applies to; of images by their largest defect, it is about these images."""

_METRIC = ["metric", "subset", "fpr_limit"]
_NO_LABELS: Mapping[str, str] = {}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One number of a report and what stands behind it.

    Attributes
    ----------
    value, error : float
        Mean, and the certified bound of its numerical error.
    low, high : float
        Confidence interval; NaN where there is none.
    minimum, maximum : float
        Spread over the seeds (of a category) or over the categories (of a dataset).
    n : int
        Images, components or pixels behind it, over all categories.
    defined, total : int
        Number of values in the mean, and how many there would be if none were undefined.
    few : bool
        Whether the size bin holds too few components for a number; `value` is then kept for hollow markers.
    untimed : str
        Why a time is left out; "" where it is not.
    """

    value: float = math.nan
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    minimum: float = math.nan
    maximum: float = math.nan
    n: int = 0
    defined: int = 0
    total: int = 0
    few: bool = False
    untimed: str = ""

    @property
    def shown(self) -> float:
        """The value that may be printed: NaN when undefined or when too few components stand behind it."""
        return math.nan if self.few else self.value

    @property
    def has_interval(self) -> bool:
        """Whether a printed value has a confidence interval."""
        return not (math.isnan(self.shown) or math.isnan(self.low) or math.isnan(self.high))


NO_ESTIMATE = Estimate()
"""Where nothing was measured."""

Estimates = Mapping[tuple[int, str, str, str, float | None], Estimate]
"""By number of the configuration, category or "" for the average, metric, subset, and FPR limit or None."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A configuration on a dataset: one row of its leaderboard.

    Attributes
    ----------
    configuration : Configuration
    runs : tuple of CountedRun
        By category and seed.
    headline : float
        What it is ranked by: AUPRO or, where no category has any, image ROC-AUC.
    missing : tuple of str
        Categories of the dataset that it does not cover.
    foreign : bool
        Whether it was measured under other rules than the report's.
    rank, rank_low, rank_high : float
        Rank, and the interval of it over the bootstrap draws; NaN where not comparable, or where there is none.
    """

    configuration: Configuration
    runs: tuple[CountedRun, ...]
    headline: float
    missing: tuple[str, ...]
    foreign: bool
    rank: float = math.nan
    rank_low: float = math.nan
    rank_high: float = math.nan

    @property
    def categories(self) -> int:
        """How many categories it covers."""
        return len({run.category for run in self.runs})

    @property
    def seeds(self) -> str:
        """Seeds per category, ``2`` or ``1–2``."""
        counts = Counter(category for category, _ in {(run.category, run.seed) for run in self.runs})
        fewest, most = min(counts.values()), max(counts.values())
        return f"{fewest}" if fewest == most else f"{fewest}–{most}"

    @property
    def marks(self) -> str:
        """The footnote marks of the row."""
        return "†" * bool(self.missing) + "‡" * self.foreign

    @property
    def short_of_average(self) -> str:
        """The short name, with the categories that averages of the row lack."""
        lacks = f" (lacks {', '.join(self.missing)})" if self.missing else ""
        return self.configuration.short + lacks

    @property
    def rank_text(self) -> str:
        """The rank; a dash for a row that cannot be compared."""
        return "–" if math.isnan(self.rank) else f"{self.rank:.0f}"

    @property
    def rank_interval(self) -> str:
        """The interval of the rank, ``1–3``; nothing where there is none, or it is the rank itself."""
        low, high = min(self.rank_low, self.rank), max(self.rank_high, self.rank)  # NaN stays
        return f"{low:.0f}–{high:.0f}" if high > low else ""


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """Everything that a report says of one dataset in numbers.

    Attributes
    ----------
    dataset : str
    protocol : Protocol
    runs : tuple of CountedRun
        Those that count, in the caller's order.
    rows : tuple of Row
        Best first.
    estimates : dict
        Every average.
    notes : list of str
        What a reader must know before comparing rows.
    """

    dataset: str
    protocol: Protocol
    runs: tuple[CountedRun, ...]
    rows: tuple[Row, ...]
    estimates: Estimates
    notes: list[str]
    _kept: dict[Callable[..., Any], Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def once(self, function: Callable[[Leaderboard], T]) -> T:
        """Return a function of the leaderboard that several reports need, computed at the first call."""
        if function not in self._kept:
            self._kept[function] = function(self)
        result: T = self._kept[function]
        return result

    @property
    def categories(self) -> list[str]:
        """The categories that any configuration covers."""
        return sorted({run.category for run in self.runs})

    @property
    def units(self) -> str:
        """What a bootstrap draws, in words."""
        return "groups of images" if any(run.grouped for run in self.runs) else "images"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The leaderboards of all datasets that were measured under a protocol."""

    protocol: Protocol
    leaderboards: tuple[Leaderboard, ...]


def summarise(runs: Sequence[Run], protocol: Protocol, labels: Mapping[str, str] = _NO_LABELS) -> Summary:
    """Summarise `runs` as measured under `protocol`, in the words of `labels`; see :mod:`hrbench.report.labels`.

    Raises
    ------
    HrbenchError
        If no run was measured under it, or a label is of nothing.
    """
    values = {run: values_of(run, protocol.name) for run in runs}
    described = [describe(run, protocol) for run in runs]
    unmeasured = [run for run in described if values[run.run].empty]
    if len(unmeasured) == len(runs):
        names = sorted({name for run in runs for name in protocol_digests(run)}) or ["none"]
        raise HrbenchError(f"no run holds records of protocol {protocol.name!r}; measured with: {', '.join(names)}")
    notes: dict[str, list[str]] = {name: [] for name in sorted({run.dataset for run in described})}
    counted = identify(without_duplicates([run for run in described if not values[run.run].empty], notes))
    counted = relabel(counted, labels) if labels else counted
    remarks(counted, unmeasured, protocol, notes)
    boards = []
    for dataset, texts in notes.items():
        of_dataset = [run for run in counted if run.dataset == dataset]
        if of_dataset:
            estimates = averages([(run, values[run.run]) for run in of_dataset])
            rows = _rank(of_dataset, estimates, protocol)
            boards.append(Leaderboard(dataset, protocol, tuple(of_dataset), rows, estimates, texts))
    return Summary(protocol, tuple(boards))


def averages(values: Sequence[tuple[CountedRun, pd.DataFrame]]) -> Estimates:
    """Average the values of each run on a dataset, from :func:`values_of`, over seeds, and then over categories.

    An average of which any run's times cannot be compared has none: without that run it would be another average.
    """
    tables = [table.assign(configuration=run.configuration.number, category=run.category) for run, table in values]
    categories = _mean_over_seeds(pd.concat(tables, ignore_index=True))
    fields = [field.name for field in dataclasses.fields(Estimate) if field.name != "untimed"]
    behind: dict[tuple[int, str], list[CountedRun]] = {}
    for run, _ in values:
        for place in ("", run.category):
            behind.setdefault((run.configuration.number, place), []).append(run)
    untimed = {key: why for key, same in behind.items() if (why := why_untimed(same))}
    estimates = {}
    for frame in (_mean_over_categories(categories).assign(category=""), categories):
        for row in frame.to_dict("records"):
            limit = None if math.isnan(row["fpr_limit"]) else float(row["fpr_limit"])
            key = (row["configuration"], row["category"], row["metric"], row["subset"], limit)
            why = untimed.get(key[:2], "") if row["metric"] in TIMES else ""
            known = ["total"] if why else fields
            estimates[key] = Estimate(**{name: row[name] for name in known}, untimed=why)
    return estimates


def values_of(run: Run, protocol: str) -> pd.DataFrame:
    """Return the run's records under the protocol of that name, and what it cost as further metrics."""
    records = run.records
    records = records[records["protocol"] == protocol]
    columns = [*_METRIC, "value", "error_bound", "ci_low", "ci_high", "n"]
    records = records[columns].astype({"metric": str, "subset": str})
    numeric = columns[2:]
    records[numeric] = records[numeric].astype(float)
    records["fpr_limit"] = records["fpr_limit"].round(9)
    if records.empty:
        return records
    costs = [(name, value) for name, value in costs_of(run).items() if name == THROUGHPUT or value == value]
    extra = pd.DataFrame(costs, columns=["metric", "value"]).assign(subset="all")
    return pd.concat([records, extra], ignore_index=True)


def _mean_over_seeds(values: pd.DataFrame) -> pd.DataFrame:
    keys = ["configuration", "category", *_METRIC]
    # The seeds see the same images, so their intervals do not shrink by averaging: the ends are averaged.
    table = _mean(values.rename(columns={"error_bound": "error", "ci_low": "low", "ci_high": "high"}), keys)
    table["n"] = values.groupby(keys, dropna=False)["n"].max().fillna(0).astype(int).to_numpy()
    few = table["metric"].isin(SIZED) & (table["subset"] != "all") & table["n"].between(1, MIN_COMPONENTS - 1)
    return table.assign(few=few)


def _mean_over_categories(categories: pd.DataFrame) -> pd.DataFrame:
    keys = ["configuration", *_METRIC]
    table = _mean(categories.assign(value=categories["value"].mask(categories["few"])), keys)
    groups = categories.groupby(keys, dropna=False)
    table["n"] = groups["n"].sum().to_numpy()
    # Where every category that has such defects has too few of them, the marker stays hollow.
    table["few"] = (table["value"].isna() & groups["few"].any().to_numpy()).to_numpy()
    table.loc[table["few"], "value"] = groups["value"].mean().to_numpy()[table["few"]]
    # The categories' images are independent: half-widths add in quadrature (MOVER; Zou and Donner, 2008).
    for end in ("low", "high"):
        squares = ((categories[end] - categories["value"]) ** 2).mask(categories["few"])
        total = squares.groupby([categories[key] for key in keys], dropna=False).sum()
        width = np.sqrt(total.to_numpy()) / table["defined"].clip(lower=1)
        have = table[end].notna()
        table[end] = (table["value"] + (width if end == "high" else -width)).where(have)
    return table


def _mean(values: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return mean, spread and counts of the defined values; an interval needs one under every value."""
    for name in ("error", "low", "high"):
        values = values.assign(**{name: values[name].mask(values["value"].isna())})
    groups = values.groupby(keys, dropna=False)
    table = groups["value"].agg(["mean", "min", "max", "count", "size"])
    table.columns = pd.Index(["value", "minimum", "maximum", "defined", "total"])
    for name in ("error", "low", "high"):
        complete = groups[name].count() == table["defined"]
        table[name] = groups[name].mean().where(complete)
    return table.reset_index()


def _rank(runs: Sequence[CountedRun], estimates: Estimates, protocol: Protocol) -> tuple[Row, ...]:
    """Order the rows of a dataset; only rows that cover all of its categories get a rank."""
    every = {run.category for run in runs}
    measured = {key[2] for key in estimates}
    metric = "image_auroc" if "aupro" not in measured else "aupro"
    limit = round(protocol.headline_fpr, 9) if metric == "aupro" else None
    by_configuration: dict[Configuration, list[CountedRun]] = {}
    for run in runs:
        by_configuration.setdefault(run.configuration, []).append(run)
    rows = []
    for configuration, same in by_configuration.items():
        headline = (configuration.number, "", metric, "all", limit)
        rows.append(
            Row(
                configuration=configuration,
                runs=tuple(sorted(same, key=lambda run: (run.category, run.seed))),
                headline=estimates.get(headline, NO_ESTIMATE).value,
                missing=tuple(sorted(every - {run.category for run in same})),
                foreign=configuration.rules not in ("", protocol.digest),
            )
        )
    rows.sort(key=lambda row: (math.inf if math.isnan(row.headline) else -row.headline, row.configuration.number))
    others = [row for row in rows if row.missing or row.foreign or math.isnan(row.headline)]
    comparable = [row for row in rows if row not in others]
    # Rows that print the same number share their rank.
    printed = [round(row.headline, 3) for row in comparable]
    intervals = headline_ranks([by_configuration[row.configuration] for row in comparable], protocol, metric)
    ranked = [
        dataclasses.replace(row, rank=1.0 + printed.index(value), rank_low=low, rank_high=high)
        for row, value, (low, high) in zip(comparable, printed, intervals, strict=True)
    ]
    return (*ranked, *others)
