"""Planned numbers against simulated data sets of that number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hrbench.metrics.alarms import FalseAlarms
from hrbench.metrics.detection import reliable_size
from hrbench.metrics.planning import good_images_for, number_for_share, number_for_size


def test_as_many_defects_as_planned_give_the_share_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    spread = rng.binomial(60, 0.7, 4000) / 60
    low, high = np.quantile(spread, [0.025, 0.975])
    planned = number_for_share(60, low, high, 0.05)
    ends = np.quantile(rng.binomial(planned, 0.7, 4000) / planned, [0.025, 0.975])
    assert (ends[1] - ends[0]) / 2 == pytest.approx(0.05, rel=0.1)
    assert planned == pytest.approx(1.96**2 * 0.7 * 0.3 / 0.05**2, rel=0.2)  # the formula of Wald


def test_as_many_defects_as_planned_give_the_size_that_was_asked_for() -> None:
    rng = np.random.default_rng(1)

    def interval(number: int) -> tuple[float, float]:
        sizes = []
        for _ in range(150):
            areas = np.exp(rng.uniform(math.log(10), math.log(5000), number))
            hits = rng.random(number) < 1 / (1 + np.exp(-2 * (np.log(areas) - math.log(150))))
            sizes.append(reliable_size(areas, hits, 0.9).estimate)
        low, high = np.quantile(sizes, [0.025, 0.975])
        return float(low), float(high)

    planned = number_for_size(150, *interval(150), times=2)
    assert planned > 150
    low, high = interval(planned)
    assert high / low == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_as_many_good_images_as_planned_bound_the_rate(rate: float) -> None:
    good = good_images_for(rate)
    one = 1 / good
    assert FalseAlarms(math.floor(rate * good), good).interval()[1] <= 2 * rate
    assert FalseAlarms(math.ceil(rate * good), good).interval()[1] <= 2 * rate + 2 * one
    assert FalseAlarms(math.ceil(rate * good * 0.8), round(good * 0.8)).interval()[1] > 2 * rate


def test_what_is_known_well_enough_needs_no_more() -> None:
    assert number_for_share(400, 0.78, 0.82) < 400
    assert number_for_size(400, 100, 150) < 400
    assert number_for_size(400, 100, 200) == 400
