"""Operating points at equal false alarms, and promised ones, against brute force and reference values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics import oracle
from metrics.test_bootstrap import case, collect, resample, rules
from scipy.stats import binomtest

import hrbench
from hrbench.evidence import Calibration, Evidence, EvidenceCollector, EvidenceSpec
from hrbench.metrics import alarms, automatic_threshold, bootstrap
from hrbench.metrics.context import Context
from hrbench.metrics.detection import bootstrap_sizes, detections
from hrbench.metrics.measurement import measure
from hrbench.metrics.table import metric_rows
from hrbench.protocol import Alarms, ThresholdRule

NATIVE = hrbench.load_protocol("native")
GOOD = np.array([5.0, 1, 3, 2, 4, 9, 7, 8, 6, 10])


def evidence_of(maps, masks, *, exact=True):
    collector = EvidenceCollector(EvidenceSpec(exact=exact))
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        collector.update(f"{index:03d}", scores, mask)
    return collector.result()


def calibration(*tops):
    return Calibration.of([np.array([[0.0, top]], np.float32) for top in tops])[0]


# --- Reference values ---


def test_reference_thresholds_just_above_a_score():
    assert alarms.matched_limits(GOOD, [0.05, 0.1, 0.2]).tolist() == [[10, 9, 8]]


@pytest.mark.parametrize(("images", "rank"), [(19, 19), (18, None), (39, 38), (99, 95)])
def test_reference_promises(images, rank):
    held_out = calibration(*range(1, images + 1))
    threshold = alarms.conformal_threshold(held_out, 0.05)
    assert alarms.conformal_rank(images, 0.05) == rank
    if rank is None:
        assert threshold is None
    else:
        assert rank < threshold <= rank * (1 + 2**-12)
    assert alarms.images_needed(0.05) == 19
    assert alarms.images_needed(0.01) == 99


def test_reference_intervals():
    assert alarms.FalseAlarms(0, 60).upper() == pytest.approx(0.0487, abs=5e-5)
    assert alarms.FalseAlarms(3, 60).interval() == pytest.approx((0.0104, 0.1392), abs=5e-5)
    assert alarms.FalseAlarms(0, 7).upper() == pytest.approx(1 - 0.05 ** (1 / 7))
    assert all(math.isnan(end) for end in alarms.FalseAlarms(0, 0).interval())


@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_those_of_clopper_and_pearson(counts):
    expected = binomtest(*counts).proportion_ci(0.95, "exact")
    assert alarms.FalseAlarms(*counts).interval(0.95) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("pixels", "share", "critical"),
    [([0.9, 0.8, 0.2, 0.1, 0.1], 0.1, 0.9), ([0.9, 0.8, 0.2, 0.1, 0.1], 0.5, 0.2), (np.arange(11.0), 0.1, 9.0)],
)
def test_reference_critical_scores(pixels, share, critical):
    scores = np.array([[*pixels, -1.0]], dtype=np.float64)
    evidence = evidence_of([scores], [scores > -1])
    assert alarms.critical_scores(evidence, share).tolist() == [critical]


# --- Against brute force ---


@st.composite
def categories(draw):
    """Draw maps with ties and masks: no, one or several good images."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    levels = draw(st.sampled_from([1, 3, 20, None]))
    maps, masks = [], []
    for index in range(draw(st.integers(0, 6)) + 3):
        scores, mask = rng.normal(size=(7, 9)), np.zeros((7, 9), bool)
        if index < 3:
            mask[1:3, 1 : 3 + index] = mask[5, 4:8] = True
            scores = scores + mask
        maps.append(np.round(scores * levels) / levels if levels else scores)
        masks.append(mask)
    return maps, masks


@given(categories(), st.integers(1, 4), st.sampled_from([0.1, 0.34, 1.0]), st.sampled_from([0.0, 0.01, 0.2, 0.34, 0.5]))
def test_matched_points_equal_brute_force(images, pixels, share, budget):
    maps, masks = images
    protocol = replace(NATIVE, alarm=Alarms(pixels, (budget,), budget, (budget,)), pod=replace(NATIVE.pod, share=share))
    context = Context(evidence_of(maps, masks), protocol)
    rows = {(r.metric, r.subset): r.value for r in metric_rows(context).itertuples() if r.metric != "aupro"}
    expected = oracle.matched(maps, masks, budget, pixels, share)
    for name, value in expected.items():
        assert rows[f"{name}_matched", "all"] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert rows["mean_recall", "all"] == pytest.approx(expected["recall"], abs=1e-12, nan_ok=True)
    if context.matched:
        point = context.matched[budget]
        assert point.threshold > point.limit
        assert point.unresolved == (alarms.allowed(point.alarms.good, budget) == 0)


