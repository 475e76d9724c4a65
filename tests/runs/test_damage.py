"""Runs of which files are damaged, missing, tampered with or links: named, left out, rebuilt, never believed."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import assert_same_bits

from hrbench import HrbenchError, Run, load_dataset, load_protocol, read_runs
from hrbench.engine.training import Fit
from hrbench.protocol import Protocol
from hrbench.report.plots import gather
from hrbench.report.summary import summarise
from hrbench.runs import shards
from hrbench.runs.job import Job, make_job
from hrbench.runs.runner import run_job
from hrbench.runs.scoring import rescore
from hrbench.runs.store import find_runs


def quick(name: str) -> Protocol:
    """Return a protocol that draws twice only."""
    protocol = load_protocol(name)
    return dataclasses.replace(protocol, bootstrap=dataclasses.replace(protocol.bootstrap, draws=2))


NATIVE = quick("native")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 3)


@pytest.fixture(scope="module")
def job(tree: Path, toy: str) -> Job:
    return make_job(load_dataset("folder", tree).categories[0], toy, preset="native", options={"steps": 2})


def do(job: Job, output: Path) -> Run:
    return run_job(job, output, [NATIVE], device=torch.device("cpu"))


@pytest.fixture(scope="module")
def made(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder of one run; do not write into it."""
    output = tmp_path_factory.mktemp("damage") / "out"
    do(job, output)
    return output


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """Return a copy of that run."""
    shutil.copytree(made, tmp_path / "out")
    return find_runs(tmp_path / "out")[0]


def output_of(run: Run) -> Path:
    return run.folder.parents[3]


def flip(path: Path) -> None:
    """Change a byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def anew(run: Run) -> Run:
    return Run(run.folder)


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with what is done: fits, and images that are predicted for evidence."""
    done: list[str] = []
    train, add = Fit.train, shards.EvidenceCollector.add
    monkeypatch.setattr(Fit, "train", lambda *a, **k: done.append("fit") or train(*a, **k))
    monkeypatch.setattr(shards.EvidenceCollector, "add", lambda *a: done.append("image") or add(*a))
    return done


def test_pages_of_all_tables_have_checksums_and_all_files_digests(run: Run) -> None:
    about = run.about
    files = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert about.files.keys() == files - {"run.json"}
    assert {"weights.safetensors", "fit.json", "pictures/pictures.json"} < files
    assert not run.damaged(maps=True)
    tables = list(run.folder.rglob("*.parquet"))
    assert len(tables) == 9
    for path in tables:
        content = bytearray(path.read_bytes())
        content[60] ^= 0xFF  # of a page, without a digest to tell
        path.write_bytes(content)
        with pytest.raises(OSError, match=r"(?i)crc|checksum|deserialize"):
            pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("records", flip),
        ("records", Path.unlink),
        ("components", flip),
        ("images", Path.unlink),
        ("replicates", lambda path: os.truncate(path, 99)),
    ],
)
def test_a_damaged_table_is_named_and_rescored(run: Run, name: str, how: Callable[[Path], None]) -> None:
    before, path = run.records, run.files.table(name)
    how(path)
    with pytest.raises(HrbenchError, match=rf"{name}\.parquet: is .*`hrbench rescore` makes it again"):
        anew(run).check()
    again = rescore(anew(run), [NATIVE])
    pd.testing.assert_frame_equal(again.records, before)
    again.check()


def test_a_table_of_an_earlier_version_is_read_unchecked_and_rebuilt_when_it_is_gone(run: Run) -> None:
    table = json.loads(run.files.record.read_text(encoding="utf-8"))
    table.pop("files")
    run.files.record.write_text(json.dumps(table), encoding="utf-8")
    before = anew(run).records
    run.files.table("records").unlink()
    with pytest.raises(HrbenchError, match=r"records\.parquet: no such file"):
        anew(run).check()
    pd.testing.assert_frame_equal(rescore(anew(run), [NATIVE]).records, before)


def test_other_protocols_of_a_damaged_table_are_asked_for(run: Run) -> None:
    both = [NATIVE, quick("mvtec")]
    before = rescore(run, both).records
    flip(run.files.table("records"))
    with pytest.raises(HrbenchError, match=r"ask for its other protocols as well: mvtec"):
        rescore(anew(run), [NATIVE])
    pd.testing.assert_frame_equal(rescore(anew(run), both).records, before)


