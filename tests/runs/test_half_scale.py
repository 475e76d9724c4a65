"""Scores in float16: in the same order, never infinite, and what has become equal is counted."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import hrbench
from hrbench.evidence import Calibration
from hrbench.runs.half_scale import HalfScale, Merged

ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


def scale_of(normal: np.ndarray) -> HalfScale:
    return HalfScale.of(Calibration.of([normal.astype(np.float32)])[0])


@given(arrays(np.float32, (2, 9), elements=ANY), arrays(np.float32, 40, elements=ANY))
def test_order_and_range_are_kept_whatever_the_scores(normal: np.ndarray, scores: np.ndarray) -> None:
    half = scale_of(normal)(scores)
    assert half.dtype == np.float16
    assert np.isfinite(half).all()
    assert (np.diff(half[np.argsort(scores)].astype(np.float64)) >= 0).all()


def test_the_scale_is_affine_and_has_the_normal_scores_about_zero() -> None:
    rng = np.random.default_rng(0)
    normal = 1e-4 * rng.lognormal(size=(50, 50)) + 7e-3  # a plain cast leaves a tenth of float16's numbers
    scale = scale_of(normal)
    half = scale(normal.astype(np.float32)).astype(np.float64)
    assert np.median(half) == pytest.approx(0, abs=1e-4)
    assert 2**-10 <= np.median(np.abs(half)) < 2**-9
    expected = [float((Fraction(float(x)) - Fraction(scale.centre)) * Fraction(2) ** scale.exponent) for x in
                normal.astype(np.float32).ravel()]  # fmt: skip
    np.testing.assert_allclose(half.ravel(), expected, rtol=2**-11, atol=2**-24)


def test_equal_normal_scores_still_give_a_scale() -> None:
    for value in (0.0, 3.0, -1e-30):
        scale = scale_of(np.full((3, 3), value))
        assert np.isfinite(scale(np.float32([-1, value, 2 * value, 1]))).all()
        assert abs(scale(np.float32([value]))) < 1e-6


def brute(maps: list[np.ndarray], halves: list[np.ndarray]) -> tuple[int, int, int]:
    pooled: dict[float, set[float]] = {}
    for scores, half in zip(maps, halves, strict=True):
        for score, code in zip(scores.ravel().tolist(), half.ravel().tolist(), strict=True):
            pooled.setdefault(code, set()).add(score)
    tied = sum(len(pooled[code]) > 1 for half in halves for code in half.ravel().tolist())
    return sum(len(np.unique(x)) for x in maps), sum(len(np.unique(x)) for x in halves), tied


NEAR = st.sampled_from([-2.0, -1e-9, 0.0, 1e-9, 1.0, 1 + 2**-20, 5.0, 5 + 2**-12, 9e4])


@given(st.lists(arrays(np.float32, (3, 4), elements=NEAR.map(np.float32)), min_size=1, max_size=4))
def test_what_became_equal_is_counted_over_all_images(maps: list[np.ndarray]) -> None:
    merged, halves = Merged(), [HalfScale(0.0, 0)(scores) for scores in maps]
    for scores, half in zip(maps, halves, strict=True):
        merged.add(scores, half)
    assert (merged.before, merged.after, merged.tied) == brute(maps, halves)
    assert (merged.images, merged.pixels) == (len(maps), 12 * len(maps))


@pytest.mark.parametrize("tail", [0, 1])
def test_aupro_moves_by_no_more_than_is_said(tail: int) -> None:
    rng = np.random.default_rng(tail)
    draw = (lambda size: rng.normal(size=size)) if tail == 0 else (lambda size: rng.standard_cauchy(size) ** 2)
    maps = [(10 + 1e-2 * draw((64, 64))).astype(np.float32) for _ in range(6)]
    masks = [np.zeros((64, 64), bool) for _ in maps]
    for number in range(3):
        masks[number][8:20, 8:20] = True
        maps[number][masks[number]] += np.float32(1e-2)
    moves = []
    for scale in (scale_of(np.stack(maps[3:]).reshape(-1, 64)), HalfScale(0.0, 0)):  # the latter is a plain cast
        merged, halves = Merged(), [scale(scores) for scores in maps]
        for scores, half in zip(maps, halves, strict=True):
            merged.add(scores, half)
        for limit in (0.05, 0.30):
            before, after = (
                hrbench.evaluate([x.astype(np.float32) for x in items], masks, exact=True).value("aupro", "all", limit)
                for items in (maps, halves)
            )
            assert abs(before - after) <= merged.moves(limit)
        moves.append(merged.moves(0.05))
    assert 0 < 4 * moves[0] < moves[1]
