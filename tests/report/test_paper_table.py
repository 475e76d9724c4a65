"""Tables for a paper: what is in them, what tells best from tied, and every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import hrbench
from hrbench.cli import main
from hrbench.errors import HrbenchError
from hrbench.metrics.bootstrap import Replicates
from hrbench.protocol import Protocol
from hrbench.report import differences
from hrbench.report.columns import number_text
from hrbench.report.paper_table import by_category, on_average, paper_tables
from hrbench.report.summary import Estimate, Summary, summarise
from hrbench.report.table import emphasis
from hrbench.runs.store import Run

from .conftest import CONFIGS


@pytest.fixture
def summary(runs: list[Run], protocol: Protocol) -> Summary:
    return summarise(runs, protocol)


def lines_of(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_a_table_by_category_holds_the_numbers_of_the_leaderboard(summary: Summary, protocol: Protocol) -> None:
    rows = list(csv.DictReader(io.StringIO(paper_tables(summary, by_category(protocol, "aupro@0.3", "tiny"), "csv"))))
    board = summary.leaderboards[-1]
    assert board.dataset == "weave & grain"
    found = [row for row in rows if row["dataset"] == board.dataset]
    assert len(found) == len(board.rows)
    for row, line in zip(board.rows, found, strict=True):
        for category in board.categories:
            value = board.estimates.get((row.configuration.number, category, "aupro", "tiny", 0.3))
            shown = "–" if value is None else number_text("aupro", value.shown)
            assert line.get(category, "–").split(" ± ")[0] == shown
        assert (line["mean"] == "–") == bool(row.missing)


def test_seeds_give_a_deviation(summary: Summary, runs: list[Run], protocol: Protocol) -> None:
    first = lines_of(paper_tables(summary, by_category(protocol)))[2]
    text, deviation = re.fullmatch(r"\**([\d.]+) ± ([\d.]+)\**", first[1]).groups()  # type: ignore[union-attr]
    same = [run for run in runs if run.about.dataset.category == "ballscrew" and run.about.method.name == "fastflow"]
    same = [run for run in same if run.about.view in first[0]]
    values = [
        float(t.loc[(t["metric"] == "aupro") & (t["subset"] == "all") & (t["fpr_limit"] == 0.05), "value"].iloc[0])
        for t in (run.records for run in same)
    ]
    assert [text, deviation] == [f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}"]


def test_averages_have_the_columns_that_are_asked_for(summary: Summary, protocol: Protocol) -> None:
    text = paper_tables(summary, on_average(protocol, ["image_auroc", "aupro@0.05_tiny"]))
    heads = [line for line in lines_of(text) if line[0] == "Method"]
    assert heads == [["Method", "ROC-AUC image", "AUPRO@0.05 tiny"]] * 2
    assert "AUPRO@0.3" in paper_tables(summary, on_average(protocol))


def test_ties_are_marked(summary: Summary, protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best row is told from those that differ by a constant, and not from those that differ by chance."""
    board = summary.leaderboards[0]
    rng = np.random.default_rng(0)
    shared, numbers = rng.normal(size=200), [row.configuration.number for row in board.rows]

    def replicates(row: SimpleNamespace, *_: object) -> Replicates:
        place = numbers.index(row.configuration.number)
        noise = rng.normal(size=200) if place == 1 else 0
        keys = pd.DataFrame({"metric": ["aupro"], "subset": ["all"], "fpr_limit": [0.05]})
        values = (0.9 - 0.001 * place + shared + noise)[:, None]
        many = np.array([100])
        return Replicates(keys, np.array([0.9 - 0.001 * place]), values, many, many, "same")

    monkeypatch.setattr(differences, "row_replicates", replicates)
    tied = differences.ties(board, board.rows[0], board.rows, ("aupro", "all", 0.05))
    assert tied == {numbers[1]}
    table = lines_of(paper_tables(Summary(protocol, (board,)), by_category(protocol)))[2:]
    assert [line[1].endswith("≈") for line in table] == [False, True, *[False] * (len(table) - 2)]


def test_every_row_has_a_name_of_its_own_and_the_caption_the_rest(summary: Summary, protocol: Protocol) -> None:
    for text in paper_tables(summary, by_category(protocol)).split("\n\n")[1::2]:
        names = [line[0] for line in lines_of(text)[2:]]
        assert len(set(names)) == len(names)
    assert "preset" in paper_tables(summary, by_category(protocol))


