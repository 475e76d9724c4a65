"""The foreman with real workers in this process: whatever happens to them, the bits are those of one process."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tifffile
import torch
from helpers import assert_same_bits, write_tree

from hrbench import HrbenchError, load_dataset, load_protocol
from hrbench.grid import foreman as foreman_module
from hrbench.grid.board import RETRIES
from hrbench.grid.engine import Outcome, Watch
from hrbench.grid.foreman import Call, Foreman
from hrbench.grid.worker import StageWorker
from hrbench.protocol import Bootstrap
from hrbench.runs import shards, stages
from hrbench.runs.job import Job, make_job
from hrbench.runs.lease import Leases
from hrbench.runs.runner import run_job
from hrbench.runs.stages import Setting
from hrbench.runs.store import Run

CPU = torch.device("cpu")
SETTING = Setting((dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10)),))
IMAGES = 8


def make_jobs(root: Path, toy: str) -> list[Job]:
    options = {"noise": 0.1, "steps": 6}
    return [make_job(c, toy, preset="demo", options=options) for c in load_dataset("folder", root).categories]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(shards, "CHUNK", 1)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with torch.random.fork_rng():
        yield
    torch.use_deterministic_algorithms(False)  # workers of one process leave their settings to each other


@pytest.fixture
def jobs(tree: Path, toy: str) -> list[Job]:
    return make_jobs(tree, toy)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def alone(tree: Path, toy: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The jobs done one after another in this process."""
    output = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK", 1)
        return {
            job.name: run_job(job, output, SETTING.protocols, device=CPU, save_maps=True)
            for job in make_jobs(tree, toy)
        }


class Killed(BaseException):
    """Stands for the end of this process."""


class Crew:
    """Workers that do what a foreman says, each one stage in every round."""

    def __init__(self, workers: int = 2, output: Path | None = None) -> None:
        self._output = output
        self.workers = {number: self._worker() for number in range(workers)}
        self.stages: Counter[tuple[Any, ...]] = Counter()  # that have ended

    def _worker(self) -> StageWorker:
        worker = StageWorker("cpu", torch.get_num_threads())
        worker.share(self._output)
        return worker

    def do(self, number: int, call: Call) -> Any:
        """Do a stage; where Ray resolves references to parcels here are functions."""
        job, setting, sharing, *more = call.arguments
        parcels = [(lambda inner=inner: inner[0]) if isinstance(inner, list) else inner for inner in more]
        result = getattr(self.workers[number], call.method)(job, setting, sharing, *parcels)
        for chunk in parcels[1] if call.method == "predict" else [None]:
            self.stages[job.name, call.method, chunk] += 1
        return result

    def replace(self, number: int) -> int:
        """Let a worker be followed by a fresh one."""
        del self.workers[number]
        self.workers[number + 100] = self._worker()
        return number + 100

    def drive(
        self, foreman: Foreman, before: Callable[[int, Call], str | None] = lambda number, call: None
    ) -> list[Outcome]:
        """Work until nothing is left; `before` each stage it is said whether its worker dies."""
        ended: list[Outcome] = []
        for _ in range(200):
            if not foreman.left:
                return ended
            calls = {n: foreman.next(n, len(self.workers), 1) for n in list(self.workers)}
            for number, call in calls.items():
                if call is None:
                    continue
                if (reason := before(number, call)) is not None:
                    foreman.lost(number, reason)
                    self.replace(number)
                else:
                    foreman.received(number, self.do(number, call))
            ended += foreman.ended()
        raise AssertionError("it does not end")


def begin(jobs: list[Job], output: Path, setting: Setting = SETTING, **options: Any) -> Foreman:
    return Foreman(jobs, output, setting, options.pop("watch", Watch()), put=lambda value: value, **options)


def assert_equal(found: Run | None, expected: Run) -> None:
    assert found is not None
    assert_same_bits(found.evidence, expected.evidence, but=("seconds",))
    pd.testing.assert_frame_equal(found.records, expected.records)
    assert (found.folder / "weights.safetensors").read_bytes() == (expected.folder / "weights.safetensors").read_bytes()


