"""Several processes on one folder, and one that is stopped: who does what, and that no bit depends on it.

Most of it happens in one process: a runner is called where another one tells that a stage has ended.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import assert_same_bits, write_tree

from hrbench import HrbenchError, LocalEngine, load_dataset, load_protocol
from hrbench.engine import inference
from hrbench.errors import Stopped
from hrbench.grid.engine import Outcome, Watch
from hrbench.protocol import Bootstrap
from hrbench.runs import shards
from hrbench.runs.job import Job, make_job
from hrbench.runs.lease import Leases
from hrbench.runs.runner import Runner, run_job
from hrbench.runs.stages import Setting, shards_of
from hrbench.runs.store import Run

CPU = torch.device("cpu")
FEW = Bootstrap(draws=10)
NATIVE, LOWRES = (dataclasses.replace(load_protocol(name), bootstrap=FEW) for name in ("native", "lowres256"))
SETTING, BOTH = Setting((NATIVE,)), Setting((NATIVE, LOWRES))
IMAGES = 8


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 1)
    for name in ("WORKERS_CPU", "AHEAD_PIXELS", "BATCHES"):  # few images are read ahead, and so few chunks claimed
        monkeypatch.setattr(inference, name, 1)


@pytest.fixture
def job(tree: Path, toy: str) -> Job:
    return make_job(load_dataset("folder", tree).categories[0], toy, preset="native", options={"noise": 0.1})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture(scope="module")
def alone(tree: Path, toy: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The job done without any help."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK", 1)
        job = make_job(load_dataset("folder", tree).categories[0], toy, preset="native", options={"noise": 0.1})
        return run_job(job, tmp_path_factory.mktemp("alone"), BOTH.protocols, device=CPU)


@dataclass
class Process:
    """A runner that keeps what it is told, and may do something then."""

    output: Path
    setting: Setting = SETTING
    act: Callable[[int], None] = lambda stages: None
    stop: Callable[[], bool] = lambda: False
    told: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runner = Runner(self.output, self.setting, CPU, stop=self.stop, told=self._tell)

    def _tell(self, job: Job, images: int) -> None:
        self.told.append(images)
        self.act(len(self.told) - 1)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each step of a fit."""
    done: list[int] = []
    real = torch.optim.Adam.step

    def step(self: torch.optim.Adam) -> None:
        real(self)
        done.append(1)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return done


