"""How firm a rank is: the ranks that a configuration takes over the bootstrap replicates of the headline metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from hrbench.metrics.bootstrap import Replicates, average, rank_intervals
from hrbench.protocol import Protocol
from hrbench.report.configurations import CountedRun

__all__ = ["headline_ranks"]


def headline_ranks(
    rows: Sequence[Sequence[CountedRun]], protocol: Protocol, metric: str = "aupro"
) -> list[tuple[float, float]]:
    """Return the interval of each rank, where replicates over the same images are there.

    In every replicate the same images are drawn for all configurations; values are averaged over seeds, then over
    categories, and ranked.

    Parameters
    ----------
    rows : sequence of sequence of CountedRun
        Of each row of a dataset that has a rank, best first, its runs.
    protocol : Protocol
    metric : str
        That the rows are ranked by.

    Returns
    -------
    list of (float, float)
        Lowest and highest rank of each row; NaN for rows without an interval.
    """
    replicates = {}
    for number, runs in enumerate(rows):
        by_category = groupby(sorted(runs, key=lambda run: run.category), key=lambda run: run.category)
        parts = [_average(list(same), protocol, metric) for _, same in by_category]
        present = [part for part in parts if part is not None]
        if len(present) == len(parts):
            replicates[str(number)] = average(present)
    samples = [part.sample for part in replicates.values()]
    paired = {number: part for number, part in replicates.items() if part.sample == samples[0]}
    intervals = [(math.nan, math.nan)] * len(rows)
    if len(paired) >= 2:
        limit = protocol.headline_fpr if metric == "aupro" else None
        table = rank_intervals(paired, metric, fpr_limit=limit, level=protocol.bootstrap.level)
        for number, low, high in table[["method", "rank_low", "rank_high"]].itertuples(index=False):
            intervals[int(number)] = (float(low), float(high))
    return intervals


def _average(runs: Sequence[CountedRun], protocol: Protocol, metric: str) -> Replicates | None:
    """Average the replicates of the seeds of one category; None if any seed has none."""
    parts = []
    for run in runs:
        table = run.run.replicates
        rows = table[(table["protocol"] == protocol.name) & (table["metric"] == metric)]
        if rows.empty:
            return None
        parts.append(Replicates.of_table(rows))
    return average(parts) if len({len(part.values) for part in parts}) == 1 else None
