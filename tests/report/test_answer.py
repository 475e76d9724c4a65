"""The answer that a dataset opens with: from a run's tables to the page."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hrbench.metrics.alarms import FalseAlarms, matched_limits
from hrbench.metrics.detection import DetectionLimit, fit_detection
from hrbench.metrics.words import alarms_text, opening
from hrbench.protocol import Alarms
from hrbench.report import answer, write_leaderboard
from hrbench.report.answer import (
    answer_sentences,
    answer_table,
    best_sentences,
    sentence,
    splinter_sentence,
)
from hrbench.report.closing import closing
from hrbench.report.latex import latex_tables
from hrbench.report.operating import Point
from hrbench.report.scores import read_scores
from hrbench.report.summary import summarise
from hrbench.report.terminal import terminal_table
from hrbench.report.text import csv_table, markdown_page
from hrbench.runs.store import Run

from .conftest import CONFIGS, PROTOCOL, _areas, board_of, write_run
from .test_page import Reader

RULES = dataclasses.replace(PROTOCOL, version=2, alarm=Alarms(1, (0.01, 0.05, 0.1), 0.05, (0.01, 0.05)))
GOOD, BAD = 40, 30


def scored_run(root: Path, config: int, dataset: str = "bsdata", category: str = "ballscrew", seed: int = 0) -> Run:
    """Write a run that kept the alarm scores of its images and the critical scores of its defects."""
    rules = {"native": {"version": RULES.version, "sha256": RULES.digest}}
    run = write_run(root, CONFIGS[config], dataset, category, seed, protocols=rules)
    rng = np.random.default_rng([config, seed, len(category)])
    areas = _areas(category)
    owner = rng.integers(0, BAD, areas.size)
    critical = rng.normal(CONFIGS[config].skill * np.log(areas) - 2, 1)
    names = [*(f"test/good/{i:03d}.png" for i in range(GOOD)), *(f"test/bad/{i:03d}.png" for i in range(BAD))]
    alarm = np.concatenate([rng.normal(0, 1.5, GOOD), [critical[owner == i].max(initial=-1) + 0.1 for i in range(BAD)]])
    images = pd.DataFrame({"image": names, "label": [0] * GOOD + [1] * BAD, "alarm": alarm, "protocol": "native"})
    other = images.assign(protocol="lowres256", alarm=0.0)
    pd.concat([other, images]).to_parquet(run.folder / "images.parquet")
    components = pd.DataFrame({"image": [names[GOOD + i] for i in owner], "area": areas, "critical": critical})
    components.assign(protocol="native").to_parquet(run.folder / "components.parquet")
    rows = run.records.head(2).assign(
        metric=["a90_matched", "recall_matched"], subset="all", fpr_limit=0.05, value=0.5, ci_low=[310.0, 0.4],
        ci_high=[math.inf, 0.6],
    )  # fmt: skip
    pd.concat([run.records, rows], ignore_index=True).to_parquet(run.folder / "records.parquet")
    return Run(run.folder)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("several")
    runs = [scored_run(root, config, "weave", name) for config in (0, 1, 3) for name in ("fabric", "wood")]
    return [*runs, scored_run(root, 0, "weave", "fabric", seed=1), scored_run(root, 2, "weave", "fabric")]


def test_a_category_is_counted_at_the_limit_of_its_good_images(several: list[Run]) -> None:
    board = board_of(several, RULES, "weave")
    scores = read_scores(board)
    assert len(scores) == 7
    table = answer_table(scores, board, "fabric")
    assert table is not None
    run = next(run for run in several if run.about.dataset.category == "fabric" and run.about.view == "whole:512")
    images = run.images[run.images["protocol"] == "native"]
    good, bad = (images.loc[images["label"] == label, "alarm"].to_numpy() for label in (0, 1))
    limit = matched_limits(good, [0.05])[0, 0]
    hits = run.components["critical"] > limit
    (place,) = (at for at, row in enumerate(table.rows) if row.runs[0].run.folder == run.folder)
    cells = dict(zip((column.key for column in table.columns), table.cells[place], strict=True))
    assert cells["recall_all"].text == f"{hits.mean():.3f}"
    assert cells["recall_all"].small == ("0.40–0.60",)
    small = run.components["area"] <= np.quantile(run.components["area"], 0.25)
    assert cells["recall_tiny"].text == f"{hits[small].mean():.3f}"
    assert cells["called"].text == f"{(bad > limit).mean():.3f}"
    assert cells["called_right"].text == f"{run.components['image'][hits].nunique() / BAD:.3f}"
    assert cells["alarms"].text == "2 / 40"
    assert "95 % interval 0.6 % to 17 %" in cells["alarms"].title
    expected = fit_detection(run.components["area"], hits).a90
    assert cells["a90"].text == (str(expected) if expected.area else expected.reason.partition(" (")[0])
    assert [row.rank for row in table.rows] == sorted(row.rank for row in table.rows)
    recalls = [float(line[1].sort) for line in table.cells]
    assert recalls == sorted(recalls, reverse=True)


def test_all_categories_are_averaged_and_only_complete_rows_ranked(several: list[Run]) -> None:
    board = board_of(several, RULES, "weave")
    scores = read_scores(board)
    overall = answer_table(scores, board)
    assert overall is not None
    each = {name: answer_table(scores, board, name) for name in ("fabric", "wood")}
    assert [column.head for column in overall.columns][:3] == ["fabric", "wood", "all"]
    for row, cells in zip(overall.rows, overall.cells, strict=True):
        number, parts = row.configuration.number, []
        for table in each.values():
            assert table is not None
            parts += [
                line for one, line in zip(table.rows, table.cells, strict=True) if one.configuration.number == number
            ]
        assert float(cells[2].sort) == pytest.approx(np.mean([float(line[1].sort) for line in parts]))
        assert math.isnan(row.rank) == (row.configuration.method == "l2bt")
    assert overall.cells[-1][1].title == "no run, or no alarm scores"
    assert any("lowest one stands here (seed 0)" in note for note in overall.notes)
    assert any("four times as many images" in note for note in overall.notes)


def test_runs_without_alarm_scores_are_named(tmp_path: Path) -> None:
    rules = {"native": {"version": RULES.version, "sha256": RULES.digest}}
    runs = [scored_run(tmp_path, 0), write_run(tmp_path, CONFIGS[1], protocols=rules)]
    board = board_of(runs, RULES)
    table = answer_table(read_scores(board), board)
    assert table is not None
    assert len(table.rows) == 1
    assert "`hrbench rescore` adds them: FastFlow · whole:512." in table.notes[-1]
    assert answer_table({}, board) is None
    assert read_scores(board_of(runs, PROTOCOL)) == {}  # a protocol without budgets


def point(hits: Sequence[int], areas: Sequence[int], found: DetectionLimit, good: int = 60) -> Point:
    sizes = {"all": (sum(hits), len(areas))}
    return Point(0.05, 0.0, FalseAlarms(min(3, good // 20), good), 9, 5, 4, sizes, found)


def test_sentences_are_those_of_the_specification() -> None:
    areas = [40, *[500] * 58, 4982]
    reached = point([1] * 50, areas, DetectionLimit(1240.0, "", 1240.0))
    assert sentence("FastFlow", reached, areas, 0.9, (820.0, 2010.0)) == (
        "At 5 false alarms per 100 good images FastFlow finds 9 of 10 defects of 1,240 px (40 px across) or more; "
        "60 defects cannot say it better than 820 to 2,010 px."
    )
    beyond = point([1] * 20, areas, DetectionLimit(None, "not reached (largest 4,982 px)", 9000.0))
    assert sentence("FastFlow", beyond, areas, 0.9) == (
        "At 5 false alarms per 100 good images FastFlow does not find 9 of 10 defects of any size seen here "
        "(largest 4,982 px)."
    )
    few = point([1] * 50, areas, DetectionLimit(1240.0, "", 1240.0), good=12)
    assert sentence("X", few, areas, 0.9).startswith(
        "With zero alarms among 12 good images (the true rate may be up to 22 %) X finds 9 of 10 defects"
    )
    everything = point([1] * 60, areas, DetectionLimit(None, "not estimable (all ...)", math.nan))
    assert "finds all 60 defects, the smallest of 40 px" in sentence("X", everything, areas, 0.9)
    nothing = point([0] * 60, areas, DetectionLimit(None, "not reached (no component hit, ...)", math.nan))
    assert "finds none of 60 defects, the largest of 4,982 px." in sentence("X", nothing, areas, 0.9)
    assert "without good test images" in sentence("X", point([1], areas, beyond.reliable, good=0), areas, 0.9)
    assert (opening(0.01, 100), alarms_text(0.2)[:15]) == ("At 1 false alarm per 100 good images", "20 false alarms")


def test_intervals_have_words_for_open_ends() -> None:
    areas = [40, 50, 4982]
    reached = point([1, 0], areas, DetectionLimit(1240.0, "", 1240.0))
    end = "better than from 820 px to beyond the largest seen here."
    assert end in sentence("X", reached, areas, 0.9, (820, math.inf))
    assert "better than anything up to 2,010 px." in sentence("X", reached, areas, 0.9, (0.0, 2010))


def test_the_answer_comes_first_in_markdown_and_on_the_terminal(several: list[Run]) -> None:
    board = board_of(several, RULES, "weave")
    lines = [*best_sentences(read_scores(board), board)]
    markdown, terminal = markdown_page(summarise(several, RULES)), terminal_table(several, RULES)
    assert markdown.index("### How small a defect is found, at 5 false alarms") < markdown.index("| AUPRO@0.05 |")
    assert "| # | Method | a90 fabric | a90 wood | recall | tiny |" in markdown
    assert terminal.startswith("weave, found at 5 false alarms per 100 good images\n---")
    assert re.search(r"\d / 40\n", terminal)
    for line in lines:
        assert line in terminal
        assert line.replace("_", r"\_") in markdown


def test_a_paper_gets_the_answer_before_aupro(several: list[Run]) -> None:
    board = board_of(several, RULES, "weave")
    table = answer_table(read_scores(board), board)
    assert table is not None
    text = latex_tables(summarise(several, RULES))
    assert text.isascii()
    answer, overview = text.split(r"\end{table*}")[:2]
    assert r"\label{tab:hrbench-weave-answer}" in answer
    assert "at 5 false alarms per 100 good images. Best in bold" in answer
    assert r"\label{tab:hrbench-weave}" in overview
    assert r"Method & fabric & wood & all & tiny & small & medium & large & called & rightly & alarm \\" in answer
    body = answer[answer.index(r"\midrule") :].split("\n")[1:-3]
    assert len(body) == len(table.rows)
    for line, cells in zip(body, table.cells, strict=True):
        fields = re.split(r"(?<!\\)&", line)[1:]
        assert len(fields) == len(cells)
        for field, cell in zip(fields, cells, strict=True):
            assert cell.text.replace("–", "--") in field
            assert field.count(r"\tiny") == len(cell.small)
    assert r"{\tiny $\ge$ 310 px}" in answer


def test_of_many_categories_it_is_said_in_how_many_a_size_is_reached(tmp_path: Path) -> None:
    names = ("fabric", "paper", "steel", "wood")
    board = board_of([scored_run(tmp_path, n, "weave", name) for name in names for n in (0, 1)], RULES, "weave")
    scores = read_scores(board)
    overall = answer_table(scores, board)
    assert overall is not None
    assert [column.head for column in overall.columns][:2] == ["categories", "all"]
    for row, (reached, *_) in zip(overall.rows, overall.cells, strict=True):
        tables = {name: answer_table(scores, board, name) for name in names}
        number = row.configuration.number
        own = {
            name: next(cells[0] for one, cells in zip(table.rows, table.cells, strict=True)
                       if one.configuration.number == number)
            for name, table in tables.items() if table
        }  # fmt: skip
        found = [f"{name} {cell.text}" for name, cell in own.items() if cell.sort]
        assert reached.text == f"{len(found)} / 4"
        assert reached.title.rpartition("from: ")[2] == ("; ".join(found) or "not reached in any category")
    assert len({cells[0].text for cells in overall.cells}) > 1
    best = max(cells[0].text for cells in overall.cells)
    assert {cells[0].text for cells in overall.cells if cells[0].place == 1} == {best}
    runs = [run.run for row in board.rows for run in row.runs]
    text = latex_tables(summarise(runs, RULES))
    assert r"Method & categories & all & tiny & small & medium & large & called & rightly & alarm \\" in text
    assert "in how many a size is found reliably" in text
    assert "| a90 in | recall |" in markdown_page(summarise(runs, RULES))
    assert "a90 in  recall" in terminal_table(runs, RULES)


def test_csv_has_the_answer_at_every_budget(several: list[Run]) -> None:
    table = pd.read_csv(io.StringIO(csv_table(summarise(several, RULES)))).set_index(["category", "view", "method"])
    names = [f"a90_matched@{b}_px" for b in ("0.01", "0.05", "0.1")]
    names += [f"{m}_matched@{b}" for m in ("called", "called_right", "alarms") for b in ("0.01", "0.05", "0.1")]
    names += [f"recall_matched@{b}{s}" for b in ("0.01", "0.05", "0.1") for s in ("", "_tiny", "_large")]
    names += ["mean_recall", "mean_recall_small", "rho_recall", "alarms", "called", "called_right"]
    assert set(names) <= set(table.columns)
    assert table.columns.is_unique
    one = table.loc[("fabric", "whole:512", "fastflow")]
    shown = [one[f"a90_matched@0.05_px{end}"] for end in ("", "_ci_low", "_ci_high")]
    assert shown == [0.5, 310.0, math.inf]
    assert [one[f"recall_matched@0.05{end}"] for end in ("", "_ci_low", "_ci_high")] == [0.5, 0.4, 0.6]
    average = table[table.index.get_level_values("category").isna()]
    assert average["a90_matched@0.05_px"].isna().all()  # would flatter: see the limits at the threshold
    assert average["recall_matched@0.05"].eq(0.5).all()


@pytest.fixture(scope="module")
def page(several: list[Run], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("page")
    runs = [*several, *(scored_run(root, config) for config in (0, 1, 3))]
    return write_leaderboard(runs, root / "board", RULES)["html"].read_text(encoding="utf-8")


def test_the_page_answers_without_a_script(page: str, several: list[Run]) -> None:
    reader = Reader(page)
    words = " ".join(" ".join(reader.texts).split())
    board = board_of(several, RULES, "weave")
    scores = read_scores(board)
    shown = [*best_sentences(scores, board), *answer_sentences(scores, board, "fabric")]
    assert len(shown) == 2 + 4
    for text in shown:
        assert text.replace("&", "&amp;") in words or text in words
    sections = page.split("<section ")[1:]
    assert all(
        section.index('<table class="answer">') < section.index('<table class="overview">') for section in sections
    )
    assert len(reader.all("table", class_="answer")) == 1 + 3  # the only category's stands above
    assert all("hidden" in attributes for attributes in reader.all("div", class_="alarms"))
    assert "Rank by recall at this number of false alarms" in page


def test_the_slider_is_labelled_and_starts_at_the_headline(page: str) -> None:
    reader = Reader(page)
    sliders = reader.all("input", type="range")
    assert len(sliders) == 2
    for slider in sliders:
        assert [a for a in reader.all("label") if a.get("for") == slider["id"]]
        assert [a for a in reader.all("output") if a["for"] == slider["id"]]
        assert [a for a in reader.all("datalist") if a["id"] == slider["list"]]
    assert len(reader.all("p", role="status")) == 2
    for text, slider in zip(data_of(page), sliders, strict=True):
        assert text["positions"][int(slider["value"])] == text["headline"] == 0.05
        assert int(slider["max"]) == len(text["positions"]) - 1


def data_of(page: str) -> list[dict]:
    return [
        json.loads(text)
        for text in re.findall(r'<script type="application/json" class="operating">(.*?)</script>', page, re.S)
    ]


def test_the_script_s_data_are_small_and_escaped(page: str) -> None:
    for data in data_of(page):
        for category in data["categories"]:
            assert len(category["layouts"]) == len({json.dumps(layout) for layout in category["layouts"]})
            for method in category["methods"]:
                assert len(json.dumps(method, separators=(",", ":"))) < 3000
    raw = re.findall(r'<script type="application/json" class="operating">(.*?)</script>', page, re.S)
    assert not any("<" in text or "&" in text for text in raw)
    assert "<b>x" in json.dumps(data_of(page))  # the name of a method


def test_tiny_defects_that_a_larger_one_may_have_lit_up_are_counted(tmp_path: Path) -> None:
    """The first two defects lie beside the last one, which is far larger; only hits of both count."""
    run = scored_run(tmp_path, 0)
    table = pd.read_parquet(run.folder / "components.parquet").sort_values("area", ignore_index=True)
    places = 100 * np.arange(len(table))
    table = table.assign(top=places, left=0, bottom=places + 2, right=2)
    table.loc[[0, 1, len(table) - 1], ["top", "bottom"]] = [[0, 2], [4, 6], [10, 90]]
    table.loc[[0, 1, len(table) - 1], "image"] = table.loc[0, "image"]
    assert table["area"].iloc[-1] >= 10 * table["area"].iloc[1]
    for critical, expected in (
        ((1e3, 1e3, 1e3), 2),
        ((1e3, -1e3, 1e3), 1),
        ((1e3, 1e3, -1e3), 0),
        ((-1e3, -1e3, 1e3), 0),
    ):
        table.loc[[0, 1, len(table) - 1], "critical"] = critical
        table.to_parquet(run.folder / "components.parquet")
        board = board_of([Run(run.folder)], RULES)
        scores = read_scores(board)
        (of,) = scores["ballscrew", 0]
        assert of.splinters(0.05).sum() == expected
        said = splinter_sentence([of], 0.05)
        if not expected:
            assert said == ""
            continue
        hit = int((of.members("tiny") & (of.critical > of.limit(0.05))).sum())
        start = f"Of the {hit} tiny defects hit {expected} lie{'s' * (expected == 1)}"
        if hit == expected:
            start = "The one tiny defect hit lies" if hit == 1 else f"All {hit} tiny defects hit lie"
        assert said == f"{start} beside one at least 10 times as large that is hit too, and may be lit up by it."
        found = closing(scores, board, "ballscrew")
        assert found is not None
        assert found.found.endswith(said)
        notes = " ".join(answer_table(scores, board).notes)  # type: ignore[union-attr]
        assert "beside one at least 10 times as large" in notes


def test_of_many_rows_only_two_are_told_with_their_tiny_defects(
    several: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "splinter_sentence", lambda of, budget, name: f"{name} it is.")
    board = board_of(several, RULES, "weave")
    (note,) = (text for text in answer_table(read_scores(board), board).notes if "it is." in text)  # type: ignore[union-attr]
    names = [row.configuration.short for row in board.rows]
    assert len(names) > 2
    more = len(names) - 2
    ending = f"So it is in {more} more row{'s' * (more > 1)}."
    assert note == f"At {alarms_text(0.05)}: {names[0]} it is. {names[1]} it is. {ending}"
