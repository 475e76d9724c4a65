from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.report.summary import Cell, Summary, lookup, summarise
from hrbench.runs.store import Run

from .conftest import CONFIGS, DATASETS

Factory = Callable[..., Run]
HEAD = ("aupro", "all", 0.05)


def board(summary: Summary, dataset: str) -> pd.DataFrame:
    rows = summary.leaderboard[summary.leaderboard["dataset"] == dataset]
    return rows.join(summary.configurations, on="configuration")


def record(run: Run, metric: str, subset: str, limit: float) -> float:
    table = run.records
    same = (table["metric"] == metric) & (table["subset"] == subset) & (table["fpr_limit"] == limit)
    return float(table.loc[same, "value"].iloc[0])


def edit(run: Run, column: str, value: object, **where: object) -> None:
    """Change records in memory."""
    table = run.records
    mask = np.ones(len(table), bool)
    for name, wanted in where.items():
        mask &= (table[name] == wanted).to_numpy()
    table.loc[mask, column] = value


def test_category_value_is_the_mean_over_seeds_and_dataset_value_the_mean_over_categories(
    make_run: Factory, protocol: Protocol
) -> None:
    runs = [make_run(category=c, seed=s) for c, seeds in {"a": (0, 1), "b": (0,)}.items() for s in seeds]
    cells = lookup(summarise(runs, protocol), "bsdata")
    a0, a1, b0 = (record(run, *HEAD) for run in runs)
    a = cells[0, "a", *HEAD]
    assert a.value == pytest.approx((a0 + a1) / 2, abs=1e-15)
    assert (a.minimum, a.maximum, a.defined, a.total) == (min(a0, a1), max(a0, a1), 2, 2)
    assert cells[0, "", *HEAD].value == pytest.approx(((a0 + a1) / 2 + b0) / 2, abs=1e-15)
    assert cells[0, "", *HEAD].n == 240


def test_ranks_only_rows_with_all_categories_and_names_the_missing_ones(runs: list[Run], protocol: Protocol) -> None:
    rows = board(summarise(runs, protocol), "weave & grain")
    assert rows["method"].tolist() == ["fastflow", "fastflow", "nasty", "l2bt"]
    assert rows["rank"].tolist()[:3] == [1, 2, 3]
    assert math.isnan(rows["rank"].iloc[3])
    assert rows["missing"].tolist() == [(), (), (), ("wood",)]
    assert rows["categories"].tolist() == [3, 3, 3, 2]
    assert rows["seeds"].tolist() == ["2", "2", "1–2", "2"]


def test_each_dataset_has_rows_of_its_own(runs: list[Run], protocol: Protocol) -> None:
    summary = summarise(runs, protocol)
    assert list(summary.notes) == sorted(DATASETS)
    assert board(summary, "bsdata")["rank"].tolist() == [1, 2, 3, 4]


def test_equal_prints_share_a_rank(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(config) for config in CONFIGS[:2]]
    for run, value in zip(runs, (0.70001, 0.70004), strict=True):
        edit(run, "value", value, metric="aupro", subset="all", fpr_limit=0.05)
    assert board(summarise(runs, protocol), "bsdata")["rank"].tolist() == [1, 1]


def test_weights_that_lay_elsewhere_are_the_same_weights(make_run: Factory, protocol: Protocol) -> None:
    moved = dataclasses.replace(CONFIGS[0], weights=CONFIGS[0].weights.replace("/data/", "/home/me/"))
    summary = summarise([make_run(seed=0), make_run(moved, seed=1)], protocol)
    assert len(summary.configurations) == 1
    assert summary.configurations["weights"].tolist() == ["mobilenetv2_100 file"]


def test_rows_that_would_look_alike_carry_a_digest(make_run: Factory, protocol: Protocol) -> None:
    run, other = make_run(seed=0), make_run(seed=1)
    other.config["method"]["options"]["steps"] = 99
    table = summarise([run, other], protocol).configurations
    assert len(table) == 2
    assert table["label"].is_unique
    assert table["label"].str.contains(r"#[0-9a-f]{6}").all()


def test_short_labels_tell_only_what_differs(make_run: Factory, protocol: Protocol) -> None:
    table = summarise([make_run(CONFIGS[0]), make_run(CONFIGS[1])], protocol).configurations
    assert sorted(table["short"]) == ["FastFlow · tiled:256:64", "FastFlow · whole:512"]


def test_random_weights_are_named_in_every_label(make_run: Factory, protocol: Protocol) -> None:
    table = summarise([make_run(CONFIGS[2])], protocol).configurations
    assert table["random"].tolist() == [True]
    assert "RANDOM" in table["short"].iloc[0]
    assert "RANDOM" in table["label"].iloc[0]


