"""What follows from alarm and critical scores, against the definitions one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrbench.metrics.alarms import FalseAlarms, drifted, matched_limits
from hrbench.metrics.detection import fit_detection
from hrbench.protocol import Alarms, Protocol
from hrbench.report import scores as module
from hrbench.report.alarm_axis import Threshold
from hrbench.report.operating import point_at
from hrbench.report.scores import Intervals, Scores, accepted, analyse, limit_band, limit_curve, recalls, steps
from hrbench.runs.store import Run

from .conftest import PROTOCOL, give_scores, scores_with

BUDGETS = (0.01, 0.02, 0.05, 0.10, 0.20)
POD = PROTOCOL.pod

few_levels = st.integers(0, 6)  # ties within and between


@st.composite
def tables(draw: st.DrawFn) -> Scores:
    good = draw(st.lists(few_levels, min_size=1, max_size=25))
    defects = draw(st.lists(st.tuples(few_levels, st.integers(1, 400)), min_size=3, max_size=30))
    critical, areas = (np.array(column) for column in zip(*defects, strict=True))
    return scores_with(np.array(good, dtype=float), critical.astype(float), areas)


def limit_at(scores: Scores, alarms: int) -> float:
    """Return the limit by its definition: the lowest score that so few good images are above."""
    places = [-math.inf, *scores.good]
    return min(place for place in places if (scores.good > place).sum() <= alarms)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_everything_follows_from_the_limit(scores: Scores) -> None:
    good = scores.good.size
    numbers = np.arange(good)
    members = scores.areas >= np.median(scores.areas)
    shares, sizes, costs = recalls(scores, numbers, members), limit_curve(scores, numbers, POD), accepted(scores)
    for number in numbers:
        limit = limit_at(scores, number)
        assert limit == matched_limits(scores.good, [number / good])[0, 0]
        hits = scores.critical > limit
        assert shares[number] == hits[members].mean()
        assert ((costs <= number) == hits).all()
        found = fit_detection(scores.areas, hits, POD)
        assert analyse(scores, number, POD).alarms == FalseAlarms(int((scores.good > limit).sum()), good)
        if found.a90.area is not None:
            assert sizes[number] == pytest.approx(found.a90.area, rel=1e-6)
        elif hits.all():
            assert sizes[number] == 0
        elif "not reached" in found.a90.reason:
            assert sizes[number] == math.inf
        else:
            assert math.isnan(sizes[number])


def test_steps_are_what_budgets_can_tell_apart() -> None:
    assert steps(30, BUDGETS).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert steps(100, BUDGETS).tolist() == list(range(21))
    assert steps(12, BUDGETS).tolist() == [0, 1, 2, 3]  # a few in any case
    assert steps(3, BUDGETS).tolist() == [0, 1, 2]
    assert steps(1, BUDGETS).tolist() == [0]
    many = steps(5000, BUDGETS)
    assert many.size <= 66
    assert {0, 50, 100, 250, 500, 1000} <= set(many.tolist())
    assert all(a < b for a, b in pairwise(many.tolist()))


def test_recall_of_no_defects_is_none() -> None:
    scores = scores_with(np.arange(4.0), np.ones(3), np.array([4, 5, 6]))
    assert np.isnan(recalls(scores, np.arange(2), np.zeros(3, bool))).all()


def example(good: int = 30, defects: int = 60, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    areas = np.exp(rng.uniform(np.log(10), np.log(3000), defects)).astype(int)
    return scores_with(rng.gumbel(size=good), rng.normal(np.log(areas) - 2, 1.0), areas)


def test_band_is_the_bootstrap_that_was_measured() -> None:
    ends = {0.02: (20.0, 90.0), 0.05: (30.0, math.inf), 0.2: (10.0, 40.0)}
    known = {budget: Intervals(size, None) for budget, size in ends.items()}
    band = limit_band(dataclasses.replace(example(), intervals=known), BUDGETS, POD)
    assert band.construction == "bootstrap"
    assert band.alarms.tolist() == [0, 1, 3, 6]  # 0.01 and 0.02 allow none
    assert band.low.tolist()[:2] == [20.0, 30.0]
    assert band.high.tolist()[:2] == [90.0, math.inf]
    assert np.isnan([band.low[2], band.high[2]]).all()


def test_without_bootstrap_it_is_the_profile() -> None:
    scores = example()
    band = limit_band(scores, BUDGETS, POD)
    assert band.construction == "profile"
    for number, low, high in zip(band.alarms, band.low, band.high, strict=True):
        hits = scores.critical > limit_at(scores, number)
        assert (low, high) == fit_detection(scores.areas, hits, POD).interval["profile"]
    assert np.isnan(limit_band(dataclasses.replace(scores, critical=np.full(60, 99.0)), BUDGETS, POD).low).all()


def test_running_median() -> None:
    rng = np.random.default_rng(0)
    x, y, at = rng.normal(size=40), rng.integers(0, 9, 40).astype(float), np.array([-1.0, 0.0, 2.0])
    for place, value in zip(at, module.running_median(x, y, at), strict=True):
        assert value == np.median(y[np.argsort(np.abs(x - place))[:12]])
    assert np.isnan(module.running_median(x[:13], y[:13], at)).all()
    assert not np.isnan(module.running_median(x[:14], y[:14], at)).any()


@pytest.mark.parametrize("held_out", [19, 60])
@pytest.mark.parametrize("count", [0, 3, 7, 8, 12, 34, 60])
def test_drift_of_a_promise_is_that_of_the_page(alarming: Protocol, count: int, held_out: int) -> None:
    alarms, found = FalseAlarms(count, 60), fit_detection([4, 9], [0, 1], POD)
    point = Threshold.of(dataclasses.replace(found, alarms=alarms), alarming, held_out)
    assert point.drift == drifted(alarms, held_out, 0.05)
    assert point.text.startswith("promised 5 → achieved ")
    assert f"({count} of 60)" in point.text
    assert point.text.endswith(": drift!") == point.drift


def test_a_threshold_that_promises_nothing() -> None:
    found = dataclasses.replace(fit_detection([4, 9], [0, 1], POD), alarms=FalseAlarms(60, 60))
    point = Threshold.of(found, PROTOCOL, 50)
    assert (point.promised, point.drift, point.text) == (None, False, "100 per 100 (60 of 60) alarm")


@settings(max_examples=60, deadline=None)
@given(tables())
def test_ranks_keep_the_order_and_so_the_answer(scores: Scores) -> None:
    ranks = scores.ranked()
    joint, of_joint = (np.concatenate([part.good, part.defective, part.critical]) for part in (scores, ranks))
    assert ((joint[:, None] > joint) == (of_joint[:, None] > of_joint)).all()
    assert sorted(set(of_joint)) == list(range(np.unique(joint).size))
    for budget in BUDGETS:
        one, other = (
            (point.alarms, point.called, point.right, point.sizes, str(point.reliable))
            for point in (point_at(part, budget, POD) for part in (scores, ranks))
        )
        assert one == other


def test_scores_are_read_from_the_tables_of_a_run(make_run: Callable[..., Run], alarming: Protocol) -> None:
    run = give_scores(make_run(), good=25, seed=1)
    found = module.scores_of(run, alarming, 3)
    assert found is not None
    images, components = run.images, run.components
    assert found.seed == 3
    assert found.good.tolist() == images.loc[images["label"] == 0, "alarm"].tolist()
    assert found.defective.tolist() == images.loc[images["label"] == 1, "alarm"].tolist()
    assert found.critical.tolist() == components["critical"].tolist()
    assert found.areas.tolist() == components["area"].tolist()
    assert found.intervals == {0.05: ((100.0, math.inf), None)}
    assert found.intervals_at(0.04) == found.intervals[0.05]  # as many of 25 may alarm
    assert found.intervals_at(0.1) == (None, None)


def test_runs_without_scores_have_none(make_run: Callable[..., Run], alarming: Protocol) -> None:
    assert module.scores_of(make_run(seed=0), alarming) is None  # no tables at all
    old = make_run(seed=1)
    pd.DataFrame({"protocol": ["native"], "image": ["a"], "area": [9]}).to_parquet(old.folder / "components.parquet")
    assert module.scores_of(old, alarming) is None
    other = give_scores(make_run(seed=2), good=9)
    assert module.scores_of(other, dataclasses.replace(alarming, name="another")) is None
    assert module.scores_of(other, dataclasses.replace(alarming, alarm=Alarms())) is None
    none = module.scores_of(give_scores(make_run(seed=3), good=0), alarming)
    assert none is not None
    assert none.limit(0.05) == math.inf