def test_latex_compiles_or_is_at_least_balanced(summary: Summary, protocol: Protocol, tmp_path: Path) -> None:
    text = paper_tables(summary, by_category(protocol), "latex")
    labels = re.findall(r"\\label\{(tab:[a-z0-9-]+)\}", text)
    assert len(set(labels)) == len(labels) == text.count(r"\begin{table}")
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    for tabular in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL):
        widths = {line.replace(r"\&", "").count(" & ") for line in tabular.splitlines() if line.endswith(r"\\")}
        assert len(widths) == 1
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    try:
        done = subprocess.run(
            ["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=False, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("no pdflatex on this machine; braces and columns were counted")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "iou"], "--metric needs --table category"),
        (["--table", "average", "--subset", "tiny"], "--subset needs --table category"),
        (["--table", "category", "--columns", "iou"], "--columns needs --table average"),
        (["--format", "latex"], "--format needs --table"),
        (["--table", "average", "--output", "out"], "--output does not go with --table"),
        (["--table", "category", "--metric", "auproo"], "unknown metric 'auproo'"),
        (
            ["--table", "category", "--subset", "tny"],
            "unknown subset of aupro 'tny'; did you mean 'tiny'? Known: all, ",
        ),
        (["--table", "category", "--metric", "spro", "--subset", "tiny"], "'tiny'. Known: all, logical, structural"),
        (["--table", "category", "--metric", "iou", "--subset", "tiny"], "unknown subset of iou 'tiny'. Known: all\n"),
        (["--table", "category", "--metric", "image_auroc@0.1"], "image_auroc has no limit"),
        (["--table", "category", "--metric", "aupro@x"], "expected aupro@LIMIT"),
        (["--table", "average", "--columns", "nix"], "unknown column 'nix'"),
    ],
)
def test_what_does_not_belong_together_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["leaderboard", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_number_that_no_run_has_is_an_error(summary: Summary, protocol: Protocol) -> None:
    with pytest.raises(HrbenchError, match=r"aupro@0\.07 of tiny under protocol native; there are aupro@0\.01, "):
        paper_tables(summary, by_category(protocol, "aupro@0.07", "tiny"))


def test_the_command_prints_the_table_and_writes_nothing(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hrbench.commands, "read_runs", lambda *_: runs)
    assert main(["leaderboard", str(tmp_path), "--table", "category", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("dataset,method,")
    assert not list(tmp_path.iterdir())


def test_a_table_by_category_is_sorted_by_what_it_shows(summary: Summary, protocol: Protocol) -> None:
    for metric, falling in (("image_auroc", True), ("aupro@0.3", True)):
        rows = list(csv.DictReader(io.StringIO(paper_tables(summary, by_category(protocol, metric), "csv"))))
        for board in summary.leaderboards:
            found = [row["mean"] if len(board.categories) > 1 else row["ballscrew"] for row in rows
                     if row["dataset"] == board.dataset]  # fmt: skip
            values = [float(text.split(" ± ")[0]) for text in found if text != "–"]
            assert values == sorted(values, reverse=falling)
            assert len(values) > 2
            assert "–" not in found[: len(values)]  # those without a mean are last


def test_a_caption_says_no_weights_that_the_names_say(make_run: Callable[..., Run], protocol: Protocol) -> None:
    other = dataclasses.replace(CONFIGS[0], weights="resnet18 bundled sha256:ff")
    text = paper_tables(summarise([make_run(CONFIGS[0]), make_run(other, seed=1), make_run(CONFIGS[2])], protocol),
                        by_category(protocol))  # fmt: skip
    assert text.count("resnet18 bundled") == 1
    assert "weights mobilenetv2_100 RANDOM (L2BT)" in text


def test_nobody_is_best_on_a_handful_of_defects(summary: Summary, protocol: Protocol) -> None:
    """Where a size has fewer defects than an interval takes, in the table and in its caption."""
    column = by_category(protocol, "aupro@0.05", "tiny")
    for few, places in ((9, [0, 0]), (10, [1, 2])):
        estimates = [Estimate(value=value, n=few, defined=1, total=1) for value in (0.9, 0.8)]
        assert emphasis(column, estimates, [frozenset("a")] * 2, [True] * 2) == places
        of_all = dataclasses.replace(column, subset="all")
        assert emphasis(of_all, estimates, [frozenset("a")] * 2, [True] * 2) == [1, 2]
    for board in summary.leaderboards:
        numbers = {
            name: max(board.estimates[key].n for key in board.estimates if key[1:] == (name, "aupro", "tiny", 0.05))
            for name in board.categories
        }
        scarce = [f"{name} {n}" for name, n in numbers.items() if 3 <= n < 10]  # below 3 there is no column
        text = paper_tables(Summary(protocol, (board,)), column)
        told = re.search(r"None where fewer than 10 defects are of that size: ([^.]*)", text)
        assert [part for part in (told[1].split(", ") if told else []) if not part.startswith("mean")] == scarce
