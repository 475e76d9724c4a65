"""What a threshold promised and what came of it, in sentences."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pandas as pd
import pytest

import hrbench
from hrbench.protocol import Protocol, ThresholdRule
from hrbench.report.promise import promise_of

NATIVE = hrbench.load_protocol("native")


def run(rate: float, good: int, held_out: int, fpr: tuple[float, float, float] = (0.1, 0.05, 0.2)) -> SimpleNamespace:
    rows = [("alarms", rate, math.nan, math.nan, good), ("fpr", *fpr, 50)]
    records = pd.DataFrame(rows, columns=["metric", "value", "ci_low", "ci_high", "n"])
    return SimpleNamespace(
        run=SimpleNamespace(records=records.assign(protocol="native", subset="all")), held_out=held_out
    )


def pixels(rule: str) -> Protocol:
    return dataclasses.replace(NATIVE, threshold=ThresholdRule(rule=rule))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rate", "good", "held_out", "kept", "words"),
    [
        (3 / 60, 60, 50, True, "promised at most 5 alarms per 100 good images (50 images held out); 3 of 60"),
        (40 / 60, 60, 50, False, "DRIFT"),
        (18 / 172, 172, 50, True, "more than promised but within what 50 held-out images allow"),
        (math.nan, 60, 12, None, "12 normal images held out, 19 are needed"),
        (math.nan, 60, 0, None, "0 normal images held out, 19 are needed"),
        (math.nan, 60, 40, None, "run it again"),
    ],
)
def test_a_promise_of_alarms(rate: float, good: int, held_out: int, kept: bool | None, words: str) -> None:
    promise = promise_of(run(rate, good, held_out), NATIVE)
    assert promise is not None
    assert promise.kept is kept
    assert words in promise.text


def test_a_promise_of_pixels() -> None:
    missed = promise_of(run(0.0, 9, 5), pixels("normal-quantile"))
    kept = promise_of(run(0.0, 9, 5, (0.002, 0.0005, 0.003)), pixels("normal-quantile"))
    assert missed is not None
    assert kept is not None
    assert (missed.kept, kept.kept) == (False, True)
    assert "promised to call 0.1 % of the normal pixels, calls 10 % (interval 5 to 20 %)" in missed.text


def test_no_promise() -> None:
    assert promise_of(run(0.1, 9, 5), pixels("mean+k*sigma")) is None
    assert promise_of(run(math.nan, 0, 5), NATIVE) is None
    assert promise_of(run(0.0, 9, 5, (math.nan,) * 3), pixels("normal-quantile")) is None
