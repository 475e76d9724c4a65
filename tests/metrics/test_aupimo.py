"""AUPIMO against its definition, and metrics of images by the size of their largest defect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics import oracle
from metrics.test_bootstrap import NATIVE, THRESHOLD, case, collect, resample, rules
from sklearn.metrics import roc_auc_score

import hrbench
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.metrics import aupimo_images, aupimo_problem, bootstrap, compute
from hrbench.metrics.aupimo import FPR_RANGE, aupimo, drawn_aupimo
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.context import Context
from hrbench.metrics.weighted import Draw

WIDE = (0.02, 0.3)
"""Limits that a few hundred pixels resolve."""


def sample(seed, good, bad, levels=None, sizes=(8, 20), lift=1.5, dtype=np.float32):
    """Maps and masks of images of different sizes, the good ones anywhere among the others."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for defective in rng.permutation(np.repeat([False, True], [good, bad])):
        mask = np.zeros(rng.integers(*sizes, 2, endpoint=True), bool)
        if defective:
            y, x = rng.integers(0, np.array(mask.shape) - 3)
            mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = True
            mask[0, 0] = True
        scores = rng.normal(0.3 * rng.normal(), 1, mask.shape) + lift * mask
        maps.append((np.round(scores * levels) / levels if levels else scores).astype(dtype))
        masks.append(mask)
    return maps, masks


def evidence_of(maps, masks, exact=False):
    collector = EvidenceCollector(EvidenceSpec(exact=exact))
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        collector.update(f"{index:04d}", scores, mask)
    return collector.result()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    good=st.integers(1, 12),
    bad=st.integers(1, 4),
    levels=st.sampled_from([1, 2, 7, None]),
    limits=st.sampled_from([WIDE, (0.05, 0.06), (0.01, 0.99)]),
)
def test_exact_evidence_gives_the_definition(seed, good, bad, levels, limits):
    maps, masks = sample(seed, good, bad, levels, sizes=(12, 20))
    evidence = evidence_of(maps, masks, exact=True)
    assert aupimo_problem(evidence, limits) == ""
    found = aupimo_images(evidence, limits)
    np.testing.assert_allclose(found.value, oracle.aupimo(maps, masks, *limits), atol=1e-10)
    assert np.array_equal(found.low, found.high, equal_nan=True)


