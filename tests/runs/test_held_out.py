"""The share of normal training images that no fit sees: which they are, what identifies a run, and fits on all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_bits, write_tree

import hrbench
from hrbench import HrbenchError, cli, load_dataset, load_protocol
from hrbench.data.sample import Category
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit
from hrbench.grid.worker import StageWorker, fit_files
from hrbench.method import Method
from hrbench.protocol import Bootstrap
from hrbench.registry import create_method, load_method, source_digest
from hrbench.runs import stages
from hrbench.runs.job import Job, identities, make_job, split_normals
from hrbench.runs.runner import run_job
from hrbench.runs.stages import Setting
from hrbench.runs.store import Run

CPU = torch.device("cpu")
PROTOCOLS = (dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10)),)


@pytest.fixture
def category(tree: Path) -> Category:
    return load_dataset("folder", tree, ["nut"]).categories[0]


def run(job: Job, output: Path) -> Run:
    return run_job(job, output, PROTOCOLS, device=CPU)


def of_size(category: Category, train: int) -> Category:
    return dataclasses.replace(category, train=category.train[:1] * train)


@pytest.mark.parametrize(
    ("share", "train", "held"),
    [
        *((None, 2, 1), (None, 8, 1), (None, 56, 6), (None, 57, 19), (None, 184, 19), (None, 500, 50)),
        *((0, 1, 0), (0.0, 500, 0), (0.1, 57, 6), (0.25, 8, 2), (0.001, 8, 1), (0.99, 8, 7), (0.5, 2, 1)),
    ],
)
def test_how_many_are_held_out(category: Category, share: float | None, train: int, held: int) -> None:
    fitted, held_out = split_normals(of_size(category, train), share)
    assert (len(fitted), len(held_out)) == (train - held, held)


def test_the_smaller_share_is_among_the_larger(category: Category) -> None:
    few, many = ({s.id for s in split_normals(category, share)[1]} for share in (0.25, 0.5))
    assert few < many


def test_a_fit_needs_an_image(category: Category) -> None:
    with pytest.raises(HrbenchError, match="no normal training image, expected some"):
        split_normals(of_size(category, 0), 0)
    with pytest.raises(HrbenchError, match=r"1 normal training image, expected at least 2 .* or --held-out 0"):
        split_normals(of_size(category, 1), 0.5)


@pytest.mark.parametrize("train", [8, 60])
def test_runs_with_the_default_keep_their_names(category: Category, toy: str, train: int) -> None:
    cls, category = load_method(toy), of_size(category, train)
    job = make_job(category, toy, preset="demo", seed=3)
    identity = [category.names_digest, "toy_adapter", source_digest(cls), identities(cls, job.options), "whole:32", 3]
    identity += ["19 held out"] * (train == 60)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    assert job.name == f"toy_adapter-demo-s3-{digest[:8]}"


def test_every_share_is_another_run(category: Category, toy: str) -> None:
    shares = [None, 0, 0.0, 0.125, 0.2]  # by default one of eight
    names = [make_job(category, toy, preset="demo", held_out=share).name for share in shares]
    assert names[1] == names[2]
    assert len(set(names)) == 4


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, math.nan, math.inf, True, "0.1"])
def test_a_share_out_of_range_is_named(category: Category, toy: str, share: Any) -> None:
    with pytest.raises(HrbenchError, match=r"held_out is .*, expected a share .* from 0 to below 1"):
        make_job(category, toy, preset="demo", held_out=share)


def test_looks_cannot_be_fused_without_held_out_images(category: Category, toy: str) -> None:
    with pytest.raises(HrbenchError, match=r"held_out is 0 with view 'whole:32\+tiled:32:8'.*above 0, or one look"):
        make_job(category, toy, preset="demo", view="whole:32+tiled:32:8", held_out=0)


def test_a_fit_on_all_sets_no_threshold(
    category: Category, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []

    class Counted(ViewedNormals):
        def __init__(self, samples: Any, view: Any) -> None:
            fitted.append(len(samples))
            super().__init__(samples, view)

    monkeypatch.setattr(stages, "ViewedNormals", Counted)
    done = run(make_job(category, toy, preset="demo", held_out=0), tmp_path)
    assert fitted == [8]
    about = done.about
    assert (about.dataset.held_out, about.dataset.held_out_share, about.dataset.train) == (0, 0.0, 8)
    assert (about.threshold.value, about.threshold.normal_images) == (None, 0)
    assert done.evidence.calibration is None
    value = done.records.query("subset == 'all'").set_index("metric")["value"]
    assert np.isnan(value[["recall", "iou", "alarms"]]).all()
    assert value[["pixel_auroc", "image_auroc"]].notna().all()
    assert run(make_job(category, toy, preset="demo"), tmp_path).about.dataset.held_out_share is None
    assert fitted == [8, 1, 7]


def test_a_fit_on_all_resumes_and_is_mended(
    category: Category, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    job = make_job(category, toy, preset="demo", held_out=0)
    whole = run(job, tmp_path / "whole")
    for step in ("_calibrate", "predict", "score"):
        with monkeypatch.context() as patch:
            patch.setattr(stages.Workbench, step, kill)
            with pytest.raises(Killed):
                run(job, tmp_path / "killed")
    assert_same_bits(run(job, tmp_path / "killed").evidence, whole.evidence, but=["seconds"])
    (whole.folder / "images.parquet").unlink()
    assert_same_bits(run(job, tmp_path / "whole").evidence, whole.evidence, but=["seconds"])


def test_a_worker_sends_a_fit_on_all(category: Category, toy: str, tmp_path: Path) -> None:
    setting, worker = Setting(PROTOCOLS), StageWorker("cpu", 1)
    job = make_job(category, toy, preset="demo", held_out=0)
    _, parcel = worker.fit(job, setting, 1)
    worker.close()
    assert not [path for path in fit_files(job, job.folder(tmp_path), setting) if "calibration" in path.name]
    assert worker.predict(job, setting, 1, lambda: parcel, [0])[0][0]


def test_a_method_that_asks_for_what_is_not_there_is_told_before_it_trains(toy: str) -> None:
    fit = Fit(create_method(toy), held_out=None, seed=0, device=CPU)
    with pytest.raises(HrbenchError, match="Toy: its fit looks at held-out normal images, and held_out is 0; expected"):
        _ = fit.held_out


def test_nothing_calibrates_a_fit_on_all(
    category: Category, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, calls = load_method(toy), []
    monkeypatch.setattr(cls, "calibrate", lambda self, maps: calls.append(len(list(maps))))
    monkeypatch.setattr(stages, "load_method", lambda _: cls)
    assert cls.calibrate is not Method.calibrate
    run(make_job(category, toy, preset="demo", held_out=0), tmp_path)
    assert calls == []
    run(make_job(category, toy, preset="demo", held_out=0.5), tmp_path)
    assert calls == [4]


def test_the_command_line_and_its_plan(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "data", categories=("bolt", "nut"), train=1)  # enough where none is held out
    words = ["run", "--root", str(root), "--methods", toy, "--preset", "demo", "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--held-out", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hrbench: held_out is 2.0, expected a share")
    assert cli.main([*words, "--held-out", "0", "--dry-run"]) == 0
    plan = capsys.readouterr().err
    assert plan.splitlines()[0].endswith("; normal training images: none held out")
    assert "expected: about" in plan
    (tmp_path / "grid.toml").write_text("held_out = 0", encoding="utf-8")
    assert cli.main([words[0], str(tmp_path / "grid.toml"), *words[1:]]) == 0
    assert "none held out" in capsys.readouterr().out
    assert {run.about.dataset.held_out_share for run in hrbench.read_runs(tmp_path / "out")} == {0.0}
    assert cli.main([*words, "--held-out", "0.5"]) == 2
    assert "1 training image, expected at least 2: one is held out" in capsys.readouterr().err
