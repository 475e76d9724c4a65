"""The catalogue is complete, and the functions of every metric agree with each other and with what it says."""

from __future__ import annotations

import numpy as np
import pytest
from metrics.test_bootstrap import NATIVE, THRESHOLD, case, collect, halves, rules

from hrbench.evidence import EvidenceCollector, EvidenceSpec
from hrbench.metrics import bootstrap, compute
from hrbench.metrics.catalogue import CATALOGUE, METRICS, rows
from hrbench.metrics.context import Context
from hrbench.metrics.segmentation import DECISION
from hrbench.metrics.sizes import SCHEMES, size_subsets, size_title
from hrbench.metrics.weighted import Draw

UNREACHABLE = {"image_ap", "pixel_ap", "iou_oracle", "f1_oracle", "miou_oracle", "alarms_matched", "fpr_matched"}
"""Metrics whose worst value is a limit that no map with a defect attains."""
SILENT = {"called", "called_decision", "called_matched"}
"""Metrics that are worst for a method that says nothing."""
LEVEL = {"alarms_matched", "fpr_matched", "aupimo"}
"""Metrics that a constant does not change, or that small images do not have."""

GROUPS = [*[""] * 24, "part", "part"]
"""Of the images of a case: the last two, which are defective, belong together."""


@pytest.fixture(scope="module")
def context():
    """A category with decisions, groups, a threshold, and few distinct scores, so that no bin approximates."""
    return Context(collect(case(levels=4, decisions=True), groups=GROUPS, regions=True), NATIVE, THRESHOLD)


@pytest.fixture(scope="module")
def worst():
    """Evidence of a method that is wrong about every pixel and image."""
    collector = EvidenceCollector(EvidenceSpec())
    for index, (_, mask, _) in enumerate(case(3)):
        score, part = 1.0 - mask.any(), {"regions": halves(mask), "group": GROUPS[index]}
        collector.update(f"{index:02d}", 1.0 - mask, mask, score=score, decision=~mask, **part)
    return Context(collector.result(), NATIVE, 0.5)


def test_keys_are_unique_and_every_row_has_an_entry(context):
    assert len(METRICS) == len(CATALOGUE)
    table = compute(context.evidence, NATIVE, threshold=THRESHOLD)
    assert list(dict.fromkeys(table["metric"])) == list(METRICS)
    assert not table.duplicated(["metric", "subset", "fpr_limit"]).any()
    for metric, part in table.groupby("metric"):
        assert (part["subset"].nunique() > 1) == (METRICS[metric].by_size or metric == "spro")
        assert part["fpr_limit"].notna().all() == (METRICS[metric].limits != "")


def test_rows_at_the_own_decision_need_one_and_those_of_regions_and_groups_some():
    table = compute(collect(case(levels=4)), NATIVE)
    some = {metric.key for metric in CATALOGUE if metric.at is not DECISION} - {"spro", "group_auroc"}
    assert set(table["metric"]) == some


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.key)
def test_exact_and_weighted_agree_where_every_image_counts_once(metric, context):
    draw = Draw(context, np.ones((2, context.labels.size)))
    for _, key in (row for row in rows(context) if row[0] is metric):
        exact = metric.exact(context, key.subset, key.fpr_limit)
        with np.errstate(divide="ignore", invalid="ignore"):
            weighted = metric.weighted(draw, key.subset, key.fpr_limit)
        assert weighted.shape == (2,)
        np.testing.assert_allclose(weighted, exact.value, atol=2e-5, rtol=0, equal_nan=True)
        assert (metric.n(context, key.subset) == 0) <= np.isnan(exact.value)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.key)
def test_nothing_is_worse_than_the_worst(metric, context, worst):
    for case_ in (context, worst):
        values = [metric.exact(case_, key.subset, key.fpr_limit).value for row, key in rows(case_) if row is metric]
        assert (metric.sign * (np.array(values)[~np.isnan(values)] - metric.worst) >= 0).all()
    if metric.key not in SILENT | {"aupimo"}:
        attained = metric.exact(worst, "all", NATIVE.headline_fpr).value == metric.worst
        assert attained == (metric.key not in UNREACHABLE)


@pytest.fixture(scope="module")
def qualities():
    """Return a good method, a poor one, and one that predicts too much."""
    images = case(5)
    good, poor = ([(m + np.float32(lift) * k, k, m + lift * k > 3.5) for m, k, _ in images] for lift in (3.0, 0.0))
    loud = [(m + 1, k, m > 1) for m, k, _ in images]
    return [Context(collect(images, groups=GROUPS, regions=True), NATIVE, 3.5) for images in (good, poor, loud)]


@pytest.mark.parametrize("metric", [m for m in CATALOGUE if m.key not in LEVEL], ids=lambda metric: metric.key)
def test_better_maps_have_better_values(metric, qualities):
    good, poor, loud = (metric.exact(context, "all", NATIVE.headline_fpr).value for context in qualities)
    assert metric.sign * good > metric.sign * (poor if metric.better == "higher" else loud)


def test_titles_and_number_formats():
    for metric in CATALOGUE:
        assert metric.title[0].isupper()
        assert not metric.title.endswith(".")
        assert float(format(0.5, metric.number)) == 0.5


def test_carriers_of_intervals(context):
    result = bootstrap.replicates(context.evidence, rules(2), threshold=THRESHOLD)
    units = {metric.key: result.units[result.row(metric.key, fpr_limit=0.05 if metric.limits else None)]
             for metric in CATALOGUE}  # fmt: skip
    assert units["image_auroc"] == 12  # the good ones are fewer
    assert units["group_auroc"] == 12
    assert units["fpr"] == units["fpr_decision"] == 25
    assert units["iou"] == units["pixel_ap"] == 13
    smallest = [result.units[result.row("aupro", name, 0.05)] for name in ("tiny", "small", "medium", "large")]
    assert units["rho_disjoint"] == min(smallest) < 13
    assert units["spro"] == 7  # the images of either kind


def test_subsets_of_every_scheme():
    areas = np.arange(1, 30_000, 7)
    subsets = size_subsets(areas, NATIVE.size_bins)
    names = [name for scheme in SCHEMES for name in scheme.names(NATIVE.size_bins)]
    assert list(subsets) == ["all", *names]
    for scheme in SCHEMES:
        sizes = [np.median(areas[subsets[name]]) for name in scheme.names(NATIVE.size_bins)]
        assert sizes == sorted(sizes)
    titles = {name: size_title(name, NATIVE.size_bins) for name in ("all", "q2", "q4", "large", "d<8")}
    assert titles["all"] == titles["q4"] == "All defects"
    assert titles["q2"] == "The smallest 50 % of the defects, by area"
    assert titles["large"] == "The largest quarter of the defects of each category, by area"
    assert "equivalent diameter" in titles["d<8"]
