"""From runs to tidy frames: the one source of every table, page and plot.

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
from hrbench.report.configurations import THROUGHPUT, costs_of, describe, identify, remarks, without_duplicates
from hrbench.report.ranking import headline_ranks
from hrbench.runs.store import Run

__all__ = ["MIN_COMPONENTS", "SIZED", "THROUGHPUT", "Cell", "Summary", "averages", "lookup", "summarise", "values_of"]

MIN_COMPONENTS = 3
"""A size bin with fewer components than this gets no number."""

SIZED = ("aupro", "recall", "recall_decision")
"""Metrics by size of defect that the rule applies to."""

_METRIC = ["metric", "subset", "fpr_limit"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a table and what stands behind it.

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


@dataclasses.dataclass(frozen=True)
class Summary:
    """Everything that a report says in numbers.

    Attributes
    ----------
    protocol : Protocol
    runs : DataFrame
        One row per run that counts: `position` (in the caller's list), configuration and origin.
    configurations : DataFrame
        One row per configuration, indexed by its number: the parts of its name, `label`, `short` (only what
        tells it from the others) and whether its weights are `random`.
    leaderboard : DataFrame
        One row per dataset and configuration, best first: `rank` (NaN when not comparable) and the interval
        `rank_low` to `rank_high` where there is one, `seeds`, `categories` and the `missing` ones.
    categories, datasets : DataFrame
        One row per dataset, configuration (, category), metric, subset and limit: fields of :class:`Cell`.
    notes : dict of str to list of str
        Per dataset, what a reader must know before comparing rows.
    """

    protocol: Protocol
    runs: pd.DataFrame
    configurations: pd.DataFrame
    leaderboard: pd.DataFrame
    categories: pd.DataFrame
    datasets: pd.DataFrame
    notes: dict[str, list[str]]

    def category_names(self, dataset: str) -> list[str]:
        """Return the categories of `dataset` that any configuration covers."""
        return sorted(self.runs.loc[self.runs["dataset"] == dataset, "category"].unique())


Cells = Mapping[tuple[int, str, str, str, float | None], Cell]


def lookup(summary: Summary, dataset: str) -> Cells:
    """Return the cells of a dataset by (configuration, category or "", metric, subset, FPR limit or None)."""
    cells: dict[tuple[int, str, str, str, float | None], Cell] = {}
    fields = [field.name for field in dataclasses.fields(Cell)]
    for frame in (summary.datasets.assign(category=""), summary.categories):
        for row in frame[frame["dataset"] == dataset].to_dict("records"):
            limit = None if math.isnan(row["fpr_limit"]) else float(row["fpr_limit"])
            key = (row["configuration"], row["category"], row["metric"], row["subset"], limit)
            cells[key] = Cell(**{name: row[name] for name in fields})
    return cells


def summarise(runs: Sequence[Run], protocol: Protocol) -> Summary:
    """Summarise `runs` as measured under `protocol`.

    Raises
    ------
    HrbenchError
        If no run was measured under it.
    """
    described = pd.DataFrame([describe(position, run, protocol) for position, run in enumerate(runs)])
    tables = [values_of(run, protocol.name) for run in runs]
    measured = [not table.empty for table in tables]
    if not any(measured):
        found = sorted({name for run in runs for name in run.config.get("protocols", {})}) or ["none"]
        raise HrbenchError(f"no run holds records of protocol {protocol.name!r}; measured with: {', '.join(found)}")
    described["measured"] = measured
    notes: dict[str, list[str]] = {name: [] for name in sorted(described["dataset"].unique())}
    kept = without_duplicates(described[described["measured"]], notes)
    kept, configurations = identify(kept)
    remarks(kept, described, configurations, protocol, notes)

    categories, datasets = averages(tables, kept)
    leaderboard = _rank(kept, datasets, protocol)
    firm = headline_ranks(runs, kept, leaderboard[leaderboard["rank"].notna()], protocol)
    leaderboard = leaderboard.merge(firm, on=["dataset", "configuration"], how="left")
    return Summary(protocol, kept, configurations, leaderboard, categories, datasets, notes)


def averages(
    tables: Sequence[pd.DataFrame] | Mapping[int, pd.DataFrame], runs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average values over seeds, and then over categories.

    Parameters
    ----------
    tables : sequence or mapping of int to DataFrame
        From :func:`values_of`, by the position of the run.
    runs : DataFrame
        Position, dataset, configuration and category of the runs that count.

    Returns
    -------
    categories, datasets : DataFrame
        As in :class:`Summary`.
    """
    values = pd.concat([tables[i].assign(position=i) for i in runs["position"]], ignore_index=True)
    names = ["position", "dataset", "configuration", "category"]
    values = values.merge(runs[names], on="position", validate="many_to_one")
    categories = _mean_over_seeds(values)
    return categories, _mean_over_categories(categories)


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
    costs = [(name, value) for name, value in costs_of(run.config).items() if name == THROUGHPUT or value == value]
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


def _rank(runs: pd.DataFrame, datasets: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """Order the rows of each dataset; only rows that cover all of its categories get a rank."""
    head = datasets[(datasets["metric"] == "aupro") & (datasets["subset"] == "all")]
    head = head[np.isclose(head["fpr_limit"], protocol.headline_fpr)]
    score = head.set_index(["dataset", "configuration"])["value"]
    rows = []
    for (dataset, configuration), group in runs.groupby(["dataset", "configuration"]):
        every = set(runs.loc[runs["dataset"] == dataset, "category"])
        seeds = group.groupby("category")["seed"].nunique()
        rows.append(
            {
                "dataset": dataset,
                "configuration": configuration,
                "headline": score.get((dataset, configuration), math.nan),
                "seeds": f"{seeds.min()}" if seeds.nunique() == 1 else f"{seeds.min()}–{seeds.max()}",
                "categories": len(seeds),
                "missing": tuple(sorted(every - set(seeds.index))),
                "foreign": bool(group["rules"].iloc[0] not in ("", protocol.digest)),
            }
        )
    table = pd.DataFrame(rows)
    comparable = (table["missing"].str.len() == 0) & ~table["foreign"]
    # Rows that print the same number share their rank.
    printed = table["headline"].round(3).where(comparable)
    table["rank"] = printed.groupby(table["dataset"]).rank(ascending=False, method="min")
    table["unranked"] = table["rank"].isna()
    order = ["dataset", "unranked", "headline", "configuration"]
    table = table.sort_values(order, ascending=[True, True, False, True], na_position="last")
    return table.drop(columns="unranked").reset_index(drop=True)
