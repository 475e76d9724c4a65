"""How firm a rank is: the ranks that a configuration takes over the bootstrap replicates of the headline metric."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hrbench.metrics.bootstrap import Replicates, average, rank_intervals
from hrbench.protocol import Protocol
from hrbench.runs.store import Run

__all__ = ["headline_ranks"]

_METRIC = "aupro"


def headline_ranks(
    runs: Sequence[Run], counted: pd.DataFrame, ranked: pd.DataFrame, protocol: Protocol
) -> pd.DataFrame:
    """Return the interval of each rank, where replicates over the same images are there.

    In every replicate the same images are drawn for all configurations; values are averaged over seeds, then over
    categories, and ranked.

    Parameters
    ----------
    runs : sequence of Run
    counted : DataFrame
        Position in `runs`, dataset, configuration and category of the runs that count.
    ranked : DataFrame
        Dataset and configuration of the rows that have a rank, best first.
    protocol : Protocol

    Returns
    -------
    DataFrame
        Columns ``dataset, configuration, rank_low, rank_high``; rows without an interval are left out.
    """
    found = []
    for dataset, rows in ranked.groupby("dataset", sort=False):
        methods: dict[str, Replicates] = {}
        for configuration in rows["configuration"]:
            own = counted[(counted["dataset"] == dataset) & (counted["configuration"] == configuration)]
            parts = [_average(runs, group["position"], protocol) for _, group in own.groupby("category")]
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                methods[str(configuration)] = average(whole)
        first = next(iter(methods.values()), None)
        same = {name: part for name, part in methods.items() if first is not None and part.sample == first.sample}
        if len(same) < 2:
            continue
        table = rank_intervals(same, _METRIC, fpr_limit=protocol.headline_fpr, level=protocol.bootstrap.level)
        table = table.assign(dataset=dataset, configuration=table["method"].astype(int))
        found.append(table[["dataset", "configuration", "rank_low", "rank_high"]].dropna())
    empty = pd.DataFrame(columns=["dataset", "configuration", "rank_low", "rank_high"])
    return pd.concat(found, ignore_index=True) if found else empty


def _average(runs: Sequence[Run], positions: Sequence[int], protocol: Protocol) -> Replicates | None:
    """Average the replicates of the seeds of one category; None if any seed has none."""
    parts = []
    for position in positions:
        table = runs[position].replicates
        own = table[(table["protocol"] == protocol.name) & (table["metric"] == _METRIC)]
        if own.empty:
            return None
        parts.append(Replicates.of_table(own))
    return average(parts) if len({len(part.values) for part in parts}) == 1 else None
