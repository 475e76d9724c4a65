"""The bootstrap against a naive one that resamples whole images, and against what must hold for any interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hrbench
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.evidence.histograms import SortedKeys, next_key, ranked
from hrbench.imaging import Region
from hrbench.metrics import bootstrap, compute, weighted
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.segmentation import MATCHED
from hrbench.protocol import Bootstrap, Curve

NATIVE = hrbench.load_protocol("native")
THRESHOLD = 1.5


def case(seed=0, good=12, bad=14, size=40, lift=1.0, levels=None, decisions=False, offset=0.0):
    """Maps and masks of images with one to three square defects; a `lift` makes a stronger method."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(good + bad):
        mask = np.zeros((size, size), bool)
        scores = rng.normal(0.1 * rng.normal(), 1, mask.shape)
        if index >= good:
            effect = lift + 0.5 * rng.normal()
            for _ in range(rng.integers(1, 4)):
                side = int(np.exp(rng.uniform(np.log(2), np.log(14))))
                y, x = rng.integers(0, size - side, 2)
                mask[y : y + side, x : x + side] = True
                scores[y : y + side, x : x + side] += effect + 0.3 * np.log(side) - 0.5
        scores = np.round(scores * levels) / levels if levels else scores
        images.append((scores.astype(np.float32) + np.float32(offset), mask, scores > 2 if decisions else None))
    return images


def rules(draws=1000, seed=0, level=0.95, protocol=NATIVE):
    return replace(protocol, bootstrap=Bootstrap(draws, level, seed))


def halves(mask):
    """Return regions that overlap: all of a mask, of which half is enough, and all of its upper half."""
    upper = mask & (np.cumsum(mask).reshape(mask.shape) <= np.ceil(mask.sum() / 2))
    whole = Region(mask, int(np.ceil(mask.sum() / 2)))
    return [whole, Region(upper, int(upper.sum()))] if mask.any() else []


def collect(images, exact=False, groups=None, regions=False):
    collector = EvidenceCollector(EvidenceSpec("top:0.01", exact=exact))
    for index, (scores, mask, decision) in enumerate(images):
        collector.update(
            f"{index:04d}",
            scores,
            mask,
            defect_type=("logical_anomalies", "structural_anomalies")[index % 2],
            decision=decision,
            group=groups[index] if groups else "",
            regions=halves(mask) if regions else None,
        )
    return collector.result()


def of_all_images(frame):
    """Tell rows whose intervals need nothing but many images."""
    return frame["metric"].map(lambda key: METRICS[key].carriers == "images")


def resample(evidence: Evidence, weights) -> Evidence:
    """Copy each image as often as it is drawn, under a new name: what a naive bootstrap does."""
    parts = []
    for row, times in enumerate(np.asarray(weights, dtype=int)):
        name = evidence.images["id"].iloc[row]
        kept = (evidence.components["image"] == name).to_numpy()
        pixels = np.repeat(kept, evidence.components["area"])
        regions = evidence.regions and evidence.regions.of_images({name})
        for copy in range(times):
            new = f"{name}-{copy}"
            parts.append(
                replace(
                    evidence,
                    images=evidence.images.iloc[[row]].assign(id=new),
                    components=evidence.components[kept].assign(image=new),
                    defect_scores=evidence.defect_scores[pixels],
                    normals=[evidence.normals[row]],
                    regions=regions and replace(regions, table=regions.table.assign(image=new)),
                )
            )
    return Evidence.merge(parts)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("exact", [True, False])
