"""A worker: what it says of itself, and how it names what its node lacks."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import write_tree

from hrbench import load_dataset, load_protocol
from hrbench.grid.worker import Failed, StageWorker, needs_of
from hrbench.runs.job import Job, make_job
from hrbench.runs.stages import Setting


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageWorker:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return StageWorker("cpu", torch.get_num_threads())


@pytest.fixture
def job(toy: str, tmp_path: Path) -> Job:
    adapter = tmp_path / "adapter.py"
    adapter.write_bytes(Path(toy).read_bytes())
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"some")
    root = write_tree(tmp_path / "data", train=3, good=1, bad=2)
    category = load_dataset("folder", root).categories[0]
    return make_job(category, str(adapter), preset="demo", options={"weights": str(weights)})


def test_a_worker_says_what_it_is(worker: StageWorker) -> None:
    facts = worker.facts()
    assert facts.precisions == {"auto": "float32", "float32": "float32", "bfloat16": "bfloat16"}
    assert set(facts.versions) == {"hrbench", "torch", "timm", "numpy"}
    assert all(facts.versions.values())


def test_needs_name_each_method_and_category_once(toy: str, tree: Path) -> None:
    categories = load_dataset("folder", tree).categories
    jobs = [make_job(c, toy, preset="demo", seed=seed) for seed in (0, 1) for c in categories]
    assert [need.job for need in needs_of(jobs)] == jobs[:2]
    more = [*jobs, make_job(categories[0], toy, preset="demo", options={"steps": 9})]
    assert [need.job for need in needs_of(more)] == [*jobs[:2], more[-1]]


def test_a_node_that_has_all_lacks_nothing(worker: StageWorker, job: Job) -> None:
    assert worker.lacks(needs_of([job])) == []


def test_what_a_node_lacks_is_named(worker: StageWorker, job: Job, tmp_path: Path) -> None:
    needs = needs_of([job])
    (tmp_path / "w.pth").write_bytes(b"others")
    (found,) = worker.lacks(needs)
    assert "the weights of its options there are others" in found
    (tmp_path / "w.pth").write_bytes(b"some")

    adapter = tmp_path / "adapter.py"
    adapter.write_text(adapter.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    (found,) = worker.lacks(needs)
    assert "its code there is another" in found
    adapter.unlink()
    (found,) = worker.lacks(needs)
    assert "adapter.py" in found


def test_images_that_are_missing_or_others_are_named(worker: StageWorker, job: Job) -> None:
    needs = needs_of([job])
    image = job.category.test[0].image
    content = image.read_bytes()
    image.write_bytes(content + b" ")
    (found,) = worker.lacks(needs)
    assert "category 'bolt': the files there are others" in found
    image.unlink()
    (found,) = worker.lacks(needs)
    assert str(image) in found
    assert "No such file" in found


def test_weights_that_are_not_there_are_named_by_the_method(
    worker: StageWorker, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = needs_of([job])
    monkeypatch.setattr("hrbench.grid.worker.load_method", lambda name: _Needy)
    monkeypatch.setattr("hrbench.grid.worker.source_digest", lambda cls: needs[0].source)
    monkeypatch.setattr("hrbench.grid.worker.identities", lambda cls, options: job.recorded_options)
    assert worker.lacks([*needs, *needs]) == ["put the file there"]


class _Needy:
    def __init__(self, **options: object) -> None:
        raise RuntimeError("put the file there")


def test_a_stage_that_fails_is_told_as_text_and_leaves_the_worker_clean(
    worker: StageWorker, job: Job, tmp_path: Path
) -> None:
    setting = Setting((load_protocol("native"),))
    broken = dataclasses.replace(job, options={**job.options, "steps": "many"})
    failed = worker.fit(broken, setting, 1)
    assert isinstance(failed, Failed)
    assert failed.error
    assert "adapter.py:35 in fit: context.train(" in failed.error
    assert failed.traceback == ""
    (scratch,) = (tmp_path / "scratch").iterdir()
    assert list(scratch.iterdir()) == []
    assert not isinstance(worker.fit(job, setting, 1), Failed)
    assert not isinstance(worker.rehearse(job, setting), Failed)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux can tell")
def test_files_of_dead_workers_are_removed_and_those_of_live_ones_kept(worker: StageWorker, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (own,) = scratch.iterdir()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    left = scratch / f"hrbench-work-{dead.pid}-x"
    left.mkdir()
    (left / "file").touch()
    StageWorker("cpu", torch.get_num_threads())
    assert not left.exists()
    assert own.is_dir()
