"""From runs to averages: the one source of every table, page and plot.

A *configuration* is what a leaderboard row stands for: method, preset, view, weights and options, measured
under one set of rules. Its value in a category is the mean over its seeds, and its value on a dataset the
plain (macro) mean over the categories. Nothing is left out silently: every mean carries how many values it
had and how many it should have had.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.report.configurations import (
    THROUGHPUT,
    Configuration,
    CountedRun,
    costs_of,
    describe,
    identify,
    protocol_digests,
    remarks,
    without_duplicates,
)
from hrbench.report.ranking import headline_ranks
from hrbench.store import Run

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
"""A size bin with fewer components than this gets no number."""

SIZED = ("aupro", "recall", "recall_decision")
"""Metrics by size of defect that the rule applies to."""

_METRIC = ["metric", "subset", "fpr_limit"]


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
    headline : float
        What it is ranked by.
    rank, rank_low, rank_high : float
        Rank, and the interval of it over the bootstrap draws; NaN where not comparable, or where there is none.
    seeds : str
        Seeds per category, ``2`` or ``1–2``.
    categories : int
        How many it covers.
    missing : tuple of str
        Those that it does not.
    foreign : bool
        Whether it was measured under other rules than the report's.
    """

    configuration: Configuration
    headline: float
    rank: float
    rank_low: float
    rank_high: float
    seeds: str
    categories: int
    missing: tuple[str, ...]
    foreign: bool

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
class Summary:
    """Everything that a report says in numbers.

    Attributes
    ----------
    protocol : Protocol
    runs : tuple of CountedRun
        Those that count, in the caller's order.
    rows : dict of str to tuple of Row
        The leaderboard of each dataset, best first.
    estimates : dict of str to dict
        Per dataset, every average.
    notes : dict of str to list of str
        Per dataset, what a reader must know before comparing rows; also of datasets that no run counts for.
    """

    protocol: Protocol
    runs: tuple[CountedRun, ...]
    rows: Mapping[str, tuple[Row, ...]]
    estimates: Mapping[str, Estimates]
    notes: Mapping[str, list[str]]

    def category_names(self, dataset: str) -> list[str]:
        """Return the categories of `dataset` that any configuration covers."""
        return sorted({run.category for run in self.runs if run.dataset == dataset})

    def runs_of(self, dataset: str, row: Row) -> list[CountedRun]:
        """Return the runs behind a row, by category and seed."""
        runs = [run for run in self.runs if run.dataset == dataset and run.configuration == row.configuration]
        return sorted(runs, key=lambda run: (run.category, run.seed))


def summarise(runs: Sequence[Run], protocol: Protocol) -> Summary:
    """Summarise `runs` as measured under `protocol`.

    Raises
    ------
    HrbenchError
        If no run was measured under it.
    """
    values = {run: values_of(run, protocol.name) for run in runs}
    described = [describe(run, protocol) for run in runs]
    unmeasured = [run for run in described if values[run.run].empty]
    if len(unmeasured) == len(runs):
        names = sorted({name for run in runs for name in protocol_digests(run)}) or ["none"]
        raise HrbenchError(f"no run holds records of protocol {protocol.name!r}; measured with: {', '.join(names)}")
    notes: dict[str, list[str]] = {name: [] for name in sorted({run.dataset for run in described})}
    counted = identify(without_duplicates([run for run in described if not values[run.run].empty], notes))
    remarks(counted, unmeasured, protocol, notes)
    estimates = averages([(run, values[run.run]) for run in counted])
    rows = {}
    for dataset in sorted(estimates):
        own = [run for run in counted if run.dataset == dataset]
        rows[dataset] = _rank(own, estimates[dataset], protocol)
    return Summary(protocol, tuple(counted), rows, estimates, notes)


def averages(values: Sequence[tuple[CountedRun, pd.DataFrame]]) -> dict[str, Estimates]:
    """Average values over seeds, and then over categories.

    Parameters
    ----------
    values : sequence of (CountedRun, DataFrame)
        Each run with its values from :func:`values_of`.

    Returns
    -------
    dict of str to dict
        By dataset, as in :class:`Summary`.
    """
    tables = [
        table.assign(dataset=run.dataset, configuration=run.configuration.number, category=run.category)
        for run, table in values
    ]
    categories = _mean_over_seeds(pd.concat(tables, ignore_index=True))
    datasets = _mean_over_categories(categories)
    fields = [field.name for field in dataclasses.fields(Estimate)]
    estimates: dict[str, dict[tuple[int, str, str, str, float | None], Estimate]] = {}
    for frame in (datasets.assign(category=""), categories):
        for row in frame.to_dict("records"):
            limit = None if math.isnan(row["fpr_limit"]) else float(row["fpr_limit"])
            key = (row["configuration"], row["category"], row["metric"], row["subset"], limit)
            estimates.setdefault(row["dataset"], {})[key] = Estimate(**{name: row[name] for name in fields})
    return dict(estimates)


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
    keys = ["dataset", "configuration", "category", *_METRIC]
    # The seeds see the same images, so their intervals do not shrink by averaging: the ends are averaged.
    table = _mean(values.rename(columns={"error_bound": "error", "ci_low": "low", "ci_high": "high"}), keys)
    table["n"] = values.groupby(keys, dropna=False)["n"].max().fillna(0).astype(int).to_numpy()
    few = table["metric"].isin(SIZED) & (table["subset"] != "all") & table["n"].between(1, MIN_COMPONENTS - 1)
    return table.assign(few=few)


def _mean_over_categories(categories: pd.DataFrame) -> pd.DataFrame:
    keys = ["dataset", "configuration", *_METRIC]
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
    limit = round(protocol.headline_fpr, 9)
    rows = []
    for configuration in {run.configuration.number: run.configuration for run in runs}.values():
        seeds: dict[str, set[int]] = {}
        for run in runs:
            if run.configuration == configuration:
                seeds.setdefault(run.category, set()).add(run.seed)
        fewest, most = (end(len(numbers) for numbers in seeds.values()) for end in (min, max))
        rows.append(
            Row(
                configuration=configuration,
                headline=estimates.get((configuration.number, "", "aupro", "all", limit), NO_ESTIMATE).value,
                rank=math.nan,
                rank_low=math.nan,
                rank_high=math.nan,
                seeds=f"{fewest}" if fewest == most else f"{fewest}–{most}",
                categories=len(seeds),
                missing=tuple(sorted(every - set(seeds))),
                foreign=configuration.rules not in ("", protocol.digest),
            )
        )
    comparable = [row for row in rows if not (row.missing or row.foreign or math.isnan(row.headline))]
    comparable.sort(key=lambda row: (-row.headline, row.configuration.number))
    # Rows that print the same number share their rank.
    printed = [round(row.headline, 3) for row in comparable]
    own = [[run for run in runs if run.configuration == row.configuration] for row in comparable]
    intervals = headline_ranks(own, protocol)
    ranked = [
        dataclasses.replace(row, rank=1.0 + printed.index(value), rank_low=low, rank_high=high)
        for row, value, (low, high) in zip(comparable, printed, intervals, strict=True)
    ]
    others = [row for row in rows if row not in comparable]
    others.sort(key=lambda row: (math.inf if math.isnan(row.headline) else -row.headline, row.configuration.number))
    return (*ranked, *others)
