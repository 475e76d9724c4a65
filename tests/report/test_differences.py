"""Paired differences to the first row, from the replicates that runs keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hrbench.metrics.bootstrap import Replicates, paired_difference
from hrbench.protocol import Protocol
from hrbench.report import plots
from hrbench.report.differences import pair_sentence, paired_differences
from hrbench.report.marks import WHISKER
from hrbench.runs.store import Run

from .conftest import CONFIGS, board_of

Factory = Callable[..., Run]
KEYS: list[tuple[str, str, float]] = [
    ("aupro", "all", 0.05),
    *(("recall_matched", name, 0.05) for name in ("all", "tiny", "small", "medium", "large")),
    ("mean_recall", "all", np.nan),
]


@pytest.fixture
def make(make_run: Factory, alarming: Protocol) -> Callable[..., Run]:
    """Return a function that makes a run with replicates around a level."""

    def written(number: int, level: float, keys: Any = KEYS, sample: str = "same", **where: Any) -> Run:
        same_rules = {"native": {"version": 1, "sha256": alarming.digest}}
        run = make_run(CONFIGS[number], protocols=same_rules, **where)
        rng = np.random.default_rng(number)
        rows = [
            {
                "metric": metric, "subset": subset, "fpr_limit": limit, "estimate": level, "units": 40,
                "components": 90, "sample": sample, "values": level + 0.02 * rng.normal(size=200), "protocol": "native",
            }
            for metric, subset, limit in keys
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(run.folder / "replicates.parquet")
        return run

    return written


def test_differences_are_paired(make: Callable[..., Run], alarming: Protocol) -> None:
    runs = [make(0, 0.8), make(1, 0.75), make(2, 0.3)]
    board = board_of(runs, alarming)
    found = paired_differences(board)
    assert found is not None
    assert found.first is board.rows[0]
    assert [row for row, _ in found.rows] == list(board.rows[1:])
    assert found.metrics == (
        "AUPRO@0.05", "mean recall", "recall at 5 per 100, all", "tiny", "small", "medium", "large",
    )  # fmt: skip
    tables = {run.folder: Replicates.of_table(Run(run.folder).replicates) for run in runs}
    for row, entries in found.rows:
        pair = (tables[row.runs[0].run.folder], tables[found.first.runs[0].run.folder])
        expected = paired_difference(*pair).set_index(["metric", "subset"])
        for entry, key in zip(entries, [KEYS[0], KEYS[6], *KEYS[1:6]], strict=True):
            line = expected.loc[key[:2]]
            assert entry is not None
            assert (entry.value, entry.low, entry.high) == tuple(line[["difference", "ci_low", "ci_high"]])


def test_the_forest_fills_markers_of_intervals_without_zero(make: Callable[..., Run], alarming: Protocol) -> None:
    board = board_of([make(0, 0.8), make(1, 0.8), make(2, 0.3)], alarming)
    figure = plots.figures(board, plots.gather(board))["differences"]
    assert [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()] == [
        "AUPRO@0.05", "mean recall", "recall at 5 per 100, all", "tiny", "small", "medium", "large",
    ]  # fmt: skip
    faces = {
        line.get_markeredgecolor() != "#fefdfc": line.get_markerfacecolor()
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() not in ("", "None") and line.get_gid() != WHISKER
    }
    assert faces[True] == "#fefdfc"  # coloured edge: hollow
    assert faces[False] != "#fefdfc"
    heading = " ".join(figure.axes[0].get_title(loc="left").split())
    assert heading == f"difference to {board.rows[0].configuration.short}: right of zero is better"
    assert figure.axes[1].get_title(loc="left") == "recall at 5 per 100, by size"


def test_an_earlier_version_kept_one_metric(make: Callable[..., Run], alarming: Protocol) -> None:
    board = board_of([make(0, 0.8), make(1, 0.7, KEYS[:1]), make(2, 0.3)], alarming)
    found = paired_differences(board)
    assert found is not None
    numbers = [sum(entry is not None for entry in entries) for _, entries in found.rows]
    assert sorted(numbers) == ([1, 1] if found.first.runs[0].run.replicates.shape[0] == 1 else [1, 7])
    alone = board_of([make(n, 0.5, KEYS[:1], category="b") for n in (0, 1)], alarming)
    figure = plots.figures(alone, plots.gather(alone))["differences"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["AUPRO@0.05"]


def test_categories_are_averaged_over_what_they_share(make: Callable[..., Run], alarming: Protocol) -> None:
    runs = [make(number, level, category=c) for number, level in ((0, 0.8), (1, 0.6)) for c in "ab"]
    runs.append(make(2, 0.4, category="a"))  # lacks the other
    board = board_of(runs, alarming)
    found = paired_differences(board)
    assert found is not None
    ((_, entries),) = found.rows
    assert all(entry is not None and abs(entry.value) == pytest.approx(0.2) for entry in entries)
    of_a = paired_differences(board, "a")
    assert of_a is not None
    assert len(of_a.rows) == 2
    assert paired_differences(board_of(runs[:2], alarming)) is None


def test_two_rows_are_told_apart_or_not_in_a_sentence(make: Callable[..., Run], alarming: Protocol) -> None:
    runs = [make(0, 0.8), make(1, 0.8), make(2, 0.3)]
    first, second, last = board_of(runs, alarming).rows
    board = board_of(runs, alarming)
    a, b, c = (row.configuration.short for row in (first, second, last))
    assert runs[2].folder == last.runs[0].run.folder
    tied, apart = pair_sentence(board, first, second), pair_sentence(board, last, first)
    at = "recall at 5 false alarms per 100 good images"
    assert tied.startswith(
        f"{a} and {b} on the same images: in {at} they cannot be told apart ({a} minus {b} +0.000, 95"
    )
    assert "in AUPRO@0.05 they cannot be told apart (+0.000, 95 % interval -0." in tied
    assert apart.startswith(f"{c} and {a} on the same images: in {at} {a} is better ({c} minus {a} -0.500, 95")
    (expected,) = paired_difference(
        *(Replicates.of_table(Run(row.runs[0].run.folder).replicates) for row in (last, first))
    ).query("metric == 'aupro'")[["ci_low", "ci_high"]].to_numpy().tolist()  # fmt: skip
    assert apart.endswith("in AUPRO@0.05 {} is better (-0.500, 95 % interval {:+.3f} to {:+.3f}).".format(a, *expected))
    alone = board_of([make(0, 0.8, KEYS[1:], category="b"), make(1, 0.2, category="b")], alarming)
    assert "AUPRO" not in pair_sentence(alone, *alone.rows[:2])


def test_no_plot_without_common_images(make: Callable[..., Run], make_run: Factory, alarming: Protocol) -> None:
    other = board_of([make(0, 0.8), make(1, 0.7, sample="other")], alarming)
    assert paired_differences(other) is None
    assert pair_sentence(other, *other.rows) == ""
    assert "differences" not in plots.figures(other, plots.gather(other))
    bare = board_of([make_run(CONFIGS[0], category="b"), make_run(CONFIGS[1], category="b")], alarming)
    assert paired_differences(bare) is None
    assert pair_sentence(bare, *bare.rows) == ""
