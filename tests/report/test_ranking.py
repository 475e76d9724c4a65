import numpy as np
import pandas as pd
import pytest

from hrbench.report.rows import rank_interval
from hrbench.report.summary import summarise

from .conftest import CONFIGS


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
    board = summarise(runs, protocol).leaderboard.set_index("configuration")
    return {i: (row["rank_low"], row["rank_high"]) for i, row in board.iterrows()}, board


def test_ranks_get_intervals_over_common_draws(three, protocol):
    _, board = ranks(three, protocol)
    order = board.index.tolist()  # best first
    summary = summarise(three, protocol)
    for run, row in zip(three, summary.runs.sort_values("position").itertuples(), strict=True):
        # The first two overlap, the third is far behind.
        level = {order[0]: 0.80, order[1]: 0.79, order[2]: 0.3}[row.configuration]
        give(run, level, seed=row.configuration)
    found, board = ranks([type(run)(run.folder) for run in three], protocol)
    assert found[order[0]] == (1, 2)
    assert found[order[1]] == (1, 2)
    assert found[order[2]] == (3, 3)
    assert [rank_interval(row) for row in board.to_dict("records")] == ["1–2", "1–2", ""]


def test_a_row_over_other_images_gets_none(three, protocol):
    _, board = ranks(three, protocol)
    last = board.index[-1]
    for run, row in zip(three, summarise(three, protocol).runs.sort_values("position").itertuples(), strict=True):
        give(run, 0.5, seed=row.configuration, sample="other" if row.configuration == last else "same")
    found, _ = ranks([type(run)(run.folder) for run in three], protocol)
    assert [np.isnan(pair).all() for pair in found.values()] == [False, False, True]


def test_few_images_give_no_intervals(three, protocol):
    for index, run in enumerate(three):
        give(run, 0.5, seed=index, units=4)
    found, board = ranks([type(run)(run.folder) for run in three], protocol)
    assert all(np.isnan(pair).all() for pair in found.values())
    assert [rank_interval(row) for row in board.to_dict("records")] == [""] * 3


def test_runs_without_replicates_are_ranked_all_the_same(three, protocol):
    found, board = ranks(three, protocol)
    assert board["rank"].tolist() == [1, 2, 3]
    assert all(np.isnan(pair).all() for pair in found.values())
