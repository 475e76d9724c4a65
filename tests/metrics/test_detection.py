"""Probability of detection against independently computed references, simulated flaws and cases without an answer."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from metrics.test_bootstrap import NATIVE, case, collect, resample
from scipy.optimize import minimize
from scipy.special import expit, logit

from hrbench.metrics import bootstrap, detection
from hrbench.metrics.context import Context
from hrbench.metrics.logistic import fit_logistic
from hrbench.protocol import Bootstrap, Detectability

SIZES = [4, 6, 7, 9, 12, 15, 18, 22, 27, 33, 40, 49, 60, 73, 90, 110, 134, 164, 200, 245, 300, 366, 447, 546, 667]
HITS = [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]


def test_reference_table_maximum_likelihood():
    found = detection.fit_detection(SIZES, HITS, estimator="ml")
    assert found.estimator == "ml"
    assert found.intercept == pytest.approx(-4.35511816, abs=1e-8)
    assert found.slope == pytest.approx(1.16286725, abs=1e-8)
    assert found.a50.area == pytest.approx(42.31557, abs=1e-5)
    assert found.a90.area == pytest.approx(279.95917, abs=1e-5)
    assert found.upper["delta"].estimate == pytest.approx(1067.4974, abs=1e-4)
    assert found.upper["wald"].estimate == pytest.approx(7637.0838, abs=1e-4)
    assert found.upper["profile"].estimate == pytest.approx(2857.998, abs=1e-3)


def test_reference_table_penalised_likelihood():
    found = detection.fit_detection(SIZES, HITS)
    assert found.estimator == "firth"
    assert found.intercept == pytest.approx(-3.71597492, abs=1e-8)
    assert found.slope == pytest.approx(0.99408263, abs=1e-8)
    assert found.a90.estimate == pytest.approx(383.13919, abs=1e-5)


@pytest.mark.parametrize("estimator", ["firth", "ml"])
def test_reference_table_separated_case(estimator):
    found = detection.fit_detection(SIZES, [size > 60 for size in SIZES], estimator=estimator)
    assert found.estimator == "firth"
    assert found.intercept == pytest.approx(-17.55612913, abs=1e-7)
    assert found.slope == pytest.approx(4.18547276, abs=1e-7)
    assert found.a50.area == pytest.approx(66.32316, abs=1e-5)
    assert found.a90.area == pytest.approx(112.11258, abs=1e-5)
    assert any("separated" in caution for caution in found.cautions)
    assert math.isfinite(found.a90_95.estimate)


def test_limits_beyond_the_largest_component_are_not_reached():
    found = detection.fit_detection(SIZES, HITS, estimator="ml")
    assert str(found.a90) == "280 px"
    limit = found.a90_95
    assert limit.area is None
    assert str(limit) == limit.reason == "not reached (largest 667 px)"
    assert found.cautions == ("25 components, fewer than 40",)


@pytest.mark.parametrize(
    ("sizes", "hits", "reason"),
    [
        (SIZES, [1] * 25, "not estimable (all 25 components hit, smallest 4 px)"),
        (SIZES, [0] * 25, "not reached (no component hit, largest 667 px)"),
        (SIZES, [size < 60 for size in SIZES], "not reached (larger defects are not found more often)"),
        ([9] * 6, [0, 1, 0, 1, 1, 1], "not estimable (all components have 9 px)"),
        ([], [], "not estimable (no components)"),
        ([9], [1], "not estimable (all 1 components hit, smallest 9 px)"),
    ],
)
def test_no_answer_is_a_value_with_a_reason(sizes, hits, reason):
    found = detection.fit_detection(sizes, hits)
    assert found.a90.area is None
    assert str(found.a90) == reason
    assert str(found.a90_95) == reason
    assert found.cautions
    assert list(found.curve().columns) == ["area", "pod", "low", "high"]


def test_flat_data_have_no_upper_limit():
    found = detection.fit_detection(np.arange(1, 41) * 10, np.arange(40) % 2 == 1)
    assert found.slope > 0
    assert found.a90_95.area is None
    assert found.a90_95.estimate == found.upper["wald"].estimate == math.inf
    assert str(found.a90_95) == "not reached (largest 400 px)"


def test_two_defects_are_fitted():
    # Every leverage is 1, so the score (y - p) + (1/2 - p) vanishes at p = (y + 1/2) / 2: odds of 3 to 1.
    fit = fit_logistic(np.log([20, 129]), [False, True])
    at = fit.intercept[0] + fit.slope[0] * np.log([20, 129])
    np.testing.assert_allclose(at, [-np.log(3), np.log(3)], rtol=1e-9)
    assert detection.fit_detection([20, 129], [False, True]).a50.area == pytest.approx(np.sqrt(20 * 129))


def test_few_hits_and_misses_are_cautioned():
    sizes = np.arange(1, 61)
    found = detection.fit_detection(sizes, (sizes > 55) | (sizes == 30))
    assert found.cautions == ("6 hits, fewer than 10",)
    found = detection.fit_detection(sizes, (sizes > 5) & (sizes != 30))
    assert found.cautions == ("6 misses, fewer than 10",)


def flaws(rng, number, intercept=-5.3, slope=1.5):
    sizes = np.exp(rng.uniform(math.log(4), math.log(1500), number))
    return sizes, rng.random(number) < expit(intercept + slope * np.log(sizes))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), number=st.integers(8, 60))
def test_fits_maximise_their_likelihoods(seed, number):
    sizes, hits = flaws(np.random.default_rng(seed), number)
    assume(0 < hits.sum() < number)
    x = np.log(sizes) - 4
    design = np.stack([np.ones(number), x], axis=1)

    def loss(beta, penalty):
        eta = design @ beta
        p = expit(eta)
        information = design.T @ (design * (p * (1 - p))[:, None])
        return np.logaddexp(0, np.where(hits, -eta, eta)).sum() - penalty * np.linalg.slogdet(information)[1] / 2

    for estimator, penalty in (("firth", 1), ("ml", 0)):
        fit = detection.fit_logistic(x, hits, estimator=estimator)
        if estimator == "ml" and fit.separated[0]:
            continue
        own = np.array([fit.intercept[0], fit.slope[0]])
        best = minimize(loss, own, (penalty,), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10})
        assert loss(own, penalty) <= best.fun + 1e-7


@given(seed=st.integers(0, 10**6))
def test_weights_are_copies(seed):
    rng = np.random.default_rng(seed)
    sizes, hits = flaws(rng, 25)
    weights = rng.integers(0, 3, (4, 25))
    x = np.log(sizes)
    together = detection.fit_logistic(x, hits, weights)
    for row, weight in enumerate(weights):
        copied = np.repeat(x, weight), np.repeat(hits, weight)
        if 0 < copied[1].sum() < copied[1].size:
            alone = detection.fit_logistic(*copied)
            assert together.intercept[row] == pytest.approx(alone.intercept[0], abs=1e-6)
            assert together.slope[row] == pytest.approx(alone.slope[0], abs=1e-6)
            assert together.covariance[row] == pytest.approx(alone.covariance[0], rel=1e-5)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.01, 100))
def test_another_unit_of_area_changes_only_the_unit(seed, factor):
    sizes, hits = flaws(np.random.default_rng(seed), 40)
    assume(0 < hits.sum() < hits.size)
    first, second = detection.fit_detection(sizes, hits), detection.fit_detection(sizes * factor, hits)
    assume(first.slope > 0)
    assert second.a90.estimate == pytest.approx(first.a90.estimate * factor, rel=1e-6)
    for name in ("profile", "wald", "delta"):
        if first.upper[name].estimate < 1e12:
            assert second.upper[name].estimate == pytest.approx(first.upper[name].estimate * factor, rel=1e-4)


def test_known_parameters_are_recovered_with_the_stated_coverage():
    rng = np.random.default_rng(0)
    true = math.exp((logit(0.9) + 5.3) / 1.5)
    below, inside, slopes = [], [], []
    for _ in range(60):
        found = detection.fit_detection(*flaws(rng, 80))
        low, high = found.interval["profile"]
        below.append(true <= found.a90_95.estimate)
        inside.append(low <= true <= high)
        slopes.append(found.slope)
    assert np.mean(slopes) == pytest.approx(1.5, abs=0.15)
    assert np.mean(below) >= 0.9  # the tool measures it with more draws
    assert np.mean(inside) >= 0.88
    large = detection.fit_detection(*flaws(rng, 5000))
    assert (large.intercept, large.slope) == (pytest.approx(-5.3, abs=0.5), pytest.approx(1.5, abs=0.12))
    estimates = [limit.estimate for limit in large.upper.values()]
    assert max(estimates) / min(estimates) < 1.03  # in large samples the constructions agree
    assert large.a90.estimate < min(estimates)


def test_curve_and_band():
    found = detection.fit_detection(SIZES, HITS, estimator="ml")
    curve = found.curve(50)
    assert curve["area"].iloc[[0, -1]].tolist() == pytest.approx([4, 667])
    assert (np.diff(curve["pod"]) > 0).all()
    assert ((curve["low"] < curve["pod"]) & (curve["pod"] < curve["high"])).all()
    at = found.intercept + found.slope * math.log(7637.0838)
    error = found._error(np.array([math.log(7637.0838)]))[0]
    assert at - 1.6448536 * error == pytest.approx(logit(0.9), abs=1e-5)  # where the band of a90/95 gets to 0.9


def test_hits_by_share_of_the_component():
    scores = np.zeros((6, 20), np.float32)
    mask = np.zeros(scores.shape, bool)
    mask[1, :10] = True  # 10 px, 3 predicted
    scores[1, :3] = 2
    mask[3, 15:] = True  # 5 px, 1 predicted, at the threshold itself
    scores[3, 16] = 1
    mask[5, 0] = True  # 1 px, not predicted
    evidence = collect([(scores, mask, None), (np.zeros((4, 4), np.float32), np.zeros((4, 4), bool), None)])
    expected = {0.0: [1, 1, 0], 0.1: [1, 1, 0], 0.2: [1, 1, 0], 0.25: [1, 0, 0], 0.3: [1, 0, 0], 0.5: [0, 0, 0]}
    for share, hits in expected.items():
        assert detection.component_hits(evidence, 1.0, share).tolist() == [bool(hit) for hit in hits]


def at_threshold(evidence, threshold, pod, rules):
    context = Context(evidence, dataclasses.replace(NATIVE, pod=pod, bootstrap=rules), threshold)
    return detection.detection_at(context, None)


def test_detection_from_evidence():
    evidence = collect(case(3, good=10, bad=30))
    found = at_threshold(evidence, 2.0, Detectability(share=0.2), Bootstrap(300, seed=1))
    again = at_threshold(evidence, 2.0, Detectability(share=0.2), Bootstrap(300, seed=1))
    assert found.interval == again.interval
    assert set(found.upper) == {"profile", "wald", "delta", "bootstrap"}
    low, high = found.interval["bootstrap"]
    assert low < found.a90.estimate < high
    normal = np.concatenate([m[~k] for m, k, _ in case(3, good=10, bad=30)])
    assert found.false_per_pixel == pytest.approx(np.mean(normal >= 2.0), rel=1e-3)
    assert found.alarms.rate == 1
    without = at_threshold(collect(case(3, bad=9)), 2.0, Detectability(), Bootstrap())
    assert "bootstrap" not in without.upper
    assert math.isnan(at_threshold(collect(case(3, good=0, bad=12)), 2.0, Detectability(), Bootstrap()).alarms.rate)


def test_bootstrap_equals_fits_of_resampled_images():
    evidence = collect(case(4, good=2, bad=20))
    images = evidence.images
    weights = bootstrap.image_weights(images["id"], images["label"], Bootstrap(6, seed=2))
    owner = evidence.components["image"].astype(int).to_numpy()
    hits = detection.component_hits(evidence, 2.0, 0.3)
    x = np.log(evidence.components["area"].to_numpy())
    sizes = detection.bootstrap_sizes(x, hits, weights[:, owner], 0.9)
    for draw, size in enumerate(sizes):
        copied = resample(evidence, weights[draw])
        found = detection.fit_detection(copied.components["area"], detection.component_hits(copied, 2.0, 0.3))
        assert math.exp(size) == pytest.approx(found.a90.estimate, rel=1e-5)


def test_replicates_without_hits_or_misses_are_infinite():
    x, hits = np.log([5.0, 10, 20, 40]), np.array([False, True, False, True])
    weights = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]], dtype=float)
    sizes = detection.bootstrap_sizes(x, hits, weights, 0.9)
    assert sizes[0] == math.inf
    assert sizes[1] == -math.inf
    assert np.isfinite(sizes[2])
    assert sizes[3] == math.inf


def test_no_defect_at_all():
    assert str(detection.fit_detection([], []).a90) == "not estimable (no components)"
