"""Names from outside, through a whole run: kept as they are in what is recorded, each in a folder of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import write_tree

import hrbench
from hrbench import HrbenchError
from hrbench.cli import main
from hrbench.data import Sample
from hrbench.runs.job import make_job
from hrbench.runs.map_files import find_maps

DESCRIPTOR = 'name = "mine"\ntitle = "Mine"\nlicence = "own"\ncitation = "none"\nurl = "here"\nlayout = "mvtec"\n'


def small(root: Path, *categories: str) -> Path:
    return write_tree(root, categories=categories or ("bolt",), train=2, good=1, bad=2, size=(32, 32))


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_run_keeps_real_names_and_says_neither_who_ran_it_nor_where(toy: str, tmp_path: Path) -> None:
    home = tmp_path / "lovelace"
    root, adapter, weights, out = small(home / "数据集一"), home / "mine.py", home / "w.pth", home / "out"
    shutil.copy(toy, adapter)
    weights.write_bytes(b"weights")
    for place, stem in (("test/good/000.png", "x" * 240), ("test/dent/000.png", "y" * 246)):
        (root / "bolt" / place).rename(root / "bolt" / place.replace("000", stem))
    (root / "bolt/ground_truth/dent/000_mask.png").rename(root / "bolt/ground_truth/dent" / ("y" * 246 + ".png"))
    options = {str(adapter): {"weights": str(weights)}}
    study = hrbench.run("folder", [str(adapter)], root=root, output=out, preset="demo", options=options, save_maps=True)
    (run,) = study.runs
    assert run.about.dataset.name == "数据集一"
    assert set(run.records["dataset"]) == {"数据集一"}
    assert run.folder.relative_to(out).parts[:3] == ("runs", "_~69da08f2896b", "bolt")
    assert run.about.method.reference == "mine.py"
    assert len(run.about.method.source_sha256) == 64
    assert run.about.method.weights_source == "w.pth"
    assert len(list((run.folder / "maps").rglob("*.tiff"))) == 3
    for path in files(run.folder):
        assert b"lovelace" not in path.read_bytes(), path
    tables = (run.records, run.images, run.components, run.evidence.images)
    assert not any("lovelace" in str(value) for table in tables for value in table.to_numpy().ravel())


def test_text_of_a_csv_is_no_formula(tmp_path: Path) -> None:
    root = small(tmp_path / "-parts")
    for place in ("test/good/000", "test/dent/000", "test/dent/001"):
        path = tmp_path / "maps/bolt" / f"{place}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(0).normal(size=(32, 32)))
    command = ["--root", str(root), "--maps", str(tmp_path / "maps"), "--name", "=theirs", "--output", str(tmp_path)]
    assert main(["evaluate", *command]) == 0
    (path,) = tmp_path.rglob("records.csv")
    table, (run,) = pd.read_csv(path), hrbench.read_runs(tmp_path)
    assert set(table["method"]) == {"'=theirs"}
    assert set(table["dataset"]) == {"'-parts"}
    pd.testing.assert_series_equal(table["value"], run.records["value"])


def test_options_that_name_folders_are_recorded_without_them(tmp_path: Path, toy: str) -> None:
    category = hrbench.load_dataset("folder", small(tmp_path / "parts")).categories[0]
    (tmp_path / "lovelace").mkdir()
    jobs = [
        make_job(category, toy, preset="demo", options={"weights": str(path)})
        for path in (tmp_path / "lovelace", tmp_path)
    ]
    assert jobs[0].weights == "lovelace at"
    assert str(tmp_path) not in str(jobs[0].recorded_options)
    assert jobs[0].name != jobs[1].name


@pytest.mark.parametrize("name", ["../../../../victim", "/etc", "", ".", "a/../../x", "a\\\\b", "C:x"])
def test_a_category_leads_nowhere(toy: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = small(tmp_path / "1/2/3/parts")
    small(tmp_path / "victim", ".")
    (tmp_path / "mine.toml").write_text(f'{DESCRIPTOR}[categories."{name}"]\n')
    before = files(tmp_path)
    command = ["--dataset", str(tmp_path / "mine.toml"), "--root", str(root), "--output", str(tmp_path / "out/out")]
    assert main(["run", *command, "--methods", toy, "--preset", "demo", "--save-maps"]) == 2
    assert "mine.toml: [categories]: " in (said := capsys.readouterr().err)
    assert len(said.splitlines()) == 1
    assert files(tmp_path) == before


def test_maps_are_looked_for_below_their_folder_only(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    for id_, category in (("../a.png", "x"), ("/a.png", "x"), ("a.png", "../x"), ("a.png", "/x")):
        with pytest.raises(HrbenchError, match="leaves its folder"):
            find_maps(tmp_path / "maps", [Sample(id_, Path("a.png"), None, 0, "good", "test", category)])


@pytest.mark.parametrize("part", ["", "bolt", "bolt/test/good/000.png"])
def test_names_that_are_not_utf8_are_one_error(
    toy: str, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small(tmp_path / "parts")
    path = root / part
    other = path.with_name(os.fsdecode(b"\xff") + path.suffix)
    path.rename(other)
    if not part:
        root = other
    with pytest.raises(HrbenchError, match=r"'.*\\udcff.*': not UTF-8, expected a name that is; rename it"):
        hrbench.load_dataset("folder", root)
    assert main(["data", "check", "--root", str(root)]) in (1, 2)
    said = capsys.readouterr()
    assert r"\udcff" in said.out + said.err


def test_arguments_that_are_not_utf8_are_one_error(
    tmp_path: Path, toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / os.fsdecode(b"\xff"))
    assert main(["run", "--root", str(tmp_path), "--methods", toy, "--output", output]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    with pytest.raises(HrbenchError, match="not UTF-8"):
        hrbench.run("folder", [toy], root=small(tmp_path / "parts"), output=output, preset="demo")