@given(st.integers(0, 10**6), st.sampled_from([2, 5, None]))
def test_one_pass_counts_are_those_of_its_thresholds(seed, levels):
    images = case(seed, good=5, bad=4, levels=levels, offset=1000.0)  # wide bins
    context = Context(collect(images), NATIVE)
    for budget, point in context.matched.items():
        called = [np.sum(scores >= np.float32(point.threshold)) >= 1 for scores, *_ in images]
        assert point.alarms.count == sum(called[:5]) <= budget * 5
        assert np.array_equal(called, context.alarms > point.limit)
        fpr = sum(np.sum((scores >= np.float32(point.threshold)) & ~mask) for scores, mask, _ in images)
        values = {r.fpr_limit: r.value for r in metric_rows(context).itertuples() if r.metric == "fpr_matched"}
        assert values[budget] * context.evidence.normal_pixels == pytest.approx(fpr)


def test_an_image_alarms_by_its_pixels_of_either_kind():
    scores = np.array([[5.0, 4.0, 3.0, 2.0]])
    evidence = evidence_of([scores, scores], [np.array([[True, False, True, False]]), None])
    for k, expected in ((1, 5.0), (2, 4.0), (4, 2.0), (9, 2.0)):
        assert alarms.alarm_scores(evidence, k).tolist() == [expected, expected]


def test_recall_grows_with_the_budget_and_its_mean_is_that_of_the_summary():
    frame = measure(collect(case(2, lift=3.0, good=40)), rules(0)).records
    recall = frame[(frame["metric"] == "recall_matched") & (frame["subset"] == "all")]
    assert recall["value"].is_monotonic_increasing
    assert 0 < recall["value"].iloc[0] < recall["value"].iloc[-1]
    mean = frame.loc[(frame["metric"] == "mean_recall") & (frame["subset"] == "all"), "value"].item()
    assert mean == pytest.approx(recall["value"][recall["fpr_limit"] <= 0.1].mean())


# --- In draws ---


def test_draws_are_those_of_a_naive_bootstrap():
    evidence = collect(case(4, lift=3.0, levels=8, good=15))
    names = ["recall_matched", "called_matched", "called_right_matched", "fpr_matched", "alarms_matched"]
    result = bootstrap.replicates(evidence, rules(6))
    weights = bootstrap.image_weights(evidence.images["id"].tolist(), evidence.images["label"], rules(6).bootstrap)
    for draw, of_images in enumerate(weights):
        table = metric_rows(Context(resample(evidence, of_images), NATIVE))
        copied = {tuple(row[1:4]): row.value for row in table.itertuples()}
        for name in names:
            for budget in NATIVE.alarm.budgets:
                found = result.values[draw, result.row(name, "all", budget)]
                assert found == pytest.approx(copied[name, "all", budget], abs=1e-12), (name, budget)


def test_the_limit_of_a_draw_is_that_of_the_copied_images():
    rng = np.random.default_rng(0)
    scores, weights = np.round(rng.normal(size=23), 1), rng.integers(0, 4, (50, 23)).astype(float)
    budgets = [0.0, 0.05, 0.1, 0.5]
    found = alarms.matched_limits(scores, budgets, weights)
    for own, limits in zip(weights, found, strict=True):
        assert alarms.matched_limits(np.repeat(scores, own.astype(int)), budgets)[0].tolist() == limits.tolist()


