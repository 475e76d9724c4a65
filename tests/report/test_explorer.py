"""What the page is explored by: facets, every number, paired differences, the table of categories."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hrbench.metrics.bootstrap import Replicates, paired_difference
from hrbench.protocol import Protocol
from hrbench.report.columns import number_text
from hrbench.report.explorer import (
    board_data,
    exploration,
    facets,
    heat,
    json_text,
    page_parts,
    page_rows,
)
from hrbench.report.pairs import compare_rows, matrices
from hrbench.report.summary import summarise
from hrbench.runs.store import Run

from .conftest import CONFIGS, NASTY, board_of

Factory = Callable[..., Run]
KEYS: list[tuple[str, str, float]] = [
    *((metric, name, 0.05) for metric in ("aupro", "recall_matched")
      for name in ("all", "tiny", "small", "medium", "large")),
    ("mean_recall", "all", np.nan),
]  # fmt: skip


@pytest.fixture
def drawn(make_run: Factory, alarming: Protocol) -> list[Run]:
    """Return runs of three configurations on two categories, with replicates."""
    runs = []
    for number, level in enumerate((0.8, 0.79, 0.3)):
        for place, category in enumerate(("fabric", "wood")):
            rules = {"native": {"version": 1, "sha256": alarming.digest}}
            run = make_run(CONFIGS[number], dataset="weave", category=category, protocols=rules)
            rng = np.random.default_rng(10 * number + place)
            rows = [
                {"metric": metric, "subset": subset, "fpr_limit": limit, "estimate": level, "units": 40,
                 "components": 90, "sample": category, "values": level + 0.02 * rng.normal(size=200),
                 "protocol": "native"}
                for metric, subset, limit in KEYS
            ]  # fmt: skip
            pd.DataFrame(rows).to_parquet(run.folder / "replicates.parquet")
            runs.append(run)
    return runs


def test_facets_are_what_differs_and_words_are_unique(runs: list[Run], protocol: Protocol) -> None:
    summary = summarise(runs, protocol)
    found = dict(facets(summary))
    assert list(found) == ["method", "view", "weights", "dataset"]
    assert [text for _, text in found["view"]] == ["tiled:256:64", "whole:512"]
    assert [slug for slug, _ in found["view"]] == ["tiled-256-64", "whole-512"]
    rows = page_rows(summary)
    assert len({row["slug"] for row in rows}) == len(rows) == 4
    assert all(set(row["chips"]) == {"method", "view", "weights"} for row in rows)
    for row in rows:
        for name, word in row["chips"].items():
            assert word in dict(found[name])
    anchors = [(f"d{k}", [f"d{k}-{name}" for name in board.categories]) for k, board in enumerate(summary.leaderboards)]
    parts = page_parts(summary, anchors)
    assert [part["name"] for part in parts] == ["bsdata", "ballscrew", "weave & grain", "fabric", "steel_1", "wood"]
    assert [part.get("slug") for part in parts if part["kind"] == "dataset"] == ["bsdata", "weave-grain"]


def test_facets_without_choice_are_none(make_run: Factory, protocol: Protocol) -> None:
    assert facets(summarise([make_run()], protocol)) == []


def test_json_cannot_leave_its_script() -> None:
    text = json_text({"name": "</script><b>&" + NASTY})
    assert not {"<", ">", "&"} & set(text)
    assert json.loads(text)["name"] == "</script><b>&" + NASTY


def test_every_number_is_that_of_the_tables(runs: list[Run], protocol: Protocol) -> None:
    board = board_of(runs, protocol, "weave & grain")
    data: dict[str, Any] = json.loads(json_text(board_data(board, None)))
    assert data["start"] == "aupro@0.05"
    assert [row["number"] for row in data["rows"]] == [row.configuration.number for row in board.rows]
    assert [row["ranked"] for row in data["rows"]] == [not (row.missing or row.foreign) for row in board.rows]
    keys = {m["key"] + limit + size for m in data["metrics"] for limit, _ in m["limits"] for size, *_ in m["sizes"]}
    assert set(data["values"]) <= keys
    assert {"aupro@0.01_tiny", "image_auroc", "rho@0.3", "iou_oracle"} <= set(data["values"])
    assert not any(key.startswith("a90") for key in keys)
    for key, metric, subset, limit in (
        ("aupro@0.01_tiny", "aupro", "tiny", 0.01),
        ("iou", "iou", "all", None),
        ("aupro@0.05_d<8", "aupro", "d<8", 0.05),
    ):
        numbers = data["values"][key]
        for at, row in enumerate(board.rows):
            for place, category in enumerate(["", *board.categories]):
                estimate = board.estimates.get((row.configuration.number, category, metric, subset, limit))
                shown = math.nan if estimate is None else estimate.shown
                value = numbers["mean"][at] if not category else numbers["each"][at][place - 1]
                assert number_text(metric, math.nan if value is None else value) == number_text(metric, shown)


def test_pairs_are_paired_differences_of_means_over_categories(drawn: list[Run], alarming: Protocol) -> None:
    board = board_of(drawn, alarming, "weave")
    found = compare_rows(board)
    assert found is not None
    assert found.rows == board.rows
    sizes = ("", "_tiny", "_small", "_medium", "_large")
    keys = [f"{metric}@0.05{size}" for metric in ("aupro", "recall_matched") for size in sizes]
    assert [key for key, _ in found.lines] == [*keys, "mean_recall"]
    parts = []
    for row in board.rows:
        tables = [Replicates.of_table(Run(run.run.folder).replicates) for run in row.runs]
        estimate, values = (np.mean([getattr(t, n) for t in tables], axis=0) for n in ("estimate", "values"))
        parts.append(Replicates(tables[0].keys, estimate, values, tables[0].units, tables[0].components, "same"))
    table = paired_difference(parts[0], parts[2], level=alarming.bootstrap.level)
    np.testing.assert_allclose(found.found.difference[0, 2], table["difference"])
    np.testing.assert_allclose(found.found.low[0, 2], table["ci_low"])
    data = found.data()
    assert data["rows"] == [row.configuration.number for row in board.rows]
    assert len(data["low"]) == 3
    assert data["high"][1][0] == pytest.approx(-table["ci_low"][0], rel=1e-5)  # third minus first

    first, second = matrices(found)
    assert (first.name, second.name) == ("AUPRO@0.05", "recall at 5 false alarms per 100")
    kinds = [[kind for _, _, kind in line] for line in first.cells]
    assert kinds == [["", "", "better"], ["", "", "better"], ["worse", "worse", ""]]
    text, title, _ = first.cells[0][2]
    assert text == "+0.500"
    assert "95 % interval +0.4" in title
    assert "better in 100 % of the draws" in title
    strict = dataclasses.replace(found, lines=(("aupro@1e-05", "AUPRO@1e-05"), *found.lines[1:]))
    assert [matrix.name for matrix in matrices(strict)] == ["AUPRO@1e-05", second.name]


def test_without_replicates_there_are_no_pairs(runs: list[Run], protocol: Protocol) -> None:
    board = board_of(runs, protocol, "weave & grain")
    assert compare_rows(board) is None
    found = exploration(board)
    assert found is not None
    assert found["matrices"] == []
    assert json.loads(found["data"])["pairs"] is None


def test_heat_is_the_headline_of_each_category(runs: list[Run], protocol: Protocol) -> None:
    board = board_of(runs, protocol, "weave & grain")
    found = heat(board)
    assert found is not None
    places = [place for _, cells in found.rows for _, place in cells if place is not None]
    assert (min(places), max(places)) == (0, 1)
    lacking = {row.configuration.method: cells for row, cells in found.rows}["l2bt"]
    assert lacking[board.categories.index("wood")] == ("–", None)
    row, cells = found.rows[0]
    estimate = board.estimates[row.configuration.number, board.categories[0], "aupro", "all", 0.05]
    assert cells[0][0] == f"{estimate.value:.3f}"
    assert heat(board_of(runs, protocol, "bsdata")) is None


def test_a_single_row_has_nothing_to_explore(make_run: Factory, protocol: Protocol) -> None:
    assert exploration(board_of([make_run()], protocol)) is None
