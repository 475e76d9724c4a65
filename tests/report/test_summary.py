from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.report.configurations import Configuration, card_facts
from hrbench.report.summary import NO_ESTIMATE, Estimates, Leaderboard, summarise
from hrbench.report.text import csv_table
from hrbench.runs.store import Run

from .conftest import CONFIGS, DATASETS, alter, board_of

Factory = Callable[..., Run]
HEAD = ("aupro", "all", 0.05)


def estimates(runs: list[Run], protocol: Protocol) -> Estimates:
    return board_of(runs, protocol).estimates


def configurations(board: Leaderboard) -> list[Configuration]:
    return sorted({run.configuration for run in board.runs}, key=lambda configuration: configuration.number)


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
    cells = estimates(runs, protocol)
    a0, a1, b0 = (record(run, *HEAD) for run in runs)
    a = cells[0, "a", *HEAD]
    assert a.value == pytest.approx((a0 + a1) / 2, abs=1e-15)
    assert (a.minimum, a.maximum, a.defined, a.total) == (min(a0, a1), max(a0, a1), 2, 2)
    assert cells[0, "", *HEAD].value == pytest.approx(((a0 + a1) / 2 + b0) / 2, abs=1e-15)
    assert cells[0, "", *HEAD].n == 240


def test_ranks_only_rows_with_all_categories_and_names_the_missing_ones(runs: list[Run], protocol: Protocol) -> None:
    rows = board_of(runs, protocol, "weave & grain").rows
    assert [row.configuration.method for row in rows] == ["fastflow", "fastflow", "nasty", "l2bt"]
    assert [row.rank for row in rows[:3]] == [1, 2, 3]
    assert math.isnan(rows[3].rank)
    assert [row.missing for row in rows] == [(), (), (), ("wood",)]
    assert [row.categories for row in rows] == [3, 3, 3, 2]
    assert [row.seeds for row in rows] == ["2", "2", "1–2", "2"]


def test_each_dataset_has_rows_of_its_own(runs: list[Run], protocol: Protocol) -> None:
    boards = summarise(runs, protocol).leaderboards
    assert [board.dataset for board in boards] == sorted(DATASETS)
    assert [row.rank for row in boards[0].rows] == [1, 2, 3, 4]


def test_equal_prints_share_a_rank(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(config) for config in CONFIGS[:2]]
    for run, value in zip(runs, (0.70001, 0.70004), strict=True):
        edit(run, "value", value, metric="aupro", subset="all", fpr_limit=0.05)
    assert [row.rank for row in board_of(runs, protocol).rows] == [1, 1]


def test_weights_that_lay_elsewhere_are_the_same_weights(make_run: Factory, protocol: Protocol) -> None:
    moved = dataclasses.replace(CONFIGS[0], weights=CONFIGS[0].weights.replace("/data/", "/home/me/"))
    board = board_of([make_run(seed=0), make_run(moved, seed=1)], protocol)
    assert [configuration.weights for configuration in configurations(board)] == ["mobilenetv2_100 file"]


def test_weights_of_two_networks_that_read_alike_are_said_once(make_run: Factory, protocol: Protocol) -> None:
    run, text = make_run(), "resnet18 bundled sha256:5fdc2bbf28f0b1ed"
    alter(run, "method.weights", {"teacher": text, "second_teacher": text, "other": "resnet50 random"})
    (configuration,) = configurations(board_of([run], protocol))
    assert configuration.weights == "resnet18 bundled, resnet50 RANDOM"


def test_rows_that_would_look_alike_say_which_options_differ(make_run: Factory, protocol: Protocol) -> None:
    run, other = make_run(seed=0), make_run(seed=1)
    alter(other, "method.options.steps", 99)
    first, second = configurations(board_of([run, other], protocol))
    assert {first.label.split(" · ")[-1], second.label.split(" · ")[-1]} == {"steps = 20", "steps = 99"}
    assert {first.short, second.short} == {"FastFlow · steps = 20", "FastFlow · steps = 99"}


