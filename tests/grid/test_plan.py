"""The plan of a grid: states, times and memory in words, and what is not known."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write_tree

from hrbench import load_dataset
from hrbench.engine.expected import Expected, Work
from hrbench.grid.plan import Plan, PlannedJob, make_plan, samples_of, state_of
from hrbench.runs.job import Job, make_job


@pytest.fixture
def jobs(tree: Path, toy: str) -> list[Job]:
    """Of two categories: whole with two seeds, then tiled."""
    categories = load_dataset("folder", tree).categories
    whole = [make_job(c, toy, preset="demo", seed=seed) for seed in (0, 1) for c in categories]
    return [*whole, *(make_job(c, toy, preset="native") for c in categories)]


def expected(seconds: float | None = 2.0, steps: int | None = 10, device: float | None = None) -> Expected:
    works = None if steps is None else [Work(steps, seconds=3.0)]
    return Expected(works, seconds, "", False, 1, 2048.0, device)


def test_states_of_jobs(jobs: list[Job], tmp_path: Path) -> None:
    assert state_of(jobs[0], tmp_path) == "to do"
    folder = jobs[0].folder(tmp_path)
    folder.scratch.mkdir(parents=True)
    assert state_of(jobs[0], tmp_path) == "begun"
    folder.record.touch()
    assert state_of(jobs[0], tmp_path) == "done"


def test_one_job_of_each_method_and_view_is_measured(jobs: list[Job], toy: str) -> None:
    assert samples_of(jobs) == [jobs[0], jobs[4]]
    other = make_job(jobs[0].category, toy, preset="demo", options={"steps": 9})
    assert samples_of([*jobs, other]) == [jobs[0], jobs[4], other]


def test_what_was_measured_of_one_tells_of_all_of_its_kind(jobs: list[Job], tmp_path: Path) -> None:
    plan = make_plan(jobs[:4], tmp_path, {jobs[0].name: expected()}, workers=1, where="here")
    # 10 steps of 3 s and one held-out image; 8 test images, each one input
    assert [(planned.fit_seconds, planned.predict_seconds) for planned in plan.jobs] == [(32.0, 16.0)] * 4
    assert plan.seconds == 4 * 48
    assert [planned.host_mib for planned in plan.jobs] == [2048.0] * 4


def test_done_jobs_cost_nothing_and_workers_share_the_rest(jobs: list[Job], tmp_path: Path) -> None:
    record = jobs[1].folder(tmp_path).record
    record.parent.mkdir(parents=True)
    record.touch()
    jobs[2].folder(tmp_path).scratch.mkdir(parents=True)
    measured = {jobs[0].name: expected(device=512.0)}
    plan = make_plan(jobs[:4], tmp_path, measured, workers=2, where="2 x GPU of a")
    assert plan.left == [plan.jobs[0], plan.jobs[2], plan.jobs[3]]
    assert plan.seconds == 3 * 48 / 2
    assert list(plan.lines()) == [
        "4 jobs: 1 done, 1 begun, 2 to do; 2 x GPU of a",
        "  method       view      jobs  left  each    together   memory  on device",
        "  toy_adapter  whole:32     4     3  48 s  2 min 24 s  2.0 GiB    0.5 GiB",
        "expected: about 1 min 12 s on 2 workers, metrics and pictures not counted",
    ]


def test_a_long_plan_says_what_would_take_less(jobs: list[Job]) -> None:
    knn = make_job(jobs[0].category, "knn", preset="demo")
    quick, slow = PlannedJob(knn, "to do", 10.0, 20.0), PlannedJob(jobs[4], "to do", 100.0, 500.0)
    tiled = "whole images made smaller, --view whole:32, which may lose the smallest defects"
    assert list(Plan((slow, quick), 1, "").lines())[-1] == f"quicker: knn alone, about 30 s; {tiled}"
    assert list(Plan((slow, slow), 1, "").lines())[-1] == f"quicker: {tiled}"
    assert "quicker" not in list(Plan((slow,), 1, "").lines())[-1]  # ten minutes are not long
    whole = PlannedJob(jobs[0], "to do", 600.0, 600.0)
    assert "quicker" not in list(Plan((whole,), 1, "").lines())[-1]


def test_more_workers_than_jobs_do_not_help(jobs: list[Job]) -> None:
    planned = PlannedJob(jobs[0], "to do", 10.0, 20.0)
    assert Plan((planned,), 8, "").seconds == 30
    assert Plan((), 8, "").seconds == 0


@pytest.mark.parametrize("found", [None, expected(seconds=None), expected(steps=None)])
def test_times_that_are_not_known_are_not_guessed(jobs: list[Job], tmp_path: Path, found: Expected | None) -> None:
    measured = {jobs[0].name: found, jobs[4].name: expected()}
    plan = make_plan(jobs, tmp_path, measured, workers=1, where="here")
    assert plan.jobs[0].seconds is None
    assert plan.jobs[4].seconds is not None
    assert plan.seconds is None
    lines = list(plan.lines())
    assert "–" in lines[2]
    assert "–" not in lines[3].rpartition("GiB")[0]
    assert not any(line.startswith("expected") for line in lines)


def test_nothing_left_is_one_line(jobs: list[Job]) -> None:
    plan = Plan((PlannedJob(jobs[0], "done"),), 1, "here")
    assert list(plan.lines()) == ["1 job: 1 done; here"]
    assert plan.seconds == 0


def test_an_image_that_cannot_be_read_leaves_the_time_open(toy: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", categories=("bolt", "nut"))
    jobs = [make_job(c, toy, preset="demo") for c in load_dataset("folder", root).categories]
    jobs[1].category.test[0].image.write_bytes(b"no image")
    plan = make_plan(jobs, tmp_path / "out", {jobs[0].name: expected(device=3.0)}, workers=1, where="here")
    assert plan.jobs[0].seconds is not None
    assert plan.jobs[1].seconds is None
    assert plan.jobs[1].device_mib == 3.0