def test_weights_of_one_give_the_metrics_themselves(levels, exact):
    evidence = collect(case(levels=levels, decisions=True), exact, regions=True)
    expected = compute(evidence, NATIVE, threshold=THRESHOLD)
    result = bootstrap.replicates(evidence, rules(2), threshold=THRESHOLD)
    pd.testing.assert_frame_equal(result.keys, expected[["metric", "subset", "fpr_limit"]])
    error = np.abs(result.estimate - expected["value"].to_numpy())
    assert np.array_equal(np.isnan(result.estimate), expected["value"].isna())
    assert np.nanmax(error) < (2e-5 if levels else 4e-4)  # few distinct scores: every one is a bin
    counted = expected["metric"].str.contains("^image_|^iou$|^miou$|^miou_all$|^f1$|^fpr$|_decision")
    assert np.nanmax(error[counted]) < 1e-12


@pytest.mark.parametrize("levels", [None, 2])
def test_replicates_equal_a_naive_bootstrap(levels, monkeypatch):
    evidence = collect(case(3, levels=levels, decisions=True), exact=True, regions=True)
    images = evidence.images
    draws = 4
    weights = bootstrap.image_weights(images["id"], images["label"], Bootstrap(draws, seed=5))
    result = bootstrap.replicates(evidence, rules(draws, 5), threshold=THRESHOLD)
    areas = evidence.components["area"].to_numpy()
    edges = np.quantile(areas, NATIVE.size_bins.quantiles)
    monkeypatch.setattr("hrbench.metrics.sizes.quartile_edges", lambda *_: edges)  # those of the full sample
    for draw in range(draws):
        copied = resample(evidence, weights[draw])
        assert len(copied.images) == len(images)
        expected = compute(copied, NATIVE, threshold=THRESHOLD)["value"].to_numpy()
        assert np.array_equal(np.isnan(result.values[draw]), np.isnan(expected))
        tolerance = 2e-5 if levels else 1e-3
        assert np.nanmax(np.abs(result.values[draw] - expected)) < tolerance


def test_coarse_bins_are_fine_enough_in_the_tail():
    images = [(m, k, None) for m, k, _ in case(1, good=20, bad=20, size=160, lift=2.0)]  # 1 Mpx
    evidence = collect(images, regions=True)
    exact = compute(evidence, NATIVE, threshold=THRESHOLD)
    result = bootstrap.replicates(evidence, rules(2), threshold=THRESHOLD)
    error = np.abs(result.estimate - exact["value"]) - exact["error_bound"]
    assert error.max() < 5e-4  # oracle thresholds; the others are a tenth of that
    narrow = exact["fpr_limit"] == 0.01
    assert error[narrow].max() < 1e-4


@given(
    seed=st.integers(0, 10**6),
    good=st.integers(0, 9),
    bad=st.integers(1, 9),
    grouped=st.booleans(),
)
def test_weights_keep_the_number_of_each_label(seed, good, bad, grouped):
    labels = np.repeat([0, 1], [good, bad])
    ids = [f"{index}" for index in range(good + bad)]
    groups = [f"{label}{index % 3}" for index, label in enumerate(labels)] if grouped else None
    weights = bootstrap.image_weights(ids, labels, Bootstrap(7, seed=seed), groups)
    assert weights.shape == (7, good + bad)
    assert (weights == np.round(weights)).all()
    if grouped:
        for name in set(groups):
            members = weights[:, [group == name for group in groups]]
            assert (members == members[:, :1]).all()
    else:
        assert (weights[:, labels == 0].sum(axis=1) == good).all()
        assert (weights[:, labels == 1].sum(axis=1) == bad).all()
    assert np.array_equal(weights, bootstrap.image_weights(ids, labels, Bootstrap(7, seed=seed), groups))
    if bad > 3 and not grouped:
        assert not np.array_equal(weights, bootstrap.image_weights(ids, labels, Bootstrap(7, seed=seed + 1)))