def assert_all_equal(ended: list[Outcome], alone: dict[str, Run]) -> None:
    assert {outcome.job.name for outcome in ended} == alone.keys()
    for outcome in ended:
        assert outcome.error is None
        assert_equal(outcome.run, alone[outcome.job.name])


@pytest.mark.parametrize("shared", [False, True])
def test_workers_give_the_bits_of_one_process(
    jobs: list[Job], output: Path, alone: dict[str, Run], shared: bool
) -> None:
    told: Counter[str] = Counter()
    watch = Watch(told=lambda job, images: told.update({job.name: images or 100}))
    crew = Crew(3, output if shared else None)
    with begin(jobs, output, watch=watch, shared=shared) as foreman:
        assert_all_equal(crew.drive(foreman), alone)
        assert foreman.left == 0
    assert told == {job.name: 100 + IMAGES for job in jobs}
    assert set(crew.stages.values()) == {1}
    assert len(crew.stages) == len(jobs) * (1 + IMAGES + 1)
    assert not [*output.rglob("*.lease"), *output.rglob("partial"), *output.rglob("*.tmp")]


@pytest.mark.parametrize("shared", [False, True])
def test_workers_take_the_batch_size_that_the_fit_has_found(
    jobs: list[Job], output: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    answers = [7, 5, 3]
    monkeypatch.setattr(stages, "find_batch_size", lambda *arguments, **options: answers.pop())
    used: set[tuple[str, str, Any]] = set()

    def note(number: int, call: Call) -> None:
        used.add((call.arguments[0].name, call.method, call.arguments[1].batch_size))

    setting = dataclasses.replace(SETTING, batch_size="auto")
    with begin(jobs, output, setting, shared=shared) as foreman:
        ended = Crew(2, output if shared else None).drive(foreman, note)
    for outcome in ended:
        assert outcome.run is not None
        about = outcome.run.about
        assert about.batch_size_found
        asked = {(method, size) for name, method, size in used if name == outcome.job.name}
        assert asked == {("fit", "auto"), ("predict", about.batch_size), ("score", about.batch_size)}
    assert answers == ([7, 5] if shared else [7])  # once for all who share a folder, else once a worker


def test_maps_come_back_and_are_asked_for_again_only_if_they_are_not_there(
    jobs: list[Job], output: Path, alone: dict[str, Run]
) -> None:
    setting = dataclasses.replace(SETTING, save_maps=True)
    with begin(jobs[:1], output, setting) as foreman:
        (outcome,) = Crew().drive(foreman)
    assert_equal(outcome.run, alone[jobs[0].name])
    for sample in jobs[0].category.test:
        own, other = (run.files.map_of(sample.id) for run in (outcome.run, alone[jobs[0].name]) if run is not None)
        assert (tifffile.imread(own) == tifffile.imread(other)).all()


def test_done_jobs_are_returned_and_no_worker_is_asked(jobs: list[Job], output: Path) -> None:
    run = run_job(jobs[1], output, SETTING.protocols, device=CPU)
    with begin(jobs[1:], output) as foreman:
        assert foreman.next("worker", 1, 1) is None
        (outcome,) = foreman.ended()
        assert foreman.left == 0
    assert outcome.run is not None
    assert outcome.run.folder == run.folder


@pytest.mark.parametrize("stages", [1, 4, 18])
def test_another_foreman_goes_on_where_one_died(
    jobs: list[Job], output: Path, alone: dict[str, Run], stages: int
) -> None:
    first, second = Crew(), Crew()

    def die(number: int, call: Call) -> None:
        if first.stages.total() >= stages:
            raise Killed

    with pytest.raises(Killed), begin(jobs, output) as foreman:
        first.drive(foreman, die)
    with begin(jobs, output) as foreman:
        assert_all_equal(second.drive(foreman), alone)
    both = first.stages + second.stages
    assert set(both.values()) == {1}  # what a worker had sent back is not done again


def test_what_dead_workers_did_is_done_by_others(jobs: list[Job], output: Path, alone: dict[str, Run]) -> None:
    crew, dies = Crew(), Counter({"fit": 1, "predict": 2, "score": 1})

    def before(number: int, call: Call) -> str | None:
        if dies[call.method]:
            dies[call.method] -= 1
            return "its node is gone"
        return None

    with begin(jobs, output) as foreman:
        assert_all_equal(crew.drive(foreman, before), alone)
    assert not dies.total()
    assert set(crew.stages.values()) == {1}


def test_a_job_that_kills_its_workers_is_given_up_and_others_go_on(
    jobs: list[Job], output: Path, alone: dict[str, Run]
) -> None:
    crew = Crew()

    def before(number: int, call: Call) -> str | None:
        return "out of memory" if call.arguments[0] is jobs[0] else None

    with begin(jobs, output) as foreman:
        ended = {outcome.job.name: outcome for outcome in crew.drive(foreman, before)}
    error = ended[jobs[0].name].error
    assert isinstance(error, HrbenchError)
    assert f"{RETRIES + 1} workers died" in str(error)
    assert "out of memory" in str(error)
    assert_equal(ended[jobs[1].name].run, alone[jobs[1].name])
    assert not list(output.rglob("*.lease"))


def test_a_failure_is_told_once_with_its_node_though_several_have_chunks(
    toy: str, tmp_path: Path, output: Path
) -> None:
    root = write_tree(tmp_path / "data", categories=("bolt", "nut"))
    jobs = make_jobs(root, toy)
    for sample in jobs[0].category.test:
        sample.image.write_bytes(sample.image.read_bytes()[:-300])
    crew, predicting = Crew(4), []
    with begin(jobs[:1], output) as foreman:
        (failed,) = crew.drive(foreman, lambda number, call: predicting.append(call.method == "predict"))
    assert sum(predicting) > 1
    assert "(on node " in str(failed.error)
    assert ".png" in str(failed.error)
    assert failed.traceback == ""
    with begin(jobs, output) as foreman:  # another one tries again, and does not lose the rest
        again, other = sorted(crew.drive(foreman), key=lambda outcome: outcome.run is not None)
    assert again.error is not None
    assert other.job is jobs[1]
    assert other.run is not None


def test_a_fault_of_a_method_comes_with_its_own_lines(
    jobs: list[Job], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrbench.runs.stages.Fit.train", lambda *_, **__: 1 / 0)
    with begin(jobs[:1], output) as foreman:
        (outcome,) = Crew().drive(foreman)
    assert "division by zero" in str(outcome.error)
    assert "ZeroDivisionError" in str(outcome.error)
    assert "toy_adapter.py" in str(outcome.error)
    assert outcome.traceback == ""


def test_a_fault_of_the_suite_comes_with_its_traceback(
    jobs: list[Job], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrbench.runs.stages.Fit", lambda *_, **__: 1 / 0)
    with begin(jobs[:1], output) as foreman:
        (outcome,) = Crew().drive(foreman)
    assert "stages.py" in outcome.traceback
    assert "ZeroDivisionError" in outcome.traceback


def test_a_fit_on_other_images_is_refused(jobs: list[Job], output: Path) -> None:
    with begin(jobs[:1], output) as foreman:
        call = foreman.next("w", 1, 1)
        assert call is not None
        assert call.method == "fit"
        foreman.received("w", ("another digest", {"weights.safetensors": b""}))
        (outcome,) = foreman.ended()
        assert "other training images on a node than here" in str(outcome.error)
        assert foreman.left == 0
    assert not list(output.rglob("weights.safetensors"))


def test_evidence_of_other_test_images_is_refused(toy: str, tmp_path: Path, output: Path) -> None:
    root = write_tree(tmp_path / "data")
    jobs, crew = make_jobs(root, toy), Crew(1)
    with begin(jobs, output) as foreman:
        for _ in range(2):
            call = foreman.next(0, 1, 1)
            assert call is not None
            result = crew.do(0, call)
            if call.method == "predict":  # here they are others than there
                images = [sample.image for sample in jobs[0].category.test]
                for image, other in zip(images, reversed(images), strict=True):
                    image.write_bytes(other.read_bytes())
            foreman.received(0, result)
        (outcome,) = foreman.ended()
    assert "other test images on a node than here" in str(outcome.error)


def test_a_job_of_another_process_is_waited_for(
    jobs: list[Job], output: Path, alone: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(foreman_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    other, lease = Leases(), jobs[0].folder(output).lease
    assert other.take(lease)
    with begin(jobs[:1], output) as foreman:
        assert foreman.next("w", 1, 1) is None
        assert foreman.left == 1
        other.give_back(lease)
        assert foreman.next("w", 1, 1) is None  # it has just looked
        clock[0] += 1.1 * foreman_module.LOOK_SECONDS
        call = foreman.next("w", 1, 1)
        assert call is not None
        assert call.method == "fit"


def test_nobody_helps_with_what_a_foreman_hands_out_and_its_leases_end_with_it(jobs: list[Job], output: Path) -> None:
    with begin(jobs[:1], output) as foreman:
        assert foreman.next("w", 1, 1) is not None
        folder = jobs[0].folder(output)
        assert folder.alone.is_file()
        assert not Leases().take(folder.lease)
    assert not folder.lease.exists()
    assert foreman.left == 1


def test_a_category_without_test_images_is_a_failure_before_any_stage(toy: str, tmp_path: Path, output: Path) -> None:
    category = load_dataset("folder", write_tree(tmp_path / "data")).categories[0]
    category = dataclasses.replace(category, test=())
    with begin([make_job(category, toy, preset="demo")], output) as foreman:
        assert foreman.next("w", 1, 1) is None
        (outcome,) = foreman.ended()
    assert "no test image" in str(outcome.error)


def test_a_failure_is_not_repeated_by_a_process_beside_it(
    jobs: list[Job], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = begin(jobs[:1], output)
    with monkeypatch.context() as patch:
        patch.setattr("hrbench.runs.stages.Fit.train", lambda *_, **__: 1 / 0)
        with begin(jobs[:1], output) as foreman:
            Crew().drive(foreman)
    with beside:
        assert beside.next("w", 1, 1) is None
        (outcome,) = beside.ended()
    assert "division by zero" in str(outcome.error)
    with begin(jobs[:1], output) as later:
        (outcome,) = Crew().drive(later)
    assert outcome.run is not None
    assert not list(output.rglob("*.failed.json"))


def test_a_node_with_other_training_images_leaves_the_shared_folder_as_it_is(
    toy: str, tmp_path: Path, output: Path
) -> None:
    root = write_tree(tmp_path / "data")
    jobs, crew = make_jobs(root, toy), Crew(1, output)
    with begin(jobs, output, shared=True) as foreman:
        call = foreman.next(0, 1, 1)
        assert call is not None
        before = [path for path in output.rglob("*") if path.suffix != ".lease"]
        first, second, *_ = jobs[0].category.train
        first.image.write_bytes(second.image.read_bytes())
        (there,) = make_jobs(root, toy)
        foreman.received(0, crew.do(0, call._replace(arguments=(there, *call.arguments[1:]))))
        assert all(path.exists() for path in before)
        (outcome,) = foreman.ended()
    assert "other training images on this node" in str(outcome.error)


def test_a_job_whose_lease_was_lost_is_left_to_who_has_it(
    jobs: list[Job], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = Crew(1)
    with begin(jobs[:1], output) as foreman:
        call = foreman.next(0, 1, 1)
        assert call is not None
        monkeypatch.setattr(Leases, "lost", lambda self, path: True)
        foreman.received(0, crew.do(0, call))
        assert foreman.left == 1
        assert not list(foreman.ended())
    assert not jobs[0].folder(output).weights.exists()
