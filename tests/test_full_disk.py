"""A disk that is full ends a grid before another fit begins; what was computed is kept, the same command goes on."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import hrbench
from hrbench import load_dataset, load_protocol
from hrbench.cli import main
from hrbench.engine.training import Fit
from hrbench.errors import Halted
from hrbench.grid.engine import Watch
from hrbench.grid.foreman import Foreman
from hrbench.grid.worker import Failed, StageWorker
from hrbench.protocol import Bootstrap
from hrbench.runs import stages
from hrbench.runs.external_maps import score_maps
from hrbench.runs.job import Job, make_job
from hrbench.runs.lease import Leases
from hrbench.runs.runner import Runner
from hrbench.runs.stages import Setting

FEW_DRAWS = dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10))
SETTING = Setting((FEW_DRAWS,))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tell which fits have begun."""
    begun: list[str] = []
    real = Fit.__init__

    def init(fit: Fit, *arguments: Any, label: str = "", **options: Any) -> None:
        if "seed" in label:  # of a job, not of a rehearsal
            begun.append(label)
        real(fit, *arguments, label=label, **options)

    monkeypatch.setattr(Fit, "__init__", init)
    return begun


def refusing(number: int) -> Callable[..., None]:
    def write(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return write


@pytest.fixture
def command(tree: Path, toy: str, tmp_path: Path) -> list[str]:
    return ["run", "--root", str(tree), "--methods", toy, "--preset", "demo", "--device", "cpu", "--output",
            str(tmp_path / "out")]  # fmt: skip


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_ends_the_grid(
    command: list[str], fits: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save_file", refusing(number))
        assert main(command) == 75
    error = capsys.readouterr().err
    assert [line for line in error.splitlines() if "weights.safetensors: " in line]
    assert "stopped, 2 jobs left; the same command goes on" in error
    assert "Traceback" not in error
    assert "failed" not in error
    assert len(fits) == 1
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert "fit-0.pt" in left  # what the fit has learnt
    assert not [name for name in left if name.endswith((".failed.json", ".lease", ".tmp"))]


def test_what_one_job_is_not_allowed_loses_no_other(
    command: list[str], fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save_file", refusing(errno.EACCES))
        assert main(command) == 2
    error = capsys.readouterr().err
    assert "weights.safetensors: permission denied; expected" in error
    assert "Traceback" not in error
    assert "2 of 2 jobs failed" in error
    assert len(fits) == 2


def test_what_ended_before_the_disk_was_full_is_told(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.save_file

    def write(state: Any, path: Path) -> None:
        refusing(errno.ENOSPC)() if list(tmp_path.rglob("run.json")) else real(state, path)

    monkeypatch.setattr(stages, "save_file", write)
    study = hrbench.run("folder", [toy], root=tree, output=tmp_path, preset="demo", protocols=[FEW_DRAWS])
    assert [run.about.dataset.category for run in study.runs] == ["bolt"]
    assert (study.failures, len(study.left)) == ((), 1)
    assert isinstance(study.halted, Halted)
    assert "no space left" in str(study.halted)


def test_who_helps_does_not_go_on_with_other_jobs(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "", "shard")

    monkeypatch.setattr(Runner, "advance", lambda *_: None)  # others have all of them
    monkeypatch.setattr(Runner, "help", full)
    study = hrbench.run("folder", [toy], root=tree, output=tmp_path, preset="demo", categories=["nut"])
    assert str(study.halted).startswith("shard: no space left")


@pytest.fixture
def job(tree: Path, toy: str) -> Job:
    return make_job(load_dataset("folder", tree).categories[0], toy, preset="demo")


def test_a_worker_whose_disk_is_full_ends_the_grid_of_all(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(stages, "save_file", refusing(errno.ENOSPC))
    worker = StageWorker("cpu", 1)
    with Foreman([job], tmp_path / "out", SETTING, Watch(), put=lambda value: value) as foreman:
        call = foreman.next("worker", 1, 1)
        assert call is not None
        result = worker.fit(*call.arguments)
        assert isinstance(result, Failed)
        assert (result.halts, result.traceback) == (True, "")
        with pytest.raises(Halted, match=r"weights\.safetensors: no space left .* \(on node "):
            foreman.received("worker", result)
    assert not job.folder(tmp_path / "out").lease.exists()
    assert not job.folder(tmp_path / "out").failed.exists()


def test_a_foreman_whose_own_disk_is_full(job: Job, tmp_path: Path) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        Foreman([job], tmp_path, SETTING, Watch(), put=lambda value: value) as foreman,
    ):
        patch.setattr(Path, "touch", refusing(errno.ENOSPC))
        with pytest.raises(Halted, match=f"^{job.folder(tmp_path).path}: no space left"):
            foreman.next("worker", 1, 1)
    assert Leases().take(job.folder(tmp_path).lease)


@pytest.fixture(scope="module")
def maps(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Anomaly maps of one category."""
    folder = tmp_path_factory.mktemp("maps")
    for image in sorted((tree / "nut" / "test").rglob("*.png")):
        path = (folder / image.relative_to(tree)).with_suffix(".tiff")
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, np.random.default_rng(0).random((48, 70), dtype=np.float32))
    return folder


@pytest.fixture(scope="module")
def runs(tree: Path, maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs")
    score_maps(load_dataset("folder", tree, ["nut"]).categories, maps, output, [FEW_DRAWS], name="made")
    return output


FULL, FORBIDDEN = (errno.ENOSPC, 75), (errno.EACCES, 2)


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        ("plot RUNS --output OUT", FULL),
        ("rescore RUNS --protocol native", FULL),
        ("rescore RUNS --output OUT", FULL),
        ("rescore RUNS --output OUT", FORBIDDEN),
        ("evaluate --root TREE --categories nut --maps MAPS --output OUT", FULL),
        ("data make OUT --size 64 --train 1 --test-good 1 --test-defective 1 --categories weave", FULL),
        ("data make OUT --size 64 --train 1 --test-good 1 --test-defective 1 --categories weave", FORBIDDEN),
        ("new-method mine --folder OUT", FULL),
    ],
)
def test_every_command_says_it_in_a_line(
    tree: Path, maps: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str, refusal: tuple[int, int],
) -> None:  # fmt: skip
    number, status = refusal
    places = {"RUNS": runs, "TREE": tree, "MAPS": maps, "OUT": tmp_path / "out"}
    monkeypatch.setattr(Path, "replace", refusing(number))
    assert main([str(places.get(word, word)) for word in command.split()]) == status
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("hrbench: /"))
    assert ("no space left on the disk" if status == 75 else "permission denied") in line
    assert ".tmp" not in line
    assert not [*runs.rglob(".*.tmp"), *tmp_path.rglob(".*.tmp")]


def test_what_a_late_kill_has_left_of_a_job_goes_when_its_run_is_scored_anew(runs: Path) -> None:
    (run,) = hrbench.read_runs(runs)
    run.files.scratch.mkdir()
    assert hrbench.rescore(run, [FEW_DRAWS]).about == run.about
    assert not run.files.scratch.exists()