def test_the_newest_of_two_equal_runs_counts(make_run: Factory, protocol: Protocol) -> None:
    old, new = make_run(seed=0), make_run(seed=1)
    new.config["seed"] = 0
    summary = summarise([new, old], protocol)
    assert lookup(summary, "bsdata")[0, "ballscrew", *HEAD].value == record(new, *HEAD)
    assert "newest" in summary.notes["bsdata"][0]


def test_other_rules_are_a_row_of_their_own_without_rank(make_run: Factory, protocol: Protocol) -> None:
    other = make_run(seed=1, protocols={"native": {"version": 0, "sha256": "abc"}})
    summary = summarise([make_run(seed=0), other], protocol)
    rows = board(summary, "bsdata")
    assert rows["foreign"].tolist() == [False, True]
    assert math.isnan(rows["rank"].iloc[1])
    assert any("other rules" in note for note in summary.notes["bsdata"])


def test_notes_differing_images_and_devices(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(), make_run(CONFIGS[1], device="cuda")]
    assert "cpu (2 threads); cuda" in " ".join(summarise(runs, protocol).notes["bsdata"])
    runs[1].config["dataset"]["index_sha256"] = "ffff"
    summary = summarise(runs, protocol)
    assert "1 run on other images than the newest run's left out" in " ".join(summary.notes["bsdata"])
    assert len(board(summary, "bsdata")) == 1


def test_runs_without_records_of_the_protocol_are_named(make_run: Factory, protocol: Protocol) -> None:
    lacking = make_run(CONFIGS[2])
    edit(lacking, "protocol", "lowres256")
    summary = summarise([make_run(), lacking], protocol)
    assert "l2bt" in summary.notes["bsdata"][0]
    assert len(summary.leaderboard) == 1


def test_no_record_at_all_is_an_error_that_names_the_protocol(make_run: Factory, protocol: Protocol) -> None:
    run = make_run()
    edit(run, "protocol", "lowres256")
    with pytest.raises(HrbenchError, match="'native'"):
        summarise([run], protocol)


def test_a_bin_with_fewer_than_three_components_is_kept_but_not_shown(make_run: Factory, protocol: Protocol) -> None:
    cells = lookup(summarise([make_run(category="wood")], protocol), "bsdata")
    thin = [c for k, c in cells.items() if k[1] == "wood" and k[2] == "aupro" and k[3] == "d16-32"]
    assert thin
    for cell in thin:
        assert cell.n < 3
        assert cell.few
        assert math.isnan(cell.shown)
        assert not math.isnan(cell.value)


def test_few_components_do_not_enter_the_average_over_categories(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category="wood"), make_run(category="fabric")]
    cells = lookup(summarise(runs, protocol), "bsdata")
    key = ("aupro", "d16-32", 0.05)
    average, wood, fabric = (cells[0, name, *key] for name in ("", "wood", "fabric"))
    assert average.value == fabric.value
    assert (average.defined, average.total, average.few) == (1, 2, False)
    assert average.n == wood.n + fabric.n


def test_an_undefined_category_is_counted_not_hidden(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category="a"), make_run(category="b")]
    edit(runs[0], "value", math.nan, metric="iou")
    cell = lookup(summarise(runs, protocol), "bsdata")[0, "", "iou", "all", None]
    assert (cell.defined, cell.total) == (1, 2)
    assert not math.isnan(cell.value)


def test_interval_of_an_average_adds_half_widths_in_quadrature(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category=c, intervals=True) for c in ("a", "b")]
    cells = lookup(summarise(runs, protocol), "bsdata")
    one, average = cells[0, "a", *HEAD], cells[0, "", *HEAD]
    assert (one.value - one.low, one.high - one.value) == pytest.approx((0.02, 0.01))
    assert average.value - average.low == pytest.approx(0.02 / math.sqrt(2))
    assert average.high - average.value == pytest.approx(0.01 / math.sqrt(2))


def test_an_average_has_no_interval_unless_all_its_parts_have(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category="a", intervals=True), make_run(category="b")]
    assert math.isnan(lookup(summarise(runs, protocol), "bsdata")[0, "", *HEAD].low)


def test_error_bounds_average(make_run: Factory, protocol: Protocol) -> None:
    cells = lookup(summarise([make_run(category=c) for c in "ab"], protocol), "bsdata")
    assert cells[0, "", *HEAD].error == pytest.approx(3.2e-7)


def test_absent_optional_entries_are_no_obstacle(make_run: Factory, protocol: Protocol) -> None:
    run = make_run(cost=None, threshold=None, environment=None)
    for name in ("title", "paper", "weights", "options"):
        del run.config["method"][name]
    summary = summarise([run], protocol)
    assert summary.configurations["weights"].tolist() == ["none"]
    assert lookup(summary, "bsdata")[0, "", "megapixels_per_second", "all", None].defined == 0


def test_empty_cell_shows_nothing() -> None:
    assert math.isnan(Cell().shown)