def test_weights_differ_between_sets_of_images():
    first, second = (
        bootstrap.image_weights([f"{name}{i}" for i in range(20)], np.ones(20), Bootstrap()) for name in "ab"
    )
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_same_seed_same_bits():
    evidence = collect(case())
    first, second, other = (bootstrap.replicates(evidence, rules(50, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.values, second.values, equal_nan=True)
    assert not np.array_equal(first.values, other.values, equal_nan=True)


def test_an_increasing_transform_of_the_scores_changes_nothing():
    images = case(2, levels=3)
    stretched = [(np.exp(m), k, None) for m, k, _ in images]
    first, second = (bootstrap.replicates(collect(i, True), rules(20)) for i in (images, stretched))
    ranked = ~first.keys["metric"].str.startswith("image_")  # those are means of scores here
    assert np.allclose(first.values[:, ranked], second.values[:, ranked], atol=1e-12, equal_nan=True)


def test_intervals_hold_the_value_and_grow_with_the_level():
    evidence = collect(case(4), regions=True)
    expected = compute(evidence, NATIVE, threshold=THRESHOLD)
    wide, narrow = (
        bootstrap.intervals(evidence, rules(300, level=level), threshold=THRESHOLD) for level in (0.99, 0.8)
    )
    inside = narrow["metric"].map(
        lambda key: METRICS[key].at is not MATCHED and not key.startswith(("called", "alarms"))
    )
    known = narrow["ci_low"].notna() & inside  # those others may be shares of 0 or 1
    assert known[(expected["metric"] == "aupro") & (expected["subset"] == "all")].all()
    assert (wide["ci_low"] < narrow["ci_low"])[known].all()
    assert (wide["ci_high"] > narrow["ci_high"])[known].all()
    assert ((narrow["ci_low"] < expected["value"]) & (expected["value"] < narrow["ci_high"]))[known].all()
    assert ((wide["ci_low"] > 0) & (wide["ci_high"] < 1))[known].all()


def test_too_few_images_or_components_have_no_interval():
    evidence = collect(case(5, bad=9))
    frame = bootstrap.intervals(evidence, rules(50), threshold=THRESHOLD)
    assert frame.loc[~of_all_images(frame), "ci_low"].isna().all()
    assert frame.loc[of_all_images(frame), "ci_low"].notna().all()
    frame = bootstrap.intervals(collect(case(5, bad=14)), rules(50), threshold=THRESHOLD)
    bins = frame[(frame["metric"] == "aupro") & (frame["fpr_limit"] == 0.05)].set_index("subset")["ci_low"]
    assert bins[["all", "q4"]].notna().all()
    assert np.isnan(bins["d>=128"])
    few_good = bootstrap.intervals(collect(case(5, good=4)), rules(50))
    assert few_good.loc[few_good["metric"] == "image_auroc", "ci_low"].isna().all()


def test_groups_count_as_one():
    groups = [f"part {index % 4}" if index >= 12 else "" for index in range(32)]
    frame = bootstrap.intervals(collect(case(6, bad=20), groups=groups), rules(50))
    assert frame.loc[frame["metric"] == "aupro", "ci_low"].isna().all()


def test_copies_of_an_image_in_its_group_tell_nothing_new():
    """Every image twice, its two in a group: the same values, replicates and units as each once."""
    images = case(9)
    once = bootstrap.replicates(collect(images, groups=[f"{i:02d}" for i in range(26)]), rules(30))
    twice = collect([image for image in images for _ in range(2)], groups=[f"{i // 2:02d}" for i in range(52)])
    weights = bootstrap.image_weights(twice.images["id"], twice.images["label"], rules(30).bootstrap, twice.groups)
    assert (weights[:, ::2] == weights[:, 1::2]).all()
    found = bootstrap.replicates(twice, rules(30))
    assert np.allclose(found.estimate, once.estimate, atol=1e-12, equal_nan=True)
    assert (found.units == once.units).all()
    alone = bootstrap.replicates(collect(images), rules(30))
    in_groups = once.keys["metric"] == "group_auroc"
    assert in_groups.sum() == 1
    assert (once.units[~in_groups] == alone.units).all()
    assert once.sample != found.sample


def test_a_group_of_good_and_defective_images_counts_for_both_labels():
    """A place over time, good at first: what rests on both labels has as many units as there are places."""
    result = bootstrap.replicates(collect(case(10), groups=[f"place {i % 12}" for i in range(26)]), rules(50))
    assert result.units[result.row("image_auroc")] == 12
    assert result.units[result.row("pixel_auroc")] == 12
    assert result.intervals()["ci_low"].notna()[result.row("image_auroc")]


def test_groups_are_those_of_the_evidence_or_none():
    images = case(good=1, bad=2)
    assert collect(images).groups is None
    names = collect(images, groups=["0001", "", "0001"]).groups
    assert names[0] == names[2] != names[1]  # an image on its own is not in a group of its name


@pytest.mark.parametrize(("good", "bad"), [(0, 1), (1, 1), (0, 12), (12, 1)])
def test_degenerate_samples_are_no_error(good, bad):
    evidence = collect(case(7, good=good, bad=bad))
    result = bootstrap.replicates(evidence, rules(20))
    frame = result.intervals()
    assert len(frame) == len(compute(evidence, NATIVE))
    without_threshold = frame["metric"].isin(["iou", "miou", "miou_all", "f1", "fpr"])
    assert frame.loc[without_threshold, "ci_low"].isna().all()
    if bad >= 10:
        assert frame.loc[frame["metric"] == "pixel_ap", "ci_low"].notna().all()
    else:
        assert frame.loc[~of_all_images(frame), "ci_low"].isna().all()
    if not good:
        assert np.isnan(result.estimate[result.row("image_auroc")])


def test_a_perfect_or_constant_map_has_no_spread_and_no_interval():
    images = case(8)
    perfect = collect([(k.astype(np.float32), k, None) for _, k, _ in images])
    result = bootstrap.replicates(perfect, rules(30))
    for metric in ("pixel_auroc", "pixel_ap", "iou_oracle", "miou_oracle", "image_auroc"):
        assert (result.values[:, result.row(metric)] == 1).all()
        assert np.isnan(result.intervals().loc[result.row(metric), "ci_low"])
    constant = collect([(np.zeros(k.shape), k, None) for _, k, _ in images])
    result = bootstrap.replicates(constant, rules(30))
    assert np.allclose(result.values[:, result.row("pixel_auroc")], 0.5)
    assert np.allclose(result.values[:, result.row("aupro", fpr_limit=0.05)], 0.025)
    assert result.intervals()["ci_low"].isna()[result.row("pixel_auroc")]


def test_sampled_curves_have_no_intervals():
    protocol = replace(NATIVE, curve=Curve("equal-rank", 99))
    frame = bootstrap.intervals(collect(case()), rules(20, protocol=protocol)).set_index("metric")["ci_low"]
    assert frame[["aupro", "rho", "rho_disjoint"]].isna().all()
    assert frame[["pixel_ap"]].notna().all()


def test_without_defects_there_are_replicates_of_false_alarms_alone():
    images = [(m, np.zeros_like(k), None) for m, k, _ in case(good=12, bad=0)]
    found = bootstrap.replicates(collect(images), NATIVE)
    assert (
        {"alarms_matched", "fpr_matched"}
        <= set(found.keys["metric"])
        <= {"alarms", "fpr", "alarms_matched", "fpr_matched"}
    )


def test_paired_difference_is_shorter_than_an_unpaired_one():
    images = case(9, bad=20)
    better = [(m + np.float32(0.4) * k, k, None) for m, k, _ in images]
    first, second = (bootstrap.replicates(collect(i), rules(200), threshold=THRESHOLD) for i in (better, images))
    table = bootstrap.paired_difference(first, second).set_index(
        ["metric", "subset", first.keys["fpr_limit"].fillna(1)]
    )
    row = table.loc[("aupro", "all", 0.05)]
    index = first.row("aupro", fpr_limit=0.05)
    assert row["difference"] == first.estimate[index] - second.estimate[index]
    assert 0 < row["ci_low"] < row["difference"] < row["ci_high"]
    assert row["share_better"] == 1
    unpaired = np.hypot(first.values[:, index].std(), second.values[:, index].std()) * 2 * 1.96
    assert row["ci_high"] - row["ci_low"] < 0.7 * unpaired
    swapped = bootstrap.paired_difference(second, first)
    assert np.allclose(swapped["share_better"], 1 - table["share_better"], equal_nan=True)
    assert np.allclose(swapped["ci_low"], -table["ci_high"], equal_nan=True)
    same = bootstrap.paired_difference(first, first)
    assert (same["difference"].dropna() == 0).all()
    assert (same["share_better"].dropna() == 0.5).all()


def test_lower_false_positive_rate_is_better():
    images = case(9)
    louder = [(m + np.float32(0.3), k, None) for m, k, _ in images]
    first, second = (bootstrap.replicates(collect(i), rules(50), threshold=THRESHOLD) for i in (images, louder))
    table = bootstrap.paired_difference(first, second).set_index("metric")
    assert table.loc["fpr", "difference"] < 0
    assert table.loc["fpr", "share_better"] == 1


@pytest.mark.parametrize("change", ["seed", "draws", "images"])
def test_different_samples_cannot_be_paired(change):
    images = case(10)
    first = bootstrap.replicates(collect(images), rules(20))
    other = {"seed": rules(20, 1), "draws": rules(21), "images": rules(20)}[change]
    second = bootstrap.replicates(collect(images[1:] if change == "images" else images), other)
    with pytest.raises(hrbench.HrbenchError, match="same images only"):
        bootstrap.paired_difference(first, second)


def test_ranks_over_categories():
    def method(lift, noise):
        parts = []
        for category in range(2):
            images = case(20 + category, bad=16, lift=lift)
            rng = np.random.default_rng(noise)
            images = [
                (m + np.float32(0.3) * rng.normal(size=m.shape).astype(np.float32), k, None) for m, k, _ in images
            ]
            parts.append(bootstrap.replicates(collect(images), rules(100)))
        return parts

    runs = {"poor": method(0.3, 1), "twin a": method(1.0, 2), "twin b": method(1.0, 3), "best": method(2.5, 4)}
    averaged = {name: bootstrap.average(parts) for name, parts in runs.items()}
    index = averaged["best"].row("aupro", fpr_limit=0.05)
    by_hand = (runs["best"][0].values[:, index] + runs["best"][1].values[:, index]) / 2
    assert np.allclose(averaged["best"].values[:, index], by_hand)
    table = bootstrap.rank_intervals(averaged, "aupro", fpr_limit=0.05).set_index("method")
    assert table.index[0] == "best"
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table.loc["best", ["rank_low", "rank_high", "share_first"]].tolist() == [1, 1, 1]
    assert table.loc["poor", ["rank_low", "rank_high"]].tolist() == [4, 4]
    assert table.loc["twin a", ["rank_low", "rank_high"]].tolist() == [2, 3]
    assert ((table["ci_low"] < table["value"]) & (table["value"] < table["ci_high"])).all()
    with pytest.raises(hrbench.HrbenchError, match="no such row"):
        bootstrap.rank_intervals(averaged, "aupro")


def test_rows_of_replicates_survive_the_disk(tmp_path):
    whole = bootstrap.replicates(collect(case(11)), rules(20))
    rows = [whole.row("image_auroc"), whole.row("aupro", "tiny", 0.05)]
    whole.only(rows).table().to_parquet(tmp_path / "table.parquet")
    read = bootstrap.Replicates.of_table(pd.read_parquet(tmp_path / "table.parquet"))
    assert np.array_equal(read.values, whole.values[:, rows], equal_nan=True)
    for name in ("estimate", "units", "components"):
        assert np.array_equal(getattr(read, name), getattr(whole, name)[rows], equal_nan=True)
    assert read.keys.equals(whole.keys.iloc[rows].reset_index(drop=True))
    assert read.sample == whole.sample
    chosen = whole.only([number in rows for number in range(len(whole.keys))])
    assert chosen.keys["metric"].tolist() == [whole.keys["metric"][row] for row in sorted(rows)]
    assert read.row("aupro", "tiny", 0.05) == 1


def test_seeds_of_one_category_stay_paired():
    images = case(10)
    first, second, third = (bootstrap.replicates(collect(images), rules(20)) for _ in range(3))
    assert bootstrap.average([first, second]).sample == bootstrap.average([third]).sample


def test_average_leaves_out_categories_without_the_row():
    whole = bootstrap.replicates(collect(case(11)), rules(20))
    index = whole.row("image_auroc")
    without = bootstrap.replicates(collect(case(12, good=0)), rules(20))
    mean = bootstrap.average([whole, without])
    assert np.array_equal(mean.values[:, index], whole.values[:, index])
    assert mean.units[index] == whole.units[index]
    assert np.isnan(mean.estimate[mean.row("aupro", "d>=128", 0.05)])


def test_interval_constructions_in_closed_form():
    rng = np.random.default_rng(0)
    values = 0.5 + 0.01 * rng.normal(size=200_000)
    low, high = bootstrap.logit_interval(values, 0.5, 10**6)
    assert (low, high) == (pytest.approx(0.5 - 0.0196, abs=2e-4), pytest.approx(0.5 + 0.0196, abs=2e-4))
    low, high = bootstrap.expanded_percentiles(values, 11)  # t of 10 degrees: 2.228, times sqrt(1.1)
    assert (high - low) / 2 == pytest.approx(0.02337, rel=0.02)
    infinite = np.concatenate([values, np.full(20_000, np.inf)])
    low, high = bootstrap.expanded_percentiles(infinite, 100)
    assert low < 0.5 < high == np.inf
    near = bootstrap.logit_interval(0.98 + 0.01 * rng.normal(size=999), 0.98, 30)
    assert 0.98 - near[0] > near[1] - 0.98 > 0
    assert near[1] < 1
    assert np.isnan(bootstrap.logit_interval(np.ones(50), 1.0, 30)).all()
    with_gaps = np.where(np.arange(values.size) % 3 == 0, np.nan, values)
    assert np.isfinite(bootstrap.logit_interval(with_gaps, 0.5, 30)).all()


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([2, 10, None]), offset=st.sampled_from([0.0, 100.0]))
def test_any_weights_give_values_in_range(seed, levels, offset):
    evidence = collect(case(seed, good=3, bad=4, size=20, levels=levels, offset=offset))
    result = bootstrap.replicates(evidence, rules(10), threshold=THRESHOLD + offset)
    known = result.values[~np.isnan(result.values)]
    assert ((known >= -1e-12) & (known <= 1 + 1e-12)).all()
    assert np.abs(result.estimate - compute(evidence, NATIVE, threshold=THRESHOLD + offset)["value"]).max() < 0.05


@pytest.mark.parametrize("decimals", [None, 1, 3])
def test_exact_scores_are_ranked_without_pooling_them(decimals: int | None) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=size).astype(np.float32) for size in (1, 5000, 3001)]
    parts = [SortedKeys.of(part if decimals is None else part.round(decimals)) for part in maps]
    pooled = parts[0].pooled(parts[1:])
    ranks = rng.integers(0, pooled.total, 100)
    assert np.array_equal(ranked(parts, ranks), pooled.ranked(ranks))
    assert np.array_equal(weighted._edges(parts), weighted._edges([pooled.histogram()]))
    distinct = np.unique(pooled.keys)
    assert np.array_equal(next_key(parts, distinct[:-1]), distinct[1:])


def test_exact_intervals_keep_no_copy_of_all_scores() -> None:
    evidence = collect(case(), exact=True)
    bootstrap.replicates(evidence, rules(draws=2))
    assert "normal" not in evidence.__dict__
