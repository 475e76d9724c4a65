import numpy as np
import pandas as pd
import pytest

from .conftest import CONFIGS, board_of


def give(run, level, draws=200, spread=0.02, sample="same", units=40, seed=0):
    """Write headline replicates that scatter around `level`."""
    values = level + spread * np.random.default_rng(seed).normal(size=draws)
    key = {"metric": "aupro", "subset": "all", "fpr_limit": 0.05, "estimate": level, "units": units, "components": 90}
    pd.DataFrame([{**key, "sample": sample, "values": values, "protocol": "native"}]).to_parquet(
        run.folder / "replicates.parquet"
    )
    return run


@pytest.fixture
def three(make_run):
    return [make_run(config, category=c) for config in CONFIGS[:3] for c in ("a", "b")]


def ranks(runs, protocol):
    rows = board_of(runs, protocol).rows
    return {row.configuration.number: (row.rank_low, row.rank_high) for row in rows}, rows


def test_ranks_get_intervals_over_common_draws(three, protocol):
    _, rows = ranks(three, protocol)
    order = [row.configuration.number for row in rows]  # best first
    for run in board_of(three, protocol).runs:
        # The first two overlap, the third is far behind.
        number = run.configuration.number
        level = {order[0]: 0.80, order[1]: 0.79, order[2]: 0.3}[number]
        give(run.run, level, seed=number)
    intervals, rows = ranks([type(run)(run.folder) for run in three], protocol)
    assert intervals[order[0]] == (1, 2)
    assert intervals[order[1]] == (1, 2)
    assert intervals[order[2]] == (3, 3)
    assert [row.rank_interval for row in rows] == ["1–2", "1–2", ""]


def test_a_row_over_other_images_gets_none(three, protocol):
    _, rows = ranks(three, protocol)
    last = rows[-1].configuration.number
    for run in board_of(three, protocol).runs:
        number = run.configuration.number
        give(run.run, 0.5, seed=number, sample="other" if number == last else "same")
    intervals, _ = ranks([type(run)(run.folder) for run in three], protocol)
    assert [np.isnan(pair).all() for pair in intervals.values()] == [False, False, True]


def test_few_images_give_no_intervals(three, protocol):
    for index, run in enumerate(three):
        give(run, 0.5, seed=index, units=4)
    intervals, rows = ranks([type(run)(run.folder) for run in three], protocol)
    assert all(np.isnan(pair).all() for pair in intervals.values())
    assert [row.rank_interval for row in rows] == [""] * 3


def test_runs_without_replicates_are_ranked_all_the_same(three, protocol):
    intervals, rows = ranks(three, protocol)
    assert [row.rank for row in rows] == [1, 2, 3]
    assert all(np.isnan(pair).all() for pair in intervals.values())