def test_one_damaged_run_is_left_out_with_a_warning(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = output_of(run) / "runs" / "more" / run.folder.name
    shutil.copytree(run.folder, other)
    flip(other / "replicates.parquet")
    (kept,) = read_runs(output_of(run), output_of(run))
    assert kept.folder == run.folder
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert f"{other}/replicates.parquet" in said.getMessage()
    (other / "run.json").write_text("{", encoding="utf-8")
    assert len(read_runs(output_of(run))) == 1
    shutil.rmtree(run.folder)
    with pytest.raises(HrbenchError, match=r"run\.json: not valid JSON"):
        read_runs(output_of(run))


def test_damaged_evidence_is_said_and_a_deleted_calibration_noticed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    folder = run.files.evidence("native-max-8")
    calibration = (folder / "calibration.parquet").read_bytes()
    (folder / "calibration.parquet").unlink()
    with pytest.raises(HrbenchError, match=r"calibration\.parquet: is missing"):
        _ = run.evidence
    (folder / "calibration.parquet").write_bytes(calibration)
    flip(folder / "components.parquet")
    (board,) = summarise([run], NATIVE).leaderboards
    assert not gather(board).curves
    assert "components.parquet: is not as it was written" in caplog.text


@pytest.mark.parametrize(
    ("name", "how", "done"),
    [
        ("pictures/00-photo.jpg", flip, []),
        ("pictures/pictures.json", Path.unlink, []),
        ("fit.json", flip, []),
        ("evidence/native-max-8/calibration.parquet", Path.unlink, ["image"] * 8),
        ("evidence/native-max-8/components.parquet", flip, ["image"] * 8),
        ("weights.safetensors", flip, ["fit"] * 2 + ["image"] * 8),
        ("weights.safetensors", Path.unlink, ["fit"] * 2 + ["image"] * 8),
    ],
)
def test_a_run_does_again_what_is_damaged_and_no_more(
    run: Run, job: Job, name: str, how: Callable[[Path], None], done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, evidence = run.records, run.evidence
    (run.folder / "notes.txt").write_text("mine", encoding="utf-8")
    how(run.folder / name)
    seen = count_fits(monkeypatch)
    again = do(job, output_of(run))
    assert seen == done
    assert not again.damaged()
    pd.testing.assert_frame_equal(again.records, before)
    assert_same_bits(again.evidence, evidence, but=["seconds"])
    assert again.about.cost.fit_seconds is not None
    assert (run.folder / "notes.txt").is_file()
    assert not run.files.scratch.exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_lost_record_loses_neither_good_weights_nor_files_of_others(
    run: Run, job: Job, damaged: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, weights = run.records, run.files.weights.read_bytes()
    run.files.record.unlink()
    (run.files.pictures / "mine.jpg").write_bytes(b"mine")
    (run.folder / "notes").mkdir()
    (run.folder / "notes" / "mine.txt").write_text("mine", encoding="utf-8")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "image.tiff").write_bytes(b"mine")
    (run.folder / "maps").symlink_to(outside)
    if damaged:
        flip(run.files.weights)
    seen = count_fits(monkeypatch)
    again = do(job, output_of(run))
    assert seen == ["fit"] * 2 * damaged + ["image"] * 8
    pd.testing.assert_frame_equal(again.records, before)
    assert run.files.weights.read_bytes() == weights
    assert (run.files.pictures / "mine.jpg").read_bytes() == b"mine"
    assert (run.folder / "notes" / "mine.txt").is_file()
    assert (outside / "image.tiff").is_file()


@pytest.mark.parametrize(
    ("name", "done"),
    [
        ("evidence-00001/native-max-8/components.parquet", ["image"] * 3),
        ("evidence-00001/spent.json", ["image"] * 3),
        ("evidence-00001/inputs.sha256", ["image"] * 3),
        ("calibration-native-max-8.parquet", []),
        ("calibrated.json", []),
        ("train.sha256", ["image"] * 8),
    ],
)
def test_what_is_damaged_of_an_unfinished_job_is_done_again(
    run: Run, job: Job, name: str, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run.records
    (run.files.pictures / "pictures.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("hrbench.runs.stages.finish_run", lambda *_, **__: _stop())
        with pytest.raises(KeyboardInterrupt):
            do(job, output_of(run))  # all is there but the scores
    path = run.files.scratch / name
    os.truncate(path, path.stat().st_size // 2)
    seen = count_fits(monkeypatch)
    pd.testing.assert_frame_equal(do(job, output_of(run)).records, before)
    assert seen == done


def _stop() -> None:
    raise KeyboardInterrupt


def test_a_run_of_an_earlier_version_keeps_what_it_is_not_known_to_lack(run: Run, job: Job) -> None:
    """Who has kept only the tables of old runs does not lose them, or hours, by naming their folder."""
    table = json.loads(run.files.record.read_text(encoding="utf-8"))
    table.pop("files")
    run.files.record.write_text(json.dumps(table), encoding="utf-8")
    for name in ("evidence", "pictures"):
        shutil.rmtree(run.folder / name)
    run.files.weights.unlink()
    assert do(job, output_of(run)).about.created == run.about.created
