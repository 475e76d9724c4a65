"""How far a grid is: shares of work, what is left, and one line for each job that ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from hrbench import HrbenchError, load_dataset, load_protocol
from hrbench.grid import progress as progress_module
from hrbench.grid.engine import Outcome
from hrbench.grid.plan import Plan, PlannedJob
from hrbench.grid.progress import GridProgress, headline
from hrbench.runs.job import Job, make_job

NATIVE = load_protocol("native")
IMAGES = 8


@pytest.fixture
def jobs(tree: Path, toy: str) -> list[Job]:
    categories = load_dataset("folder", tree).categories
    return [make_job(c, toy, preset="demo", seed=seed) for seed in (0, 1) for c in categories]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass."""
    now = [100.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="hrbench")
    return caplog


def row(metric: str, limit: float, value: float, subset: str = "all", protocol: str = "native") -> dict[str, Any]:
    return {"protocol": protocol, "metric": metric, "subset": subset, "fpr_limit": limit, "value": value}


def run_with(*rows: dict[str, Any], seconds: float | None = None) -> Any:
    cost = SimpleNamespace(wall_seconds=seconds)
    columns = ["protocol", "metric", "subset", "fpr_limit", "value"]
    return SimpleNamespace(records=pd.DataFrame(rows, columns=columns), about=SimpleNamespace(cost=cost))


def test_time_left_follows_the_pace_and_the_weights(jobs: list[Job], clock: Callable[[float], None]) -> None:
    plan = Plan((PlannedJob(jobs[0], "to do", 10.0, 30.0), PlannedJob(jobs[1], "to do", 20.0, 40.0)), 1, "")
    with GridProgress(plan, NATIVE) as progress:
        assert progress.seconds_left == 0  # nothing is known yet
        clock(20)
        progress.told(jobs[0], 0)
        assert progress.seconds_left == pytest.approx(90 * 2)  # twice as slow as expected
        progress.told(jobs[0], IMAGES // 2)
        assert progress.seconds_left == pytest.approx(75 * 20 / 25)
        clock(5)
        assert progress.seconds_left == pytest.approx(75 * 25 / 25)
        progress.ended(Outcome(jobs[0], run_with()), before=False)
        assert progress.seconds_left == pytest.approx(60 * 25 / 40)
        progress.told(jobs[1], 0)
        progress.told(jobs[1], IMAGES)
        assert progress.seconds_left == 0


def test_what_is_done_twice_or_by_others_does_not_count_beyond_a_job(
    jobs: list[Job], clock: Callable[[float], None]
) -> None:
    plan = Plan((PlannedJob(jobs[0], "to do", 10.0, 30.0), PlannedJob(jobs[1], "to do", 20.0, 40.0)), 1, "")
    with GridProgress(plan, NATIVE) as progress:
        clock(10)
        for _ in range(5):
            progress.told(jobs[0], IMAGES)
        assert progress.seconds_left == pytest.approx(60 * 10 / 40)
        progress.told(jobs[2], IMAGES)  # not in the plan
        progress.ended(Outcome(jobs[0], run_with()), before=False)
        assert progress.seconds_left == pytest.approx(60 * 10 / 40)


def test_a_job_of_unknown_time_weighs_as_the_others(jobs: list[Job], clock: Callable[[float], None]) -> None:
    known = (PlannedJob(jobs[0], "to do", 10.0, 10.0), PlannedJob(jobs[1], "begun", 20.0, 20.0))
    with GridProgress(Plan((*known, PlannedJob(jobs[2], "to do")), 1, ""), NATIVE) as progress:
        clock(6)
        progress.told(jobs[2], 0)  # half of the mean of 20 and 40
        assert progress.seconds_left == pytest.approx(75 * 6 / 15)
    with GridProgress(Plan((PlannedJob(jobs[0], "to do"),), 1, ""), NATIVE) as progress:
        clock(8)
        progress.told(jobs[0], IMAGES // 4)
        assert progress.seconds_left == pytest.approx(7 * 8)


def test_one_line_for_each_job_that_ends(
    jobs: list[Job], clock: Callable[[float], None], told: pytest.LogCaptureFixture
) -> None:
    plan = Plan((PlannedJob(jobs[3], "done"), *(PlannedJob(job, "to do", 1.0, 1.0) for job in jobs[:3])), 1, "")
    run = run_with(row("aupro", NATIVE.headline_fpr, 0.5), seconds=75.0)
    with GridProgress(plan, NATIVE) as progress:
        progress.ended(Outcome(jobs[3], run_with()), before=True)
        clock(30)
        progress.ended(Outcome(jobs[0], run), before=False)
        progress.ended(Outcome(jobs[1], error=HrbenchError("002.png: no image")), before=False)
        progress.ended(Outcome(jobs[2], error=KeyError("no"), traceback="Traceback ...\nKeyError\n"), before=False)
    lines = [(record.levelno, record.getMessage()) for record in told.records]
    assert lines == [
        (
            logging.INFO,
            f"[1/3] {jobs[0].label}: AUPRO@{NATIVE.headline_fpr:g} 0.500; 1 min 15 s; about 1 min left",
        ),
        (logging.ERROR, f"[2/3] {jobs[1].label}: failed: 002.png: no image; about 15 s left"),
        (logging.ERROR, f"[3/3] {jobs[2].label}: failed: 'no'"),
        (logging.ERROR, "Traceback ...\nKeyError"),
    ]


def test_the_headline_is_of_the_protocol_at_its_budget_over_all_sizes() -> None:
    budget, limit = NATIVE.alarm.headline, NATIVE.headline_fpr
    rows = [
        row("aupro", limit, 0.9, subset="tiny"),
        row("aupro", limit, 0.1, protocol="lowres256"),
        row("aupro", limit / 2, 0.2),
        row("aupro", limit, 0.7654),
    ]
    recall = row("recall_matched", budget, 0.4321)
    assert headline(run_with(*rows), NATIVE) == f"AUPRO@{limit:g} 0.765"
    assert headline(run_with(*rows, recall), NATIVE) == (
        f"recall 0.432 at {100 * budget:g} false alarms per 100, AUPRO@{limit:g} 0.765"
    )
    assert headline(run_with(row("recall_matched", budget, math.nan)), NATIVE) == "no threshold, so nothing is measured"
    bare = [row("called_matched", budget, 0.75), row("image_auroc", math.nan, 0.875), row("alarms", math.nan, 0.04)]
    assert headline(run_with(*bare), NATIVE) == (
        f"called 0.750 at {100 * budget:g} false alarms per 100, image ROC-AUC 0.875"
    )
    assert headline(run_with(bare[2]), NATIVE) == "alarms 0.040 at the threshold"