def test_another_held_out_share_is_another_row(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(seed=seed) for seed in range(4)]
    for run, share in zip(runs, (None, 0.0, 0.25, 0.250000001), strict=True):
        if share is not None:
            alter(run, "dataset.held_out_share", share)
    found = configurations(board_of(runs, protocol))
    assert [(of.held_out, of.held_out_text) for of in found] == [
        (None, ""),
        (0.0, "none held out"),
        (0.25, "25 % held out"),
        (0.250000001, "25 % held out"),
    ]
    assert [of.weights_text.partition(" #")[0] for of in found] == [
        "mobilenetv2_100 file",
        "mobilenetv2_100 file, none held out",
        *["mobilenetv2_100 file, 25 % held out"] * 2,
    ]
    assert found[1].short == "FastFlow · none held out"
    assert len({of.label for of in found}) == len({of.short for of in found}) == 4


def test_a_table_of_numbers_has_the_held_out_share_where_it_is_not_the_default(
    make_run: Factory, protocol: Protocol
) -> None:
    run, other = make_run(seed=0), make_run(seed=1)
    assert "held_out" not in csv_table(summarise([run], protocol)).splitlines()[0].split(",")
    alter(other, "dataset.held_out_share", 0.0)
    table = pd.read_csv(io.StringIO(csv_table(summarise([run, other], protocol))))
    assert set(table["held_out"].fillna(-1)) == {-1, 0}


def test_what_no_short_text_tells_apart_carries_a_digest(make_run: Factory, protocol: Protocol) -> None:
    run, other = make_run(seed=0), make_run(seed=1)
    alter(other, "method.options.steps", list(range(100)))
    texts = [configuration.differs for configuration in configurations(board_of([run, other], protocol))]
    assert sorted(len(text) for text in texts) == [7, len("steps = 20")]
    assert any(re.fullmatch(r"#[0-9a-f]{6}", text) for text in texts)


def test_short_labels_tell_only_what_differs(make_run: Factory, protocol: Protocol) -> None:
    board = board_of([make_run(CONFIGS[0]), make_run(CONFIGS[1])], protocol)
    assert [configuration.short for configuration in configurations(board)] == [
        "FastFlow · tiled:256:64",
        "FastFlow · whole:512",
    ]


def test_short_labels_name_weights_only_of_methods_that_are_there_several_times(
    make_run: Factory, protocol: Protocol
) -> None:
    other = dataclasses.replace(CONFIGS[0], name="again", weights="resnet18 bundled")
    runs = [make_run(CONFIGS[0]), make_run(CONFIGS[3])]
    board = board_of(runs, protocol)
    assert board.rows[0].configuration.short == "FastFlow · tiled:256:64"
    board = board_of([*runs, make_run(other)], protocol)
    names = [row.configuration.short for row in board.rows]
    for weights in ("mobilenetv2_100", "resnet18 bundled"):
        assert any(name.startswith(f"FastFlow · tiled:256:64 · {weights}") for name in names)


def test_random_weights_are_named_in_every_label(make_run: Factory, protocol: Protocol) -> None:
    (configuration,) = configurations(board_of([make_run(CONFIGS[2])], protocol))
    assert configuration.random
    assert "RANDOM" in configuration.short
    assert "RANDOM" in configuration.label


def test_the_newest_of_two_equal_runs_counts(make_run: Factory, protocol: Protocol) -> None:
    old, new = make_run(seed=0), make_run(seed=1)
    alter(new, "seed", 0)
    board = board_of([new, old], protocol)
    assert board.estimates[0, "ballscrew", *HEAD].value == record(new, *HEAD)
    assert "newest" in board.notes[0]


def test_other_rules_are_a_row_of_their_own_without_rank(make_run: Factory, protocol: Protocol) -> None:
    other = make_run(seed=1, protocols={"native": {"version": 0, "sha256": "abc"}})
    board = board_of([make_run(seed=0), other], protocol)
    rows = board.rows
    assert [row.foreign for row in rows] == [False, True]
    assert math.isnan(rows[1].rank)
    assert any("other rules" in note for note in board.notes)


