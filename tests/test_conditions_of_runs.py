"""What pages and the terminal say of conditions, of runs on a counterfeit of MVTec AD 2."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hrbench
from hrbench.cli import main
from hrbench.protocol import Protocol
from hrbench.report import summarise
from hrbench.report.conditions import condition_table
from hrbench.report.page import html_page
from hrbench.report.text import markdown_page
from hrbench.runs.record import write_record
from hrbench.runs.store import Run
from hrbench.runs.verification import verify_run

PARTS, SIZE = 12, (24, 32)
LIGHTS = {"regular": 60, "underexposed": 3, "shift_1": 60}  # how far a defect stands out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold parts of two objects under three lights, and a descriptor."""
    place, rng = tmp_path_factory.mktemp("ad2"), np.random.default_rng(0)
    native = (Path(__file__).parents[1] / "protocols/native.toml").read_text(encoding="utf-8")
    quick = native.replace('name = "native"', 'name = "quick"') + "\n[bootstrap]\ndraws = 60\n"
    (place / "quick.toml").write_text(quick, encoding="utf-8")
    (place / "mine.toml").write_text('base = "mvtec_ad_2"\n[total]\n[categories]\ncan = {}\nvial = {}\n')

    def write(path: Path, contrast: float, mask: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(150, 6, (*SIZE, 3)) - contrast * mask[..., None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)

    none = np.zeros(SIZE)
    for name in ("can", "vial"):
        folder = place / "root" / name
        for number in range(8):
            write(folder / f"train/good/{number:03d}_regular.png", 0, none)
        for number in range(PARTS):
            mask = np.zeros(SIZE)
            mask[4 : 8 + number // 2, 6:12] = 1
            for light, contrast in LIGHTS.items():
                stem = f"{number:03d}_{light}"
                write(folder / f"test_public/good/{stem}.png", 0, none)
                write(folder / f"test_public/bad/{stem}.png", contrast * rng.uniform(0.5, 1), mask)
                truth = folder / f"test_public/ground_truth/bad/{stem}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((255 * mask).astype(np.uint8)).save(truth)
    return place


@pytest.fixture(scope="module")
def quick(place: Path) -> Protocol:
    return hrbench.load_protocol(place / "quick.toml")


@pytest.fixture(scope="module")
def runs(place: Path, quick: Protocol, toy: str) -> list[Run]:
    return hrbench.run(place / "mine.toml", [toy], root=place / "root", output=place / "runs", preset="native",
                       device="cpu", seeds=[0, 1], protocols=[quick], check=False, rehearse=False).runs  # fmt: skip


def rules(place: Path) -> list[str]:
    return ["--protocol", str(place / "quick.toml")]


def test_the_page_has_a_section_with_values_drops_and_their_intervals(runs: list[Run], quick: Protocol) -> None:
    cans = [run for run in runs if (run.about.dataset.category, run.about.seed) == ("can", 0)]
    summary = summarise(cans, quick)
    table = condition_table(summary.leaderboards[0])
    assert [column.head for column in table.columns] == ["regular", "shift_1", "underexposed"] * 2
    assert [name for name, _ in table.groups] == ["AUPRO@0.05", "recall at 5 alarms per 100"]
    kept = cans[0].conditions.set_index(["condition", "metric"])
    dark = table.cells[0][2]
    assert float(dark.sort) == kept.loc[("underexposed", "aupro"), "value"]
    lost, low, high = kept.loc[("underexposed", "aupro"), ["drop", "drop_low", "drop_high"]]
    assert 0 < low < lost < high
    assert dark.small == (f"loss {lost:.3f}", f"[{low:.3f}, {high:.3f}]")
    assert table.cells[0][0].small == ()
    page, text = html_page(summary), markdown_page(summary)
    assert re.search('<h3 id="[^"]*conditions">By condition', page)
    assert f"<small>loss {lost:.3f}</small>" in page
    assert "measured on its images alone" in page
    assert f"loss {lost:.3f}" in text
    assert "### By condition\n\n| # | Method | AUPRO@0.05 regular | AUPRO@0.05 shift" in text


def test_averages_are_over_seeds_then_categories(runs: list[Run], quick: Protocol) -> None:
    summary = summarise(runs, quick)
    (board,) = summary.leaderboards
    table = condition_table(board)
    values = {(run.about.dataset.category, run.about.seed): run.conditions.set_index(["condition", "metric"])
              for run in runs}  # fmt: skip
    for place, condition in enumerate(("regular", "shift_1", "underexposed")):
        of = [of.loc[(condition, "aupro")] for of in values.values()]
        assert float(table.cells[0][place].sort) == pytest.approx(np.mean([row["value"] for row in of]))
        if place:
            lost = f"{np.mean([row['drop'] for row in of]):.3f}".replace("-", "−")
            assert table.cells[0][place].small == (f"loss {lost}",)
    assert "paired within one run: hrbench conditions RUN gives it" in table.notes[0]
    vial = condition_table(board, "vial")
    mean = np.mean([values["vial", seed].loc[("regular", "aupro"), "value"] for seed in (0, 1)])
    assert float(vial.cells[0][0].sort) == pytest.approx(mean)
    assert (
        html_page(summary).count("By condition, mean over seeds") == 6
    )  # captions, and what the tables are called, of three
    one_seed = condition_table(summarise([run for run in runs if run.about.seed == 0], quick).leaderboards[0])
    assert "paired within one run: categories below have theirs" in one_seed.notes[0]
    assert condition_table(board, "vial").caption == "By condition, mean over seeds"


def test_runs_that_know_no_conditions_have_no_section(runs: list[Run], quick: Protocol, tmp_path: Path, capsys) -> None:
    old = Run(Path(shutil.copytree(runs[0].folder, tmp_path / runs[0].folder.name)))
    hrbench.rescore(old, [quick], conditions={})
    summary = summarise([Run(old.folder)], quick)
    assert condition_table(summary.leaderboards[0]) is None
    assert "By condition" not in html_page(summary) + markdown_page(summary)
    assert main(["conditions", str(old.folder)]) == 2
    assert "knows no two conditions of its images, expected some by the dataset's" in capsys.readouterr().err


def test_rescore_gives_conditions_to_runs_of_before(place: Path, runs: list[Run], tmp_path: Path, capsys) -> None:
    old = Run(Path(shutil.copytree(runs[0].folder, tmp_path / "runs/mvtec_ad_2/can" / runs[0].folder.name)))
    expected = old.conditions
    hrbench.rescore(old, [place / "quick.toml"], conditions={})
    assert main(["rescore", str(tmp_path / "runs"), "--dataset", str(place / "mine.toml"), *rules(place)]) == 0
    pd.testing.assert_frame_equal(Run(old.folder).conditions, expected)


def test_the_command_prints_the_headline_and_writes_all(place: Path, runs: list[Run], tmp_path: Path, capsys) -> None:
    command = ["conditions", str(runs[0].folder), *rules(place)]
    assert main([*command, "--csv", str(tmp_path / "all.csv")]) == 0
    said = capsys.readouterr().out
    kept = runs[0].conditions.set_index(["condition", "metric"])
    lost = kept.loc[("underexposed", "aupro"), "drop"]
    assert re.search(rf"^underexposed +24 +24 +0\.\d+ +{lost:.3f} +\[", said, re.MULTILINE), said
    assert "Loss: against regular, on the parts that show the same" in said
    table = pd.read_csv(tmp_path / "all.csv")
    row = table[(table["metric"] == "aupro") & (table["subset"] == "all") & (table["fpr_limit"] == 0.05)]
    assert row.set_index("condition").loc["underexposed", "drop"] == pytest.approx(lost)
    assert main([*command, "--reference", "shift_1"]) == 0
    assert "Loss: against shift_1" in capsys.readouterr().out
    assert main([*command, "--reference", "shift"]) == 2
    assert "unknown condition 'shift'; did you mean 'shift_1'? Known: regular, shift_1, und" in capsys.readouterr().err
    assert math.isnan(kept.loc[("regular", "aupro"), "drop"])


def edit(name: str, column: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[Path], None]:
    """Return what changes a column of a run's table."""

    def tamper(folder: Path) -> None:
        table = pq.read_table(folder / name)
        values = pa.array(change(table[column].to_pylist()), table.schema.field(column).type)
        pq.write_table(table.set_column(table.column_names.index(column), column, values), folder / name)

    return tamper


def turned(folder: Path) -> None:
    """Turn the lights of all images round in the evidence."""
    lights = dict(zip(sorted(LIGHTS), sorted(LIGHTS, reverse=True), strict=True))
    (name,) = [path.relative_to(folder) for path in folder.glob("evidence/*/images.parquet")]
    edit(str(name), "condition", lambda values: [lights[value] for value in values])(folder)


def one_left_out(folder: Path) -> None:
    table = pq.read_table(folder / "conditions.parquet")
    kept = table.filter(pa.compute.not_equal(table["condition"], "underexposed"))
    pq.write_table(kept, folder / "conditions.parquet")


CAREFUL: dict[str, tuple[Callable[[Path], None], str]] = {
    "value": (
        edit("conditions.parquet", "value", lambda v: [v[0] + 1e-6, *v[1:]]),
        r"conditions under quick: value of regular \S+",
    ),
    "drop": (
        edit("conditions.parquet", "drop", lambda v: [x and x / 2 for x in v]),
        r"conditions under quick: drop of shift_1 ",
    ),
    "interval": (
        edit("conditions.parquet", "drop_low", lambda v: [x and x + 0.01 for x in v]),
        r"conditions under quick: drop_low of shift_1 ",
    ),
    "a condition left out": (one_left_out, r"conditions under quick: no row of underexposed"),
    "all left out": (
        lambda folder: (folder / "conditions.parquet").unlink(),
        r"conditions under quick: no rows, expected \d+",
    ),
    "lights of images": (turned, r"dataset.conditions_sha256 is \w+, the evidence has \w+"),
}


@pytest.mark.parametrize(
    "kinds", [("value", "drop", "interval", "lights of images"), ("a condition left out",), ("all left out",)]
)
def test_what_is_changed_with_care_is_found(runs: list[Run], quick: Protocol, tmp_path: Path, kinds: Any) -> None:
    run = Run(Path(shutil.copytree(runs[0].folder, tmp_path / runs[0].folder.name)))
    for kind in kinds:
        CAREFUL[kind][0](run.folder)
    files = run.files.recorded(path for path in run.files.own() if path != run.files.record)
    write_record(dataclasses.replace(run.about, files=files), run.files.record)
    found = verify_run(Run(run.folder), [quick]).problems
    for kind in kinds:
        assert any(re.search(CAREFUL[kind][1], problem) for problem in found), (kind, found)


def test_what_is_changed_without_care_is_found(runs: list[Run], quick: Protocol, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(runs[0].folder, tmp_path / runs[0].folder.name)))
    CAREFUL["value"][0](run.folder)
    assert any("conditions.parquet: is not as it was" in problem for problem in verify_run(run, [quick]).problems)
