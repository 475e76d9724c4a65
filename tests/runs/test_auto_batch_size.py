"""Jobs whose batch size is found: once for jobs that are alike, recorded, and kept by who goes on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bits

from hrbench import Detector, HrbenchError, load_dataset, load_protocol
from hrbench import fit as fit_detector
from hrbench import run as run_grid
from hrbench.data.loose import find_loose
from hrbench.method import Method
from hrbench.protocol import Bootstrap
from hrbench.runs import detector as detector_module
from hrbench.runs import shards, stages
from hrbench.runs.job import Job, make_job
from hrbench.runs.predictions import predict_files
from hrbench.runs.runner import Runner, run_job
from hrbench.runs.stages import Setting, settle
from hrbench.runs.store import Run

PROTOCOLS = (dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10)),)
CPU = torch.device("cpu")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a search says, from the end; the number of searches is how much is gone."""
    answers = [9, 7, 5, 3]
    for module in (stages, detector_module):
        monkeypatch.setattr(module, "find_batch_size", lambda *arguments, **options: answers.pop())
    return answers


def job_of(tree: Path, toy: str, **options: Any) -> Job:
    return make_job(load_dataset("folder", tree, ["nut"]).categories[0], toy, preset="demo", **options)


def run(job: Job, output: Path, **setting: Any) -> Run:
    return run_job(job, output, PROTOCOLS, device=CPU, **setting)


def test_it_is_found_once_and_recorded_and_the_number_gives_the_same_bits(tree, toy, tmp_path, found):
    runs = [run(job_of(tree, toy, seed=seed), tmp_path, batch_size="auto") for seed in (0, 1)]
    assert found == [9, 7, 5]
    assert [done.about.batch_size for done in runs] == [3, 3]
    assert all(done.about.batch_size_found for done in runs)
    (kept,) = (tmp_path / "runs" / ".batch-sizes").iterdir()
    assert json.loads(kept.read_text())["batch_size"] == 3
    explicit = run(job_of(tree, toy), tmp_path / "explicit", batch_size=3)
    assert_same_bits(runs[0].evidence, explicit.evidence, but=["seconds"])
    assert "batch_size_found" not in (explicit.folder / "run.json").read_text()
    run(job_of(tree, toy, view="tiled:32:8"), tmp_path, batch_size="auto")  # another view, another search
    assert found == [9, 7]
    kept.write_text("nonsense")
    run(job_of(tree, toy, seed=2), tmp_path, batch_size="auto")
    assert found == [9]


def test_a_method_that_calibrates_does_so_in_batches_of_that_size(tree, toy, tmp_path, found, monkeypatch):
    sizes: list[int] = []
    asked = Method.predict_inputs
    monkeypatch.setattr(
        Method, "predict_inputs", lambda self, batch, n: sizes.append(len(batch)) or asked(self, batch, n)
    )
    cls = stages.load_method(toy)
    monkeypatch.setattr(cls, "calibrate", lambda self, maps: [None for _ in maps])
    done = run(job_of(tree, toy), tmp_path, batch_size="auto")
    assert max(sizes) == done.about.batch_size == 3
    assert done.about.cost.fit_seconds > 0
    assert done.about.cost.fit_peak_host_mib > 0


class Killed(BaseException):
    """Stands for a process that ends anywhere."""


def test_who_goes_on_keeps_what_was_found(tree, toy, tmp_path, found, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 3)
    write, job = shards.EvidenceShards._write, job_of(tree, toy)
    whole = run(job, tmp_path / "whole", batch_size=3)

    def killed(self: shards.EvidenceShards, *arguments: Any) -> None:
        write(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shards.EvidenceShards, "_write", killed)
        with pytest.raises(Killed):
            run(job, tmp_path / "killed", batch_size="auto")
    shutil.rmtree(tmp_path / "killed" / "runs" / ".batch-sizes")
    with Runner(tmp_path / "killed", Setting(PROTOCOLS, "auto"), CPU) as helper:
        monkeypatch.setattr("hrbench.runs.runner.WORTH_HELPING", 1)
        assert helper.help(job)
    resumed = run(job, tmp_path / "killed", batch_size="auto")
    assert found == [9, 7, 5]
    assert resumed.about.batch_size == 3
    assert_same_bits(resumed.evidence, whole.evidence, but=["seconds"])


@pytest.mark.parametrize(
    ("predicted", "asked", "expected"),
    [(False, "auto", (3, True)), (True, "auto", (3, True)), (True, 5, (3, True)), (False, 5, (5, False))],
)
def test_what_was_found_is_settled(tree, toy, tmp_path, caplog, predicted, asked, expected):
    job = job_of(tree, toy)
    folder = job.folder(tmp_path)
    settle(job, folder, Setting(PROTOCOLS, 3, batch_size_found=True))
    if predicted:
        folder.calibrated.touch()
    setting = settle(job, folder, Setting(PROTOCOLS, asked))
    assert (setting.batch_size, setting.batch_size_found) == expected
    assert ("goes on with batch_size = 3" in caplog.text) == (predicted and asked == 5)


def test_a_number_that_was_begun_stays_where_results_depend_on_it(tree, toy, tmp_path):
    job = job_of(tree, toy)
    folder = job.folder(tmp_path)
    settle(job, folder, Setting(PROTOCOLS, 4))
    assert settle(job, folder, Setting(PROTOCOLS, "auto")).batch_size == "auto"
    settle(job, folder, Setting(PROTOCOLS, 4))
    folder.calibrated.touch()
    assert settle(job, folder, Setting(PROTOCOLS, "auto")) == Setting(PROTOCOLS, 4)


def test_without_held_out_images_it_is_found_before_the_first_chunk(tree, toy, tmp_path, found):
    done = run(job_of(tree, toy, held_out=0.0), tmp_path, batch_size="auto")
    assert (done.about.batch_size, found) == (3, [9, 7, 5])


def test_a_detector_finds_its_own_and_a_folder_of_predictions_keeps_it(tree, toy, tmp_path, found):
    fitted = fit_detector(toy, tree / "nut" / "train" / "good", preset="demo", device="cpu", batch_size="auto")
    assert (fitted.batch_size, fitted.about.batch_size_found, found) == (3, True, [9, 7, 5])
    fitted.save(tmp_path / "detector")
    assert Detector.load(tmp_path / "detector", method=toy, device="cpu").batch_size == 3
    images = find_loose([tree / "nut" / "test"])
    for _ in range(2):
        loaded = Detector.load(tmp_path / "detector", method=toy, device="cpu", batch_size="auto")
        predict_files(loaded, images, tmp_path / "predicted", save_maps=False)
        assert loaded.batch_size == 5
    assert found == [9, 7]
    assert json.loads((tmp_path / "predicted" / "predictions.json").read_text())["batch_size"] == 5
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    loaded = Detector.load(tmp_path / "detector", method=toy, device="cpu", batch_size="auto")
    verdicts = list(loaded.predict([bad, images[0].image], failed=lambda sample, error: None))
    assert len(verdicts) == 1


def test_a_grid_takes_the_word_and_no_other(tree, toy, tmp_path, found):
    options: dict[str, Any] = {
        "root": tree,
        "output": tmp_path,
        "categories": ["nut"],
        "preset": "demo",
        "device": "cpu",
    }
    study = run_grid("folder", [toy], batch_size="auto", seeds=[0, 1], protocols=PROTOCOLS, **options)
    assert [done.about.batch_size for done in study.runs] == [3, 3]
    with pytest.raises(HrbenchError, match="batch size is 'most', expected at least 1, or 'auto'"):
        run_grid("folder", [toy], batch_size="most", **options)