def test_notes_differing_images_and_devices(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(), make_run(CONFIGS[1], device="cuda")]
    assert "cpu (2 threads); cuda" in " ".join(board_of(runs, protocol).notes)
    alter(runs[1], "dataset.index_sha256", "ffff")
    board = board_of(runs, protocol)
    assert "1 run on other images than the newest run's left out" in " ".join(board.notes)
    assert len(board.rows) == 1


def test_runs_without_records_of_the_protocol_are_named(make_run: Factory, protocol: Protocol) -> None:
    lacking = make_run(CONFIGS[2])
    edit(lacking, "protocol", "lowres256")
    board = board_of([make_run(), lacking], protocol)
    assert "l2bt" in board.notes[0]
    assert len(board.rows) == 1


def test_no_record_at_all_is_an_error_that_names_the_protocol(make_run: Factory, protocol: Protocol) -> None:
    run = make_run()
    edit(run, "protocol", "lowres256")
    with pytest.raises(HrbenchError, match="'native'"):
        summarise([run], protocol)


def test_a_bin_with_fewer_than_three_components_is_kept_but_not_shown(make_run: Factory, protocol: Protocol) -> None:
    cells = estimates([make_run(category="wood")], protocol)
    thin = [c for k, c in cells.items() if k[1] == "wood" and k[2] == "aupro" and k[3] == "d16-32"]
    assert thin
    for cell in thin:
        assert cell.n < 3
        assert cell.few
        assert math.isnan(cell.shown)
        assert not math.isnan(cell.value)


def test_few_components_do_not_enter_the_average_over_categories(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category="wood"), make_run(category="fabric")]
    cells = estimates(runs, protocol)
    key = ("aupro", "d16-32", 0.05)
    average, wood, fabric = (cells[0, name, *key] for name in ("", "wood", "fabric"))
    assert average.value == fabric.value
    assert (average.defined, average.total, average.few) == (1, 2, False)
    assert average.n == wood.n + fabric.n


def test_an_undefined_category_is_counted_not_hidden(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category="a"), make_run(category="b")]
    edit(runs[0], "value", math.nan, metric="iou")
    cell = estimates(runs, protocol)[0, "", "iou", "all", None]
    assert (cell.defined, cell.total) == (1, 2)
    assert not math.isnan(cell.value)


def test_interval_of_an_average_adds_half_widths_in_quadrature(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category=c, intervals=True) for c in ("a", "b")]
    cells = estimates(runs, protocol)
    one, average = cells[0, "a", *HEAD], cells[0, "", *HEAD]
    assert (one.value - one.low, one.high - one.value) == pytest.approx((0.02, 0.01))
    assert average.value - average.low == pytest.approx(0.02 / math.sqrt(2))
    assert average.high - average.value == pytest.approx(0.01 / math.sqrt(2))


def test_an_average_has_no_interval_unless_all_its_parts_have(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(category="a", intervals=True), make_run(category="b")]
    assert math.isnan(estimates(runs, protocol)[0, "", *HEAD].low)


def test_error_bounds_average(make_run: Factory, protocol: Protocol) -> None:
    cells = estimates([make_run(category=c) for c in "ab"], protocol)
    assert cells[0, "", *HEAD].error == pytest.approx(3.2e-7)


def test_absent_optional_entries_are_no_obstacle(make_run: Factory, protocol: Protocol) -> None:
    run = make_run()
    of_method = (f"method.{name}" for name in ("title", "paper", "weights", "options"))
    for name in ("cost", "threshold", "environment", "protocols", *of_method):
        alter(run, name, ...)
    board = board_of([run], protocol)
    assert configurations(board)[0].weights == "none"
    assert ("Protocol", "native version ?, sha256 ?") in card_facts([run], protocol)
    assert board.estimates[0, "", "megapixels_per_second", "all", None].defined == 0


def test_nothing_measured_shows_nothing() -> None:
    assert math.isnan(NO_ESTIMATE.shown)