def test_detection_limits_at_every_budget():
    evidence = collect(case(4, lift=3.0, good=30, bad=30))
    context = Context(evidence, rules(60), threshold=3.0)
    found = {result.budget: result for result in detections(context)}
    assert list(found) == [None, *NATIVE.alarm.budgets]
    weights = bootstrap.image_weights(evidence.images["id"].tolist(), context.labels, rules(60).bootstrap)
    for budget in NATIVE.alarm.budgets:
        result = found[budget]
        assert np.array_equal(result.hits, context.critical > context.matched[budget].limit)
        assert result.alarms.count <= budget * 30
        naive = []
        for own in weights:
            good = np.repeat(context.alarms[context.labels == 0], own[context.labels == 0].astype(int))
            limit = alarms.matched_limits(good, [budget])[0, 0]
            of_components = own[None, evidence.component_images]
            naive += list(bootstrap_sizes(np.log(context.areas), context.critical > limit, of_components, 0.9))
        low, high = bootstrap.expanded_percentiles(np.array(naive), 30)
        assert result.a90_95 is result.upper["bootstrap"]
        assert found[None].a90_95 is found[None].upper["profile"]
        assert result.interval["bootstrap"] == pytest.approx((math.exp(low), math.exp(min(high, 700))), rel=1e-5)


def test_records_hold_the_limits_and_the_intervals_of_counts():
    records = measure(collect(case(4, lift=3.0, good=30, bad=30)), rules(50), threshold=3.0).records
    keyed = records.set_index(["metric", "subset", "fpr_limit"]).sort_index()
    for budget in NATIVE.alarm.budgets:
        rate = keyed.loc[("alarms_matched", "all", budget)]
        assert rate["ci_low"] <= rate["value"] <= budget
        assert rate["ci_high"] == pytest.approx(alarms.FalseAlarms(round(30 * rate["value"]), 30).interval()[1])
        assert ("a90_matched", "all", budget) in keyed.index
    assert {"a50", "a90", "a90_95", "alarms", "called", "called_right"} <= set(records["metric"])


# --- The promise ---


def test_a_promise_is_made_on_held_out_images_only():
    rng = np.random.default_rng(1)
    normals = [rng.normal(size=(9, 9)) for _ in range(40)]
    maps, masks = [rng.normal(size=(9, 9)) for _ in range(6)], [np.zeros((9, 9), bool) for _ in range(6)]
    masks[0][2:4, 2:4] = True
    result = hrbench.evaluate(maps, masks, normal_maps=normals)
    rank = alarms.conformal_rank(40, 0.05)
    score = sorted(float(np.float32(m.max())) for m in normals)[rank - 1]
    threshold = automatic_threshold(result.evidence, NATIVE.threshold)
    assert score <= threshold <= score * (1 + 2**-12)
    assert result.value("recall") == np.mean([maps[0][2:4, 2:4].max() >= threshold])
    few = hrbench.evaluate(maps, masks, normal_maps=normals[:18])
    assert automatic_threshold(few.evidence, NATIVE.threshold) is None
    assert math.isnan(few.value("recall"))


def test_a_promise_holds_for_exchangeable_images():
    rng = np.random.default_rng(2)
    for images, expected in ((19, 0.05), (30, 1 / 31), (50, 2 / 51), (100, 5 / 101)):
        scores = rng.random((4000, images))
        scores.sort(axis=1)
        rate = (1 - scores[:, alarms.conformal_rank(images, 0.05) - 1]).mean()
        assert rate == pytest.approx(expected, abs=0.004)
        assert rate < 0.053


def test_drift_is_rarely_found_where_there_is_none():
    rng = np.random.default_rng(3)
    for held_out, good in ((19, 60), (50, 172), (100, 20)):
        rank = alarms.conformal_rank(held_out, 0.05)
        limits = np.sort(rng.random((3000, held_out)), axis=1)[:, rank - 1]
        counts = (rng.random((3000, good)) > limits[:, None]).sum(axis=1)
        drift = np.array([alarms.drifted(alarms.FalseAlarms(k, good), held_out, 0.05) for k in range(good + 1)])
        assert drift[counts].mean() < 0.032
        assert drift[-1]
        assert not drift[0]
        assert (np.diff(drift.astype(int)) >= 0).all()
    assert not alarms.drifted(alarms.FalseAlarms(9, 9), 18, 0.05)  # no promise


