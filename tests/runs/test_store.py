"""Finished runs read back from one folder or from several."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

import hrbench
from hrbench import HrbenchError, Run, report
from hrbench.cli import main
from hrbench.runs.record import write_record
from hrbench.runs.store import RunFolder, find_runs


@pytest.fixture(scope="module")
def made(tree: Path, toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two runs, `bolt` and `nut`; do not write into it."""
    output = tmp_path_factory.mktemp("made") / "out"
    assert not hrbench.run("folder", [toy], root=tree, output=output, options={toy: {"steps": 2}}).failures
    return output


@pytest.fixture
def two(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of that folder: `a` has both runs, `b` has only `nut`."""
    a, b = tmp_path / "a", tmp_path / "b"
    shutil.copytree(made, a)
    shutil.copytree(made, b)
    for run in find_runs(b):
        if run.about.dataset.category == "bolt":
            shutil.rmtree(run.folder)
    return a, b


def change(run: Run, row: int, value: float) -> float:
    """Change a recorded value; return what it was."""
    records = run.records.copy()
    before = float(records.loc[row, "value"])
    records.loc[row, "value"] = value
    records.to_parquet(run.files.table("records"))
    believe(run)
    return before


def believe(run: Run) -> None:
    """Let a run's record say what its files hold now."""
    about = Run(run.folder).about
    write_record(dataclasses.replace(about, files=run.files.recorded(run.folder / name for name in about.files)),
                 run.files.record)  # fmt: skip


def test_the_same_run_in_two_folders_is_read_once_and_from_the_first(
    two: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = two
    assert [run.folder.is_relative_to(a) for run in hrbench.read_runs(a, b)] == [True, True]
    runs = hrbench.read_runs(str(b), a)
    assert [(run.about.dataset.category, run.folder.is_relative_to(b)) for run in runs] == [
        ("nut", True),
        ("bolt", False),
    ]
    assert not caplog.records  # they record the same


def test_other_values_of_the_same_run_are_a_warning_that_names_both(
    two: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = two
    (theirs,) = find_runs(b)
    (ours,) = (run for run in find_runs(a) if run.about.dataset.category == "nut")
    assert ours.records["value"].isna().any()
    row = int(ours.records["value"].first_valid_index())
    before = change(theirs, row, ours.records.loc[row, "value"] + 1e-9)
    runs = hrbench.read_runs(a, b, b)  # said once, however often a folder is given
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{theirs.folder} has other values than the same run in {ours.folder}, which is used"
    assert [run.records.loc[row, "value"] for run in runs if run.folder == ours.folder] == [before]
    caplog.clear()
    change(Run(theirs.folder), row, math.nan)
    hrbench.read_runs(a, b)
    assert len(caplog.records) == 1


def test_a_protocol_that_only_one_of_them_has_is_no_other_value(
    two: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    a, b = two
    (theirs,) = find_runs(b)
    more = pd.concat([theirs.records, theirs.records.assign(protocol="mine", value=0.5)], ignore_index=True)
    more.to_parquet(theirs.files.table("records"))
    believe(theirs)
    hrbench.read_runs(a, b)
    assert not caplog.records


def test_folders_given_twice_or_inside_each_other_double_nothing(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = two
    (a.parent / "link").symlink_to(a)
    (theirs,) = find_runs(b)
    change(theirs, int(theirs.records["value"].first_valid_index()), 7.0)
    monkeypatch.chdir(a.parent)
    folder = theirs.folder
    for folders in (
        [a, a],
        [a, "a"],
        [a, a / "runs" / "parts", "a/../a"],
        [a / "runs" / "parts" / "bolt", "link", "a"],
    ):
        assert len(hrbench.read_runs(*folders)) == 2, folders
    for folders in ([b, folder], [folder, b], [folder, folder.parent, b]):
        assert len(hrbench.read_runs(*folders)) == 1, folders
    assert not caplog.records
    assert len(hrbench.read_runs(a.parent)) == 2  # both folders in one, with other values
    assert len(caplog.records) == 1
    assert len(find_runs(a.parent)) == 3


def test_a_folder_without_runs_is_named(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HrbenchError, match=r"empty: no finished run"):
        hrbench.read_runs(two[0], tmp_path / "empty")


def test_leaderboard_and_plot_of_several_folders(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two
    shutil.rmtree(next(run.folder for run in find_runs(a) if run.about.dataset.category == "nut"))
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "a", "b"]) == 0
    table = pd.read_csv(a / "report" / "leaderboard.csv")
    assert set(table["category"]) >= {"bolt", "nut"}
    assert not (b / "report").exists()
    drawn = []
    monkeypatch.setattr(report, "write_plots", lambda runs, folder, _, **__: drawn.append((len(runs), folder)) or [])
    assert main(["plot", "b", "a"]) == main(["plot", "b", "--output", "plots"]) == 0
    assert drawn == [(2, Path("b/report")), (1, Path("plots"))]
    capsys.readouterr()
    assert main(["leaderboard", "a", "nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert main(["leaderboard"]) == 2
    assert "runs: no such folder, expected one with runs; `hrbench run` makes them" in capsys.readouterr().err


def test_output_nests_once_and_runs_in_the_old_place_are_found(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert RunFolder.of(runs, "parts", "bolt", "toy-1").path == runs / "parts" / "bolt" / "toy-1"
    assert RunFolder.of(tmp_path / "out", "parts", "bolt", "toy-1").path == tmp_path / "out/runs/parts/bolt/toy-1"
    (runs / "runs" / "parts" / "bolt" / "toy-1").mkdir(parents=True)
    assert RunFolder.of(runs, "parts", "bolt", "toy-1").path == runs / "runs" / "parts" / "bolt" / "toy-1"
    assert RunFolder.of(runs, "parts", "bolt", "toy-2").path == runs / "parts" / "bolt" / "toy-2"


def test_the_folder_that_one_stands_in_may_be_called_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    assert RunFolder.of(Path(), "parts", "bolt", "toy-1").path == Path("parts/bolt/toy-1")