def assert_equal(found: Run, expected: Run) -> None:
    assert_same_bits(found.evidence, expected.evidence, but=("seconds",))
    own = expected.records[expected.records["protocol"].isin(found.records["protocol"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.records, own)


def assert_tidy(output: Path) -> None:
    assert not [*output.rglob("*.lease"), *output.rglob("*.tmp"), *output.rglob("partial")]


def test_another_process_predicts_what_the_first_has_not_begun(job: Job, output: Path, alone: Run) -> None:
    helper = Process(output)

    def act(stages: int) -> None:
        if stages == 0:  # the fit is done
            assert helper.runner.advance(job) is None
            assert helper.runner.help(job)
            assert not helper.runner.help(job)

    first = Process(output, act=act)
    done = first.runner.advance(job)
    assert done is not None
    assert_equal(done, alone)
    assert sum(first.told) + sum(helper.told) == IMAGES
    assert len(helper.told) == IMAGES
    assert_tidy(output)
    again = helper.runner.advance(job)
    assert again is not None
    assert again.folder == done.folder
    assert not helper.runner.help(job)


def test_chunks_in_work_are_left_to_who_has_them(job: Job, output: Path, alone: Run) -> None:
    second, helped = Process(output), []

    def act(stages: int) -> None:
        if stages == 1:
            helped.append(second.runner.help(job))

    first = Process(output, act=act)
    done = first.runner.advance(job)
    assert done is not None
    assert_equal(done, alone)
    assert helped == [True]
    assert sum(first.told) >= 2  # the one that was told, and what was begun meanwhile
    assert second.told
    assert sum(first.told) + sum(second.told) == IMAGES
    assert_tidy(output)


def test_who_helps_last_leaves_the_score_to_who_began_or_to_any_other(job: Job, output: Path, alone: Run) -> None:
    first = Process(output, stop=lambda: len(first.told) > 1)
    with pytest.raises(Stopped):
        first.runner.advance(job)
    helper, third = Process(output), Process(output)
    assert helper.runner.help(job)
    assert not job.folder(output).record.exists()
    done = third.runner.advance(job)
    assert done is not None
    assert third.told == []
    assert_equal(done, alone)


def test_a_job_that_is_not_fitted_or_handed_out_alone_gets_no_help(job: Job, output: Path) -> None:
    helper = Process(output)
    assert not helper.runner.help(job)

    def act(stages: int) -> None:
        if stages == 1:
            job.folder(output).alone.touch()
            assert not helper.runner.help(job)

    first = Process(output, act=act)
    assert first.runner.advance(job) is not None
    assert helper.told == []


def test_what_a_foreman_that_died_left_is_free_for_help_again(job: Job, output: Path, alone: Run) -> None:
    first = Process(output, stop=lambda: len(first.told) > 0)
    with pytest.raises(Stopped):
        first.runner.advance(job)
    job.folder(output).alone.touch()
    helper = Process(output)
    assert not helper.runner.help(job)
    second = Process(output, act=lambda stages: helper.runner.help(job) and None)
    done = second.runner.advance(job)
    assert done is not None
    assert helper.told
    assert_equal(done, alone)


CHILD = """
import sys
from pathlib import Path
import torch
from hrbench import load_dataset, load_protocol
from hrbench.runs import shards
from hrbench.runs.job import make_job
from hrbench.runs.runner import Runner
from hrbench.runs.stages import Setting
shards.CHUNK = 1
tree, toy, output = map(Path, sys.argv[1:])
job = make_job(load_dataset("folder", tree).categories[0], str(toy), preset="native", options={"noise": 0.1})
told = []
def tell(job, images):
    told.append(images)
    if len(told) == 3:
        print("here", flush=True)
        sys.stdin.readline()
with Runner(output, Setting((load_protocol("native"),)), torch.device("cpu"), told=tell) as runner:
    runner.advance(job)
"""


def test_a_killed_process_is_followed_by_one_that_waits(
    job: Job, tree: Path, toy: str, output: Path, alone: Run, steps: list[int]
) -> None:
    command = [sys.executable, "-c", CHILD, str(tree), toy, str(output)]
    follower = Process(output)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        assert follower.runner.advance(job) is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        done = follower.runner.advance(job)
    assert done is not None
    assert_equal(done, alone)
    assert steps == []
    assert 0 < sum(follower.told) <= IMAGES - 2
    assert_tidy(output)


def test_a_fit_that_is_stopped_goes_on_at_its_step(job: Job, output: Path, alone: Run, steps: list[int]) -> None:
    first = Process(output, stop=lambda: len(steps) >= 13)
    with pytest.raises(Stopped):
        first.runner.advance(job)
    assert len(steps) == 13
    assert job.folder(output).checkpoint.is_file()
    assert not list(output.rglob("*.lease"))
    done = Process(output).runner.advance(job)
    assert done is not None
    assert len(steps) == 20
    assert_equal(done, alone)
    assert_tidy(output)


def test_a_prediction_that_is_stopped_goes_on_at_its_chunk(
    job: Job, output: Path, alone: Run, steps: list[int]
) -> None:
    first = Process(output, stop=lambda: len(first.told) >= 3)
    with pytest.raises(Stopped):
        first.runner.advance(job)
    assert 2 <= sum(first.told) < IMAGES
    assert not list(output.rglob("*.lease"))
    second = Process(output)
    done = second.runner.advance(job)
    assert done is not None
    assert sum(first.told) + sum(second.told) == IMAGES
    assert len(steps) == 20
    assert_equal(done, alone)


@pytest.mark.parametrize("when", ["in the fit", "at a chunk", "at the end"])
def test_who_has_lost_its_lease_leaves_and_what_it_left_is_used(
    job: Job, output: Path, alone: Run, steps: list[int], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    first = Process(output)

    def lost(leases: Leases, path: Path) -> bool:
        return {
            "in the fit": len(steps) >= 5,
            "at a chunk": len(first.told) > 2,
            "at the end": sum(first.told) == IMAGES,
        }[when]

    with monkeypatch.context() as patch:
        patch.setattr(Leases, "lost", lost)
        assert first.runner.advance(job) is None
    assert not job.folder(output).record.exists()
    second = Process(output)
    done = second.runner.advance(job)
    assert done is not None
    assert len(steps) == 20
    assert sum(first.told) + sum(second.told) == IMAGES
    assert_equal(done, alone)


def test_two_that_both_think_they_hold_a_job_do_no_harm(
    job: Job, output: Path, alone: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leases, "take", lambda leases, path: True)
    monkeypatch.setattr(Leases, "give_back", lambda leases, path: None)
    second = Process(output)
    runs: list[Run | None] = []

    def act(stages: int) -> None:
        if stages == 2:
            runs.append(second.runner.advance(job))

    first = Process(output, act=act)
    try:
        runs.append(first.runner.advance(job))
    except (HrbenchError, FileNotFoundError):  # what the second has tidied away
        runs.append(None)
    assert runs[0] is not None
    assert_equal(Run(runs[0].folder), alone)


def test_other_protocols_between_two_attempts_keep_the_fit(
    job: Job, output: Path, alone: Run, steps: list[int]
) -> None:
    first = Process(output, stop=lambda: len(first.told) >= 4)
    with pytest.raises(Stopped):
        first.runner.advance(job)
    second = Process(output, BOTH)
    assert not second.runner.help(job)  # what held-out images tell under the other protocol is not there
    done = second.runner.advance(job)
    assert done is not None
    assert len(steps) == 20
    assert sum(second.told) == IMAGES
    assert set(done.records["protocol"]) == {"native", "lowres256"}
    assert_equal(done, alone)


def test_shards_of_another_fit_do_not_count(job: Job, output: Path, alone: Run) -> None:
    first = Process(output, stop=lambda: len(first.told) >= 4)
    with pytest.raises(Stopped):
        first.runner.advance(job)
    folder = job.folder(output)
    weights = folder.weights.read_bytes()
    assert len(shards_of(job, folder, SETTING).left()) < IMAGES
    folder.weights.write_bytes(weights + b" ")
    assert shards_of(job, folder, SETTING).left() == list(range(IMAGES))
    folder.weights.write_bytes(weights)
    second = Process(output)
    assert second.runner.advance(job) is not None
    assert sum(second.told) < IMAGES


def test_a_chunk_with_a_bad_image_leaves_no_shard(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK", 3)
    root = write_tree(tmp_path / "data")
    job = make_job(load_dataset("folder", root).categories[0], toy, preset="demo")
    victim = job.category.test[4].image
    content = victim.read_bytes()
    victim.write_bytes(content[:-200])
    process, folder = Process(tmp_path), job.folder(tmp_path)
    with pytest.raises(HrbenchError, match=victim.name):
        process.runner.advance(job)
    assert [folder.shard(number).path.exists() for number in range(3)] == [True, False, False]
    assert not list(tmp_path.rglob("*.lease"))
    victim.write_bytes(content)
    assert process.runner.advance(job) is not None
    assert process.told == [0, 3, 3, 2]


@pytest.fixture
def broken(toy: str, tmp_path: Path) -> str:
    """An adapter that fails, and writes down that it does."""
    path = tmp_path / "broken.py"
    journal = str(tmp_path / "journal")
    text = Path(toy).read_text(encoding="utf-8")
    fit = (
        "    def fit(self, *_):\n"
        f"        with open({journal!r}, 'a') as file:\n"
        "            file.write('fit ')\n"
        "        raise KeyError('no')\n\n"
    )
    path.write_text(text.replace("    def predict(", f"{fit}    def predict("), encoding="utf-8")
    return str(path)


def test_a_failure_is_not_repeated_by_others_but_by_a_later_start(
    job: Job, broken: str, tmp_path: Path, output: Path
) -> None:
    bad = make_job(job.category, broken, preset="demo")

    def failures(outcomes: list[Outcome]) -> list[str]:
        return [str(outcome.error) for outcome in outcomes if outcome.error is not None]

    own = [f"KeyError: 'no'\n  {broken}:40 in fit: raise KeyError('no')"]
    with LocalEngine("cpu") as first, LocalEngine("cpu") as second:
        both = second.run([job, bad], output, SETTING, Watch())
        assert next(both).run is not None
        assert failures(list(first.run([bad], output, SETTING, Watch()))) == own
        (failure,) = failures(list(both))
        assert "failed on" in failure
        assert "'no'" in failure
        assert (tmp_path / "journal").read_text(encoding="utf-8") == "fit "
        assert failures(list(second.run([bad], output, SETTING, Watch()))) == own
    assert (tmp_path / "journal").read_text(encoding="utf-8") == "fit fit "


def test_the_note_of_a_failure_goes_when_the_job_ends_well(job: Job, output: Path) -> None:
    folder = job.folder(output)
    folder.failed.parent.mkdir(parents=True)
    folder.failed.write_text("{}", encoding="utf-8")
    with LocalEngine("cpu") as engine:
        (outcome,) = engine.run([job], output, SETTING, Watch())
    assert outcome.run is not None
    assert not folder.failed.exists()


def test_who_begins_with_a_part_of_the_jobs_does_not_wait_for_others(
    tree: Path, toy: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    categories = load_dataset("folder", tree).categories
    jobs = [make_job(c, toy, preset="demo", seed=seed) for seed in (0, 1) for c in categories]
    held = Leases()
    assert held.take(jobs[1].folder(output).lease)
    monkeypatch.setattr("hrbench.grid.local.time.sleep", lambda seconds: pytest.fail("it waits"))
    with LocalEngine("cpu", only=(1, 2)) as engine:
        done = [jobs.index(outcome.job) for outcome in engine.run(jobs, output, SETTING, Watch())]
    assert done == [3, 0, 2]
    held.give_back(jobs[1].folder(output).lease)


def test_who_has_all_jobs_waits_for_others(job: Job, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, lease = Leases(), job.folder(output).lease
    assert held.take(lease)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            held.give_back(lease)

    monkeypatch.setattr("hrbench.grid.local.time.sleep", sleep)
    with LocalEngine("cpu") as engine:
        (outcome,) = engine.run([job], output, SETTING, Watch())
    assert outcome.run is not None
    assert len(waits) == 2
