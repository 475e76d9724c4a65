"""A job that goes on as it was begun: batch size, compiled backbones and saved maps are those of its first attempt."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_bits

from hrbench import HrbenchError, load_dataset, load_protocol
from hrbench.method import Method
from hrbench.protocol import Bootstrap
from hrbench.runs import shards, stages
from hrbench.runs.job import Job, make_job
from hrbench.runs.runner import run_job
from hrbench.runs.stages import Setting, noted, settle
from hrbench.runs.store import Run, RunFolder

PROTOCOLS = (dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10)),)


class Killed(BaseException):
    """Stands for a process that ends anywhere."""


@pytest.fixture
def job(tree: Path, toy: str) -> Job:
    return make_job(load_dataset("folder", tree, ["nut"]).categories[0], toy, preset="demo")


@pytest.fixture
def folder(job: Job, tmp_path: Path) -> RunFolder:
    return job.folder(tmp_path)


def run(job: Job, output: Path, **setting: Any) -> Run:
    return run_job(job, output, PROTOCOLS, device=torch.device("cpu"), **setting)


def kill_after_a_shard(job: Job, output: Path, monkeypatch: pytest.MonkeyPatch, **setting: Any) -> None:
    write = shards.EvidenceShards._write

    def killed(self: shards.EvidenceShards, *arguments: Any) -> None:
        write(self, *arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shards.EvidenceShards, "_write", killed)
        with pytest.raises(Killed):
            run(job, output, **setting)


def test_another_batch_size_mixes_no_shards(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shards, "CHUNK", 3)
    sizes: list[int] = []
    asked = Method.predict_inputs
    monkeypatch.setattr(
        Method, "predict_inputs", lambda self, batch, n: sizes.append(len(batch)) or asked(self, batch, n)
    )
    whole = run(job, tmp_path / "whole", batch_size=2)
    expected = sorted(sizes)
    sizes.clear()
    kill_after_a_shard(job, tmp_path / "killed", monkeypatch, batch_size=2)
    resumed = run(job, tmp_path / "killed", batch_size=5)
    assert_same_bits(resumed.evidence, whole.evidence, but=["seconds"])
    assert resumed.about.batch_size == 2
    assert set(sizes) == set(expected) == {1, 2}
    assert f"{job.label}: goes on with batch_size = 2, as it was begun" in caplog.text
    assert run(job, tmp_path / "killed", batch_size=5).about.batch_size == 2  # done: as it is


def test_maps_that_were_begun_to_be_saved_are_all_there(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CHUNK", 3)
    kill_after_a_shard(job, tmp_path, monkeypatch, save_maps=True)
    resumed = run(job, tmp_path)
    assert all(resumed.files.map_of(sample.id).is_file() for sample in job.category.test)


def test_what_nothing_depends_on_yet_is_as_it_is_asked(job: Job, folder: RunFolder) -> None:
    settle(job, folder, Setting(PROTOCOLS, 2, save_maps=True, compiled=True))
    asked = Setting(PROTOCOLS, 5)
    assert settle(job, folder, asked) == asked
    assert noted(folder, Setting(PROTOCOLS, 7)) == asked


def test_a_fit_goes_on_with_compiled_backbones_and_another_batch_size(job: Job, folder: RunFolder) -> None:
    settle(job, folder, Setting(PROTOCOLS, 2, compiled=True))
    folder.checkpoint.touch()
    assert settle(job, folder, Setting(PROTOCOLS, 5)) == Setting(PROTOCOLS, 5, compiled=True)


@pytest.mark.parametrize("learns", [False, True])
def test_weights_that_were_learnt_from_predictions_keep_the_batch_size(
    job: Job, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, learns: bool
) -> None:
    settle(job, folder, Setting(PROTOCOLS, 2))
    folder.fit_cost.touch()
    if learns:
        cls = type("Calibrating", (Method,), {"calibrate": lambda self, maps: None})
        monkeypatch.setattr(stages, "load_method", lambda reference: cls)
    assert settle(job, folder, Setting(PROTOCOLS, 5)).batch_size == (2 if learns else 5)


def test_it_is_said_once(job: Job, folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    settle(job, folder, Setting(PROTOCOLS, 4))
    folder.calibrated.touch()
    stages._say.cache_clear()  # each text is said once in a process, and jobs of other tests are called the same
    with caplog.at_level(logging.WARNING, "hrbench"):
        for _ in range(2):
            settle(job, folder, Setting(PROTOCOLS, 5))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("text", ["", "{}", '{"batch_size": "2", "compiled": false, "save_maps": false}', "[]"])
def test_a_damaged_note_is_one_error(job: Job, folder: RunFolder, text: str) -> None:
    folder.scratch.mkdir(parents=True)
    folder.setting.write_text(text)
    with pytest.raises(HrbenchError, match=r"setting.json: damaged, .* remove .*partial to begin it anew"):
        settle(job, folder, Setting(PROTOCOLS))
