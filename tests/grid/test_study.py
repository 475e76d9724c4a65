"""Running many jobs from Python: what is refused before anything runs, and what becomes of failures."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

import hrbench
from hrbench import HrbenchError, LocalEngine, load_protocol
from hrbench.cli import main
from hrbench.engine.expected import Expected, Work
from hrbench.grid import local
from hrbench.grid.engine import Outcome, Watch
from hrbench.protocol import Bootstrap
from hrbench.registry import load_method, source_digest
from hrbench.runs.job import Job, make_job
from hrbench.runs.lease import Leases
from hrbench.runs.runner import Runner
from hrbench.runs.stages import Setting
from hrbench.runs.store import Run

FEW_DRAWS = dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10))


def test_a_grid_from_python(tree: Path, toy: str, tmp_path: Path) -> None:
    dataset = hrbench.load_dataset("folder", tree)
    study = hrbench.run(dataset, [toy], output=tmp_path, categories=["nut"], options={toy: {"steps": 2}}, seeds=[0, 1])
    assert [run.about.seed for run in study.runs] == [0, 1]
    assert not study.failures
    names = [f"<Run {tree.name}/nut/{run.folder.name}>" for run in study.runs]
    assert repr(study) == f"<Study: 2 finished\n  {names[0]}\n  {names[1]}>"
    assert [run.about.method.options["steps"] for run in hrbench.read_runs(tmp_path)] == [2, 2]
    again = hrbench.run("folder", [toy], root=tree, output=tmp_path, categories=["nut"], options={toy: {"steps": 2}})
    assert again.runs == study.runs[:1]


def test_a_method_that_fails_is_a_failure_and_stops_no_other(tree: Path, toy: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = Path(toy).read_text(encoding="utf-8")
    broken.write_text(
        text.replace("    def predict(", "    def fit(self, *_):\n        raise KeyError('no')\n\n    def predict(")
    )
    study = hrbench.run("folder", [str(broken), toy], root=tree, output=tmp_path / "out", categories=["nut"])
    assert [type(failure.error.__cause__) for failure in study.failures] == [KeyError]
    (failure,) = study.failures
    assert repr(study).startswith("<Study: 1 finished, 1 failed")
    assert "broken" in failure.job
    assert (failure.category, failure.method, failure.view, failure.seed) == ("nut", str(broken), "tiled:32:8", 0)
    assert [run.about.method.name for run in study.runs] == ["toy_adapter"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": "l2bt"}, "methods is 'l2bt', expected a list"),
        ({"protocols": []}, r"protocols is \[\], expected a list of at least one"),
        ({"seeds": 0}, "seeds is 0, expected a list"),
        ({"options": {"steps": 2}}, "unknown method with options 'steps'"),
        ({"root": None}, "root is missing"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"device": "meta"}, "device 'meta' cannot be used: .*; try auto or cpu$"),
        ({"views": [""]}, "view '': expected whole:SIZE"),
        (
            {"views": ["whole:512", "whole:99999904"]},
            "view 'whole:99999904': one input .* takes 139698118.0 GiB before",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    tree: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"methods": ["l2bt"], "root": tree, "output": tmp_path / "out", **changes}
    with pytest.raises(HrbenchError, match=message):
        hrbench.run("folder", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_digest_of_a_method_s_source_knows_what_it_imports(toy: str, tmp_path: Path) -> None:
    adapter = tmp_path / "mine.py"
    adapter.write_text(
        "import _helper\nfrom torch import nn\n" + Path(toy).read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "_helper.py").write_text("A = 1\n", encoding="utf-8")
    (tmp_path / "nn.py").write_text("not Python, and not imported from here", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        cls = load_method(str(adapter))
    first = source_digest(cls)
    (tmp_path / "_other.py").write_text("B = 1\n", encoding="utf-8")
    assert source_digest(cls) == first
    (tmp_path / "_helper.py").write_text("A = 2\n", encoding="utf-8")
    assert source_digest(cls) != first
    (tmp_path / "_helper.py").write_text("A = (\n", encoding="utf-8")
    with pytest.raises(HrbenchError, match=r"_helper\.py: not valid Python"):
        source_digest(cls)


def small(tree: Path, toy: str, output: Path, **options: Any) -> hrbench.Study:
    return hrbench.run(
        "folder", [toy], root=tree, output=output, preset="demo", protocols=[FEW_DRAWS], device="cpu", **options
    )


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hrbench")
    monkeypatch.setattr(LocalEngine, "run", None)
    study = small(tree, toy, tmp_path / "out", dry_run=True, categories=["nut"])
    assert study.runs == study.failures == ()
    assert study.left == ("nut toy_adapter whole:32 seed 0",)
    assert study.plan is not None
    assert [planned.state for planned in study.plan.jobs] == ["to do"]
    assert study.plan.seconds
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("1 job: 1 to do; ")
    assert said[-1].startswith("expected: about ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def planned(tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., hrbench.Study]:
    """Return what plans a grid on a copy of the small dataset, at ``tmp_path / "data"``, without measuring."""
    monkeypatch.setattr(LocalEngine, "rehearse", lambda *_: iter(()))
    root = shutil.copytree(tree, tmp_path / "data")
    return lambda **options: small(root, toy, tmp_path / "out", dry_run=True, **options)


def test_wrong_files_end_a_grid_before_it_begins(planned: Callable[..., hrbench.Study], tmp_path: Path) -> None:
    images = sorted((tmp_path / "data/bolt/train/good").iterdir())
    images += sorted((tmp_path / "data/bolt/test").rglob("*.png"))
    images += sorted((tmp_path / "data/bolt/ground_truth").rglob("*.png"))
    for path in images:
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(HrbenchError, match=r"data: 21 errors, nothing was run: .*--no-check.*\n  .*000\.png") as caught:
        planned()
    _, *listed, rest = str(caught.value).splitlines()
    assert len(listed) == 20
    assert rest == "  and 1 more, which `hrbench data check` lists"
    assert len(planned(categories=["nut"]).left) == 1
    assert len(planned(check=False).left) == 2


def test_what_keeps_a_dataset_from_being_read_is_told_with_all_else(
    planned: Callable[..., hrbench.Study], tmp_path: Path
) -> None:
    masks = tmp_path / "data/bolt/ground_truth/dent"
    for number in (0, 1):
        (masks / f"00{number}_mask.png").unlink()
    Image.new("L", (3, 4), 255).save(masks / "002_mask.png")
    (tmp_path / "data/nut/train/good/000.png").write_bytes(b"")
    with pytest.raises(HrbenchError, match=r"data: 4 errors, nothing was run: ") as caught:
        planned()
    said = str(caught.value)
    for name in ("dent/000.png", "dent/001.png", "002_mask.png", "nut/train/good/000.png"):
        assert name in said
    with pytest.raises(HrbenchError, match=r"000\.png.*; and 1 more"):
        planned(check=False)


def test_odd_files_are_told_once(
    planned: Callable[..., hrbench.Study], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(tmp_path / "data/nut/train/good/000.png", tmp_path / "data/nut/test/good/009.png")
    assert len(planned(seeds=[0, 1]).left) == 4
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert said[0].startswith("warning: ")


def test_files_of_finished_jobs_are_not_looked_at_again(
    planned: Callable[..., hrbench.Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hrbench.grid.study.state_of", lambda job, _: "done" if job.category.name == "nut" else "begun")
    for path in (tmp_path / "data/nut/train/good").iterdir():
        path.write_bytes(b"")
    assert planned().left


def test_one_job_alone_is_not_measured_before(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEngine, "rehearse", None)
    assert len(small(tree, toy, tmp_path, categories=["nut"]).runs) == 1
    assert len(small(tree, toy, tmp_path, categories=["nut"], seeds=[0]).runs) == 1


def test_a_job_that_cannot_be_measured_is_run_all_the_same(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrbench.grid.local.rehearse", lambda *_: 1 / 0)
    study = small(tree, toy, tmp_path)
    assert len(study.runs) == 2
    assert study.plan is not None
    assert study.plan.seconds is None


def test_a_stop_between_two_jobs_keeps_the_first_and_names_the_rest(tree: Path, toy: str, tmp_path: Path) -> None:
    def stop() -> bool:
        return bool(list(tmp_path.rglob("run.json")))

    study = small(tree, toy, tmp_path, stop=stop, seeds=[0, 1])
    assert len(study.runs) == 1
    assert not study.failures
    assert len(study.left) == 3
    again = small(tree, toy, tmp_path, seeds=[0, 1])
    assert len(again.runs) == 4
    assert again.left == ()
    assert again.plan is not None
    assert [planned.state for planned in again.plan.jobs] == ["done", "to do", "to do", "to do"]


class Recorder(LocalEngine):
    """An engine of several workers that remembers what it was asked."""

    asked: ClassVar[list[str]] = []
    workers = 2

    def check(self, jobs: Sequence[Job]) -> None:
        self.asked.append(f"check {len(jobs)}")

    def rehearse(self, jobs: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Expected | None]]:
        for job in jobs:
            steps = job.options["steps"] * (3 if job.view.text == "whole:48" else 1)
            yield job, Expected([Work(steps, seconds=1.0)], 0.5, "", False, 1, 1.0, None)

    def run(self, jobs: Sequence[Job], output: Path, setting: Setting, watch: Watch) -> Iterator[Outcome]:
        self.asked += [job.label for job in jobs]
        yield Outcome(jobs[0], error=HrbenchError("no"))


def test_an_engine_of_several_workers_gets_the_longest_jobs_first(tree: Path, toy: str, tmp_path: Path) -> None:
    Recorder.asked.clear()
    study = small(tree, toy, tmp_path, engine=Recorder("cpu"), views=["whole:32", "whole:48"], categories=["nut"])
    labels = [f"nut toy_adapter {view} seed 0" for view in ("whole:48", "whole:32")]
    assert Recorder.asked == ["check 2", *labels]
    assert [failure.job for failure in study.failures] == labels[:1]
    assert study.left == (labels[1],)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": (2, 2)}, "only is 2/2, expected I/N"),
        ({"only": (-1, 2)}, "only is -1/2, expected I/N"),
        ({"threads": 0}, "threads is 0, expected at least 1"),
    ],
)
def test_local_engines_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        LocalEngine("cpu", **options)


def test_threads_are_those_that_were_asked_for_and_set_back() -> None:
    before = torch.get_num_threads()
    with LocalEngine("cpu", threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "dask"], "--engine is 'dask', expected local, ray or ray:ADDRESS"),
        (["--engine", "local:here"], "--engine is 'local:here', expected"),
        (["--gpus-per-job", "0.5"], "--gpus-per-job: needs --engine ray"),
        (["--shared-output"], "--shared-output: needs --engine ray"),
        (["--cpus-per-job", "0"], "threads is 0"),
        (["--engine", "ray", "--only", "0/2"], "--only: is for processes that share a folder"),
        (["--engine", "ray", "--gpus-per-job", "-1"], "gpus per job is -1"),
        (["--only", "2/2"], "--only is '2/2', expected I/N with 0 <= I < N"),
        (["--only", "1"], "--only is '1', expected I/N"),
    ],
)
def test_mistakes_on_the_command_line_get_one_line(
    tree: Path, toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    command = ["run", "--root", str(tree), "--methods", toy, "--output", str(tmp_path / "out"), *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_dry_run_on_the_command_line(
    tree: Path, toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--root", str(tree), "--methods", toy, "--output", str(tmp_path / "out"), "--dry-run"]
    assert main([*command, "--preset", "demo", "--categories", "nut"]) == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert "1 job: 1 to do" in said
    assert "toy_adapter" in said
    assert "expected: about" in said
    assert not (tmp_path / "out").exists()


def test_jobs_that_others_have_are_said_to_be_left(
    tree: Path, toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (nut,) = (c for c in hrbench.load_dataset("folder", tree).categories if c.name == "nut")
    held, path = Leases(), make_job(nut, toy, preset="demo").folder(tmp_path).lease
    assert held.take(path)
    command = ["run", "--root", str(tree), "--methods", toy, "--output", str(tmp_path), "--preset", "demo"]
    assert main([*command, "--only", "0/1", "--categories", "nut", "--device", "cpu"]) == 0
    assert "1 job in the hands of other processes" in capsys.readouterr().err
    held.give_back(path)


def test_sigterm_ends_a_run_soon_and_the_exit_status_says_that_jobs_are_left(
    tree: Path, toy: str, tmp_path: Path
) -> None:
    adapter, began = tmp_path / "slow.py", tmp_path / "began"
    text = Path(toy).read_text(encoding="utf-8").replace("import torch\n", "import time\n\nimport torch\n", 1)
    slow = f"            open({str(began)!r}, 'a').close()\n            time.sleep(0.05)\n"
    adapter.write_text(text.replace("            noise =", f"{slow}            noise ="), encoding="utf-8")
    command = [sys.executable, "-m", "hrbench", "run", "--root", str(tree), "--methods", str(adapter), "--device",
               "cpu", "--output", str(tmp_path / "out"), "--categories", "nut", "--set", "steps=20000"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not began.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    assert "stopped by SIGTERM, 1 job left; the same command goes on" in error
    assert "Traceback" not in error
    assert list((tmp_path / "out").rglob("fit.pt"))
    assert not list((tmp_path / "out").rglob("*.lease"))


def test_who_cannot_help_with_a_job_loses_no_other(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked, helped = Runner.advance, [], []

    def advance(runner: Runner, job: Job) -> Run | None:
        asked.append(job.category.name)
        return None if asked == ["nut"] else real(runner, job)  # at first another process has it

    def fails(runner: Runner, job: Job) -> bool:
        helped.append(job.category.name)
        raise HrbenchError("a bad file")

    monkeypatch.setattr(Runner, "advance", advance)
    monkeypatch.setattr(Runner, "help", fails)
    monkeypatch.setattr(local, "WAIT_SECONDS", 0.0)
    arguments: dict[str, Any] = {"root": tree, "output": tmp_path, "options": {toy: {"steps": 2}}}
    study = hrbench.run("folder", [toy], categories=["nut"], **arguments)
    assert (asked, helped) == (["nut"] * 2, ["nut"])
    assert [run.about.dataset.category for run in study.runs] == ["nut"]
    assert not study.failures


def test_nothing_is_measured_first_where_that_is_not_wanted(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rehearse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(hrbench.LocalEngine, "rehearse", rehearse)
    study = hrbench.run("folder", [toy], root=tree, output=tmp_path, options={toy: {"steps": 2}}, rehearse=False)
    assert len(study.runs) == 2
    with pytest.raises(AssertionError):
        hrbench.run("folder", [toy], root=tree, output=tmp_path / "more", options={toy: {"steps": 2}})