@given(
    seed=st.integers(0, 10**6),
    good=st.integers(1, 5),
    levels=st.sampled_from([3, None]),
    scale=st.sampled_from([1, 1e-3]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_one_pass_encloses_the_exact_value(seed, good, levels, scale, dtype):
    maps, masks = sample(seed, good, 3, levels, sizes=(12, 20), dtype=np.float64)
    maps = [(1000 + scale * m).astype(dtype) for m in maps]  # few of the kept 22 bits vary: wide bins
    exact = aupimo_images(evidence_of(maps, masks, exact=True), WIDE).value
    binned = aupimo_images(evidence_of(maps, masks), WIDE)
    known = ~np.isnan(exact)
    assert np.array_equal(known, ~np.isnan(binned.value))
    assert (binned.low[known] <= binned.value[known]).all()
    assert (binned.value[known] <= binned.high[known]).all()
    assert (binned.low[known] <= exact[known] + 1e-12).all()
    assert (exact[known] <= binned.high[known] + 1e-12).all()


def test_bins_are_wide_in_the_test_above_and_absent_for_float16():
    maps, masks = sample(1, 3, 3, dtype=np.float64)
    found = aupimo_images(evidence_of([1000 + 1e-3 * m for m in maps], masks), WIDE)
    assert np.nanmax(found.high - found.low) > 0.05
    half = [m.astype(np.float16) for m in maps]
    found = aupimo_images(evidence_of(half, masks), WIDE)
    np.testing.assert_allclose(found.value, oracle.aupimo(half, masks, *WIDE), atol=1e-10)
    assert np.nanmax(found.high - found.low) == 0


def test_the_limits_of_the_paper():
    maps, masks = sample(3, 3, 4, levels=40, sizes=(200, 240), lift=4.0)
    expected = oracle.aupimo(maps, masks, 1e-5, 1e-4)
    assert 0.1 < np.nanmin(expected) < np.nanmean(expected) < 0.9
    for exact in (True, False):
        np.testing.assert_allclose(aupimo_images(evidence_of(maps, masks, exact)).value, expected, atol=1e-9)


def test_closed_forms():
    masks = [np.zeros((400, 400), bool), np.eye(400, dtype=bool)]
    constant, perfect, inverted = (
        aupimo_images(evidence_of(maps, masks)).value[1]
        for maps in ([np.ones(k.shape) for k in masks], [k * 1.0 for k in masks], [1.0 - k for k in masks])
    )
    assert constant == pytest.approx(9e-5 / np.log(10))  # y = x
    assert (perfect, inverted) == (1, 0)
    # Only good images decide: normal pixels of a defective one may be as high as they like.
    loud = [np.zeros((400, 400)), np.ones((400, 400))]
    assert aupimo_images(evidence_of(loud, masks)).value[1] == 1


def test_each_good_image_has_the_same_share_of_the_rate():
    """One pixel of a small image weighs as much as four of an image four times as large."""
    mask = np.eye(4, dtype=bool)
    small, large = np.zeros((10, 10)), np.zeros((20, 20))
    small[0, 0] = 2
    large[0, :4] = 1
    found = aupimo_images(evidence_of([small, large, np.full((4, 4), 1.5)], [None, None, mask]), (0.002, 0.02))
    assert found.value[2] == pytest.approx(np.log(0.02 / 0.005) / np.log(10))


def test_undefined_values_say_why():
    maps, masks = sample(0, 0, 3)
    evidence = evidence_of(maps, masks)
    assert "no good image" in aupimo_problem(evidence)
    assert np.isnan(aupimo_images(evidence).value).all()
    maps, masks = sample(0, 1, 3, sizes=(10, 10))
    few = evidence_of(maps, masks)
    assert aupimo_problem(few) == (
        "1 good image of at most 100 pixels cannot resolve a false-positive rate of 1e-05, only steps of 0.01"
    )
    assert aupimo_problem(few, (0.01, 0.1)) == ""
    assert np.isnan(aupimo_images(few).value).all()
    assert np.isnan(aupimo_images(few, (0.01, 0.1)).value).tolist() == [not k.any() for k in masks]
    context = Context(few, NATIVE)
    assert np.isnan(aupimo(context, "all").value)
    assert all(np.isnan(v).all() for v in drawn_aupimo(Draw(context, np.ones((2, 4)))).values())


def test_merging_in_any_order_gives_the_same_bits():
    maps, masks = sample(4, 5, 4)
    whole = aupimo_images(evidence_of(maps, masks), WIDE)
    parts = []
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        collector = EvidenceCollector(EvidenceSpec())
        collector.update(f"{index:04d}", scores, mask)
        parts.append(collector.result())
    for order in (range(9), [4, 2, 8, 1, 0, 3, 7, 5, 6]):
        merged = aupimo_images(Evidence.merge([parts[i] for i in order]), WIDE)
        assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(merged, whole, strict=True))


@pytest.mark.parametrize("levels", [None, 8, 1])
@pytest.mark.parametrize("exact", [True, False])
def test_replicates_equal_a_naive_bootstrap(levels, exact, monkeypatch):
    images = case(2, good=11, bad=12, size=110, lift=2.5, levels=levels)
    images[3] = (images[3][0] + np.float32(3), *images[3][1:])  # which holds all high scores; the last draw lacks it
    evidence = collect(images, exact)
    context = Context(evidence, NATIVE)
    weights = bootstrap.image_weights(evidence.images["id"], context.labels, rules(3).bootstrap)
    weights = np.concatenate([np.ones((1, 23)), weights, np.ones((1, 23))])
    weights[-1, [3, 4]] = 0, 2
    with np.errstate(invalid="ignore"):
        found = drawn_aupimo(Draw(context, weights))
    edges = np.quantile(context.areas, NATIVE.size_bins.quantiles)
    monkeypatch.setattr("hrbench.metrics.sizes.quartile_edges", lambda *_: edges)  # those of the full sample
    assert 0 < found["all"][-1] < 0.999
    for draw, drawn in enumerate(weights):
        copied = Context(resample(evidence, drawn), NATIVE)
        for subset in ("all", "q3", "large", "medium"):
            expected = aupimo(copied, subset)
            assert abs(found[subset][draw] - expected.value) <= expected.bound + (1e-9 if levels else 2e-3)
    if levels is None:
        assert abs(found["all"][0] - aupimo(context, "all").value) < 2e-4


def largest_areas(masks):
    """Return the area of each image's largest component; 0 for none."""
    areas = np.zeros(len(masks), int)
    for index, part in oracle.components(masks):
        areas[index] = max(areas[index], part.sum())
    return areas


def test_images_are_grouped_by_their_largest_component():
    images = case(6, good=12, bad=20, size=100, lift=2.0)
    maps, masks = [m for m, _, _ in images], [k for _, k, _ in images]
    evidence = collect(images)
    table = compute(evidence, NATIVE, threshold=THRESHOLD).set_index(["metric", "subset"])
    largest = largest_areas(masks)
    areas = np.array([part.sum() for _, part in oracle.components(masks)])
    first, second, third = np.quantile(areas, NATIVE.size_bins.quantiles)
    diameter = 2 * np.sqrt(largest / np.pi)
    members = {
        "all": largest > 0,
        "q2": (largest > 0) & (largest <= second),
        "q4": largest > 0,
        "tiny": (largest > 0) & (largest <= first),
        "large": largest > third,
        "d8-16": (diameter >= 8) & (diameter < 16),
    }
    scores, values = evidence.images["score"].to_numpy(), aupimo_images(evidence).value
    ious = [
        np.sum(k & (m >= THRESHOLD)) / max(1, np.sum(k | (m >= THRESHOLD))) for m, k in zip(maps, masks, strict=True)
    ]
    for subset, chosen in members.items():
        counted = int(chosen.sum())
        assert table.loc[("miou", subset), "n"].item() == table.loc[("aupimo", subset), "n"].item() == counted
        assert table.loc[("image_auroc", subset), "n"].item() == (32 if subset == "all" else counted)
        if counted:
            used = chosen | (largest == 0)
            auroc = roc_auc_score(chosen[used], scores[used])
            assert table.loc[("image_auroc", subset), "value"].item() == pytest.approx(auroc, abs=1e-12)
            assert table.loc[("miou", subset), "value"].item() == pytest.approx(np.mean(np.array(ious)[chosen]))
            assert table.loc[("aupimo", subset), "value"].item() == pytest.approx(values[chosen].mean())
    assert 0 < sum(members["large"]) < sum(members["all"])
    assert np.isnan(table.loc[("image_auroc", "d>=128"), "value"].item())


def test_a_defect_that_shrinking_lost_counts_for_the_image_score_only():
    rng = np.random.default_rng(0)
    collector = EvidenceCollector(EvidenceSpec(side=256))
    for index in range(6):
        mask = np.zeros((512, 512), bool)
        if index > 2:
            mask[101:102, 101:102] = True  # between the pixels that are kept
        if index > 3:
            mask[200:240, 200:240] = True
        collector.update(f"{index}", rng.normal(size=mask.shape).astype(np.float32) + 3 * mask, mask, score=index)
    protocol = replace(NATIVE, resolution="256")
    evidence = collector.result()
    assert evidence.images["defect_pixels"].tolist()[3] == 0
    table = compute(evidence, protocol, threshold=1.0).set_index(["metric", "subset"])
    assert table.loc[("image_auroc", "all"), ["value", "n"]].tolist() == [1, 6]
    assert table.loc[("image_auroc", "q4"), ["value", "n"]].tolist() == [1, 2]
    for metric in ("aupimo", "miou"):
        assert table.loc[(metric, "all"), "n"].item() == 2
        assert table.loc[(metric, "all"), "value"].item() == table.loc[(metric, "q4"), "value"].item() > 0
    assert np.isnan(aupimo_images(evidence).value).tolist() == [True] * 4 + [False] * 2
    draw = Draw(Context(evidence, protocol, 1.0), np.ones((1, 6)))
    for metric in ("image_auroc", "aupimo", "miou"):
        with np.errstate(invalid="ignore"):  # of subsets without an image
            drawn = METRICS[metric].weighted(draw, "all", np.nan).item()
        assert drawn == pytest.approx(table.loc[(metric, "all"), "value"].item(), abs=1e-3)


def test_intervals_rest_on_the_images_of_the_subset():
    evidence = collect(case(6, good=12, bad=20, size=100, lift=2.0))
    context = Context(evidence, NATIVE, THRESHOLD)
    result = bootstrap.replicates(evidence, rules(30), threshold=THRESHOLD)
    for subset in ("all", "q2", "large"):
        images = context.image_subsets[subset].sum()
        assert result.units[result.row("miou", subset)] == images
        assert result.units[result.row("image_auroc", subset)] == min(12, images)
        assert result.units[result.row("aupimo", subset)] == min(12, images)
    frame = result.intervals().set_index(["metric", "subset"])
    assert np.isfinite(frame.loc[("aupimo", "all"), ["ci_low", "ci_high"]].to_numpy(dtype=float)).all()
    assert np.isnan(frame.loc[("aupimo", "tiny"), "ci_low"].item())


def test_the_public_function_gives_it():
    maps, masks = sample(3, 3, 4, levels=50, sizes=(200, 200), lift=3.0)
    result = hrbench.evaluate(maps, masks, exact=True)
    assert result.value("aupimo") == pytest.approx(np.nanmean(oracle.aupimo(maps, masks, *FPR_RANGE)))