def test_a_calibration_of_an_earlier_version_makes_no_promise(tmp_path):
    import pyarrow as pa

    from hrbench.evidence.files import write

    held_out = calibration(*range(1, 40))
    evidence = replace(collect(case(0)), calibration=held_out)
    evidence.save(tmp_path)
    read = Evidence.load(tmp_path).calibration
    assert [part.keys.tolist() for part in read.normals] == [part.keys.tolist() for part in held_out.normals]
    assert alarms.conformal_threshold(read, 0.05) == alarms.conformal_threshold(held_out, 0.05)
    scores = held_out.scores  # as it was once written: all images in one histogram
    table = pa.table({"normal_keys": scores.keys, "normal_counts": scores.counts})
    facts = {"shift": scores.shift, "images": 39, "mean": held_out.mean, "std": held_out.std}
    write(table, facts, tmp_path / "calibration.parquet")
    former = Evidence.load(tmp_path).calibration
    assert former.pooled
    assert not read.pooled
    assert alarms.conformal_threshold(former, 0.05) is None
    quantile = ThresholdRule()
    assert automatic_threshold(replace(evidence, calibration=former), quantile) == automatic_threshold(
        evidence, quantile
    )


def test_without_good_images_nothing_is_matched():
    evidence = collect(case(3, good=0, bad=12))
    frame = measure(evidence, rules(20)).records
    assert frame.loc[frame["metric"].str.endswith("_matched"), "value"].isna().all()
    assert detections(Context(evidence, NATIVE)) == []


@pytest.mark.parametrize(("good", "budget", "number"), [(100, 0.29, 29), (19, 0.05, 0), (20, 0.05, 1), (0, 0.5, 0)])
def test_how_many_may_alarm(good: int, budget: float, number: int) -> None:
    assert alarms.allowed(good, budget) == number
    limit = alarms.matched_limits(np.arange(good, dtype=float), [budget])[0, 0]
    assert (np.arange(good) > limit).sum() == number


def test_a_draw_without_good_images_has_no_threshold():
    assert np.isinf(alarms.matched_limits(GOOD, [0.05, 0.5], np.zeros((2, 10)))).all()
    # All good images show one part, of which there is a defective image, too: 12 groups, all of them defective.
    groups = ["part"] * 12 + ["part", *(str(number) for number in range(11))]
    mixed = collect(case(4, lift=3.0, good=12, bad=12), groups=groups)
    good = mixed.images["label"].to_numpy() == 0
    result = bootstrap.replicates(mixed, rules(200))
    weights = bootstrap.image_weights(
        mixed.images["id"].tolist(), mixed.images["label"], rules(200).bootstrap, mixed.groups
    )
    without = weights[:, good].sum(axis=1) == 0
    assert without.any()
    for name in ("recall_matched", "called_matched", "called_right_matched", "fpr_matched", "alarms_matched"):
        assert (np.isnan(result.values[:, result.row(name, "all", 0.05)]) == without).all(), name


def test_too_few_good_images_give_no_interval_at_equal_alarms():
    evidence = collect(case(4, lift=3.0, good=9, bad=24))
    records = measure(evidence, rules(50)).records
    matched = records[records["metric"].isin(["recall_matched", "mean_recall", "a90_matched"])]
    assert matched["ci_low"].isna().all()
    assert records.loc[(records["metric"] == "aupro") & (records["subset"] == "all"), "ci_low"].notna().all()
    assert all("bootstrap" not in point.interval for point in detections(Context(evidence, rules(50))))


def test_a_threshold_between_edges_calls_no_lossless_score_below_it():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    low, high = np.float16(0.5), np.float16(1.0)
    maps = [np.where(mask, high, 0).astype(np.float16), np.full((4, 4), low)]
    evidence = evidence_of(maps, [mask, None], exact=False)
    threshold = 0.50001  # in the bin of 0.5, and above it
    found = metric_rows(Context(evidence, NATIVE, threshold)).set_index(["metric", "subset"])["value"]
    assert evidence.lossless
    assert found["fpr", "all"] == 0
    assert found["alarms", "all"] == 0
    assert found["called", "all"] == 1


def test_ties_that_leave_a_budget_unused_are_a_caution():
    mask = np.zeros((8, 8), bool)
    mask[:2, :2] = True
    saturated = [np.full((8, 8), 1 - 2.0**-20 * (i + 1), np.float32) for i in range(20)]
    maps, masks = [*saturated, mask.astype(np.float32)], [None] * 20 + [mask]
    for exact in (False, True):
        evidence = evidence_of(maps, masks, exact=exact)
        (point,) = (found for found in detections(Context(evidence, NATIVE)) if found.budget == 0.2)
        assert point.alarms.count == (4 if exact else 0)
        assert any("0 good images alarm where 4 may" in text for text in point.cautions) == (not exact)
