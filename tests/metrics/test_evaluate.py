"""The public `evaluate` against brute force, closed forms and what must not change a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from metrics import oracle
from sklearn.metrics import average_precision_score, roc_auc_score

import hrbench
from hrbench.evidence import Evidence
from hrbench.metrics.catalogue import METRICS
from hrbench.metrics.measurement import measure
from hrbench.metrics.segmentation import MATCHED
from hrbench.protocol import Bootstrap, load_protocol

LIMITS = (0.30, 0.10, 0.05, 0.01)


def random_case(seed, images=5, levels=None, dtype=np.float32):
    """Maps with many ties (`levels` distinct scores) and masks with several components, sizes differing."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(images):
        size = rng.integers(8, 24, 2)
        mask = np.zeros(size, bool)
        for _ in range(index % 3 * 2):
            y, x = rng.integers(0, size)
            mask[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = True
        scores = rng.normal(size=size) + 1.5 * mask
        if levels:
            scores = np.round(scores * levels / 6) / levels * 6
        maps.append(scores.astype(dtype))
        masks.append(mask)
    masks[1][2, 2] = True
    return maps, masks


def rows(frame, metric, subset="all"):
    found = frame[(frame["metric"] == metric) & (frame["subset"] == subset)]
    return dict(zip(found["fpr_limit"], zip(found["value"], found["error_bound"], strict=True), strict=True))


@pytest.mark.parametrize("levels", [3, 12, 60, None])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_exact_aupro_equals_brute_force(levels, dtype):
    maps, masks = random_case(levels or 1, levels=levels, dtype=dtype)
    result = hrbench.evaluate(maps, masks, exact=True)
    areas = result.evidence.components["area"].to_numpy()
    edges = [*np.quantile(areas, [0.25, 0.5, 0.75]), np.inf]
    oracle_areas = np.array([part.sum() for _, part in oracle.components(masks)])
    cases = {"all": oracle_areas > 0}
    cases |= {f"q{i + 1}": oracle_areas <= edge for i, edge in enumerate(edges)}
    cases |= {"medium": (oracle_areas > edges[1]) & (oracle_areas <= edges[2])}
    for subset, chosen in cases.items():
        for limit, (value, bound) in rows(result.values, "aupro", subset).items():
            assert value == pytest.approx(oracle.aupro(maps, masks, limit, chosen), abs=1e-9)
            assert bound == 0


@given(seed=st.integers(0, 10**6), levels=st.sampled_from([5, 40, None]), scale=st.sampled_from([1, 1e-3, 50]))
def test_one_pass_holds_the_exact_value_within_its_bound(seed, levels, scale):
    maps, masks = random_case(seed, levels=levels)
    maps = [1000 + m * scale for m in maps]  # few of the kept 22 bits vary: wide bins
    exact = hrbench.evaluate(maps, masks, exact=True, threshold=1000.5).values
    binned = hrbench.evaluate(maps, masks, threshold=1000.5).values
    assert binned[["metric", "subset", "n"]].equals(exact[["metric", "subset", "n"]])
    at_edges = binned["metric"].map(lambda key: METRICS[key].at is MATCHED)  # of other bins, other thresholds
    difference = (binned["value"] - exact["value"]).abs()[~at_edges]
    slack = (binned["error_bound"] + exact["error_bound"])[~at_edges] + 1e-12
    assert (difference.isna() | (difference <= slack)).all()


def test_bins_are_wide_in_the_test_above():
    maps, masks = random_case(3)
    frame = hrbench.evaluate([1000 + 1e-3 * m.astype(np.float64) for m in maps], masks).values
    assert frame.loc[frame["metric"] == "aupro", "error_bound"].max() > 0.01


@pytest.mark.parametrize("levels", [4, 30, None])
@pytest.mark.parametrize("exact", [True, False])
def test_other_metrics_equal_independent_code(levels, exact):
    maps, masks = random_case(7, images=8, levels=levels)
    result = hrbench.evaluate(maps, masks, exact=exact)
    scores = np.concatenate([m.ravel() for m in maps])
    truth = np.concatenate([k.ravel() for k in masks])
    image_scores = [m.max() for m in maps]
    labels = [k.any() for k in masks]
    expected = {
        "pixel_auroc": roc_auc_score(truth, scores),
        "pixel_ap": average_precision_score(truth, scores),
        "image_auroc": roc_auc_score(labels, image_scores),
        "image_ap": average_precision_score(labels, image_scores),
        "iou_oracle": oracle.best_iou(maps, masks),
        "miou_oracle": oracle.best_mean_iou(maps, masks),
    }
    for metric, value in expected.items():
        ((found, bound),) = rows(result.values, metric).values()
        tolerance = 1e-5 if metric == "miou_oracle" else 1e-9
        assert abs(found - value) <= bound + tolerance, metric
        assert bound < (2e-5 if exact else 0.1)


def test_threshold_metrics_by_hand():
    mask = np.zeros((10, 10), bool)
    mask[:2, :5] = True
    scores = np.zeros((10, 10), np.float32)
    scores[:2, :4] = 2  # 8 of 10 defect pixels
    scores[9, :4] = 2  # 4 false
    result = hrbench.evaluate([scores, np.zeros((10, 10))], [mask, None], threshold=1.0)
    assert result.value("iou") == pytest.approx(8 / 14)
    assert result.value("miou") == pytest.approx(8 / 14)
    assert result.value("miou_all") == pytest.approx((8 / 14 + 1) / 2)
    assert result.value("f1") == pytest.approx(16 / 22)
    assert result.value("fpr") == pytest.approx(4 / 190)


def test_mean_iou_of_all_images_rewards_silence_on_good_ones():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    one_false = np.zeros((8, 8))
    one_false[5, 5] = 1
    silent, perfect = np.zeros((8, 8)), mask.astype(float)
    assert hrbench.evaluate([perfect, silent, silent], [mask, None, None], threshold=1.0).value("miou_all") == 1
    assert hrbench.evaluate([perfect, one_false], [mask, None], threshold=1.0).value("miou_all") == 0.5
    assert hrbench.evaluate([perfect, one_false], [mask, None], threshold=1.0).value("miou") == 1


def test_recall_by_size_by_hand():
    maps, masks = random_case(11, images=9)
    result = hrbench.evaluate(maps, masks, threshold=1.25)
    parts = oracle.components(masks)
    areas = np.array([part.sum() for _, part in parts])
    predicted = np.array([np.sum(maps[index][part] >= 1.25) for index, part in parts])
    hit = predicted >= np.maximum(1, 0.1 * areas)
    edges = [*np.quantile(areas, [0.25, 0.5, 0.75]), np.inf]
    expected = {"all": hit.mean()} | {f"q{i + 1}": hit[areas <= edge].mean() for i, edge in enumerate(edges)}
    assert 0 < expected["all"] < 1
    for subset, value in expected.items():
        assert result.value("recall", subset) == pytest.approx(value, abs=1e-12)
    assert np.allclose(sorted(result.components["overlap"]), sorted(predicted / areas))


@pytest.mark.parametrize("exact", [True, False])
def test_limit_equal_to_a_reached_rate(exact):
    from hrbench.evidence import EvidenceCollector, EvidenceSpec

    maps, masks = random_case(13, levels=6)
    points = oracle.pro_points(maps, masks)
    limits = tuple(float(x) for x in points[2:5, 0])
    collector = EvidenceCollector(EvidenceSpec(exact=exact))
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        collector.update(f"{index}", scores, mask)
    protocol = replace(hrbench.load_protocol("native"), fpr_limits=limits, headline_fpr=limits[0])
    found = rows(hrbench.metrics.compute(collector.result(), protocol), "aupro")
    for limit in limits:
        assert abs(found[limit][0] - oracle.area_up_to(points, limit)) <= found[limit][1] + 1e-12


def test_threshold_comes_from_normal_maps_only():
    maps, masks = random_case(5)
    rng = np.random.default_rng(0)
    normals = [rng.normal(size=(50, 50)).astype(np.float32) for _ in range(4)]
    result = hrbench.evaluate(maps, masks, normal_maps=normals, protocol="native@1")
    threshold = hrbench.metrics.automatic_threshold(result.evidence, result.protocol.threshold)
    pooled = np.concatenate([m.ravel() for m in normals])
    assert np.mean(pooled >= threshold) <= 0.001
    assert np.mean(pooled >= threshold * (1 - 2**-11)) >= 0.0009
    predicted = [m >= threshold for m in maps]
    hits = sum(np.sum(c & k) for c, k in zip(predicted, masks, strict=True))
    union = sum(np.sum(c | k) for c, k in zip(predicted, masks, strict=True))
    assert result.value("iou") == pytest.approx(hits / union, abs=1e-12)
    assert np.isnan(hrbench.evaluate(maps, masks).value("iou"))


def test_sigma_rule():
    maps, masks = random_case(5)
    normals = [np.full((8, 8), 1.0), np.full((8, 8), 3.0)]
    rules = hrbench.load_protocol("native")
    rules = replace(rules, threshold=replace(rules.threshold, rule="mean+k*sigma", k=3.0))
    result = hrbench.evaluate(maps, masks, normal_maps=normals, protocol=rules)
    assert hrbench.metrics.automatic_threshold(result.evidence, rules.threshold) == pytest.approx(5.0, rel=2**-12)


@pytest.mark.parametrize("exact", [True, False])
def test_closed_forms(exact):
    _, masks = random_case(2)
    perfect = hrbench.evaluate([k.astype(float) for k in masks], masks, exact=exact).values
    ranked = perfect["metric"].isin(["aupro", "rho", "pixel_auroc", "pixel_ap", "iou_oracle", "miou_oracle"])
    assert perfect.loc[ranked & (perfect["n"] > 0), "value"].dropna().eq(1).all()
    inverted = hrbench.evaluate([1.0 - k for k in masks], masks, exact=exact)
    assert inverted.value("pixel_auroc") == 0
    constant = hrbench.evaluate([np.full(k.shape, 7.0) for k in masks], masks, exact=exact)
    assert constant.value("pixel_auroc") == 0.5
    for limit in LIMITS:
        assert constant.value("aupro", fpr_limit=limit) == pytest.approx(limit / 2, abs=1e-12)


@pytest.mark.parametrize(
    "transform",
    [np.exp, lambda x: x * 5 + 20, lambda x: np.arctan(x), lambda x: x - 1000],
    ids=["exp", "affine", "arctan", "shift"],
)
def test_increasing_transforms_change_nothing_beyond_the_bound(transform):
    maps, masks = random_case(11)
    maps = [m.astype(np.float64) for m in maps]
    before = hrbench.evaluate(maps, masks).values
    after = hrbench.evaluate([transform(m) for m in maps], masks).values
    rank = ~before["metric"].isin(["iou", "miou", "miou_all", "f1", "fpr"])
    difference = (before["value"] - after["value"]).abs()[rank]
    slack = (before["error_bound"] + after["error_bound"])[rank] + 2e-5
    assert (difference.isna() | (difference <= slack)).all()


def test_float16_maps_are_exact_in_one_pass():
    maps, masks = random_case(13, dtype=np.float16)
    exact = hrbench.evaluate(maps, masks, exact=True).values
    binned = hrbench.evaluate(maps, masks).values
    same = binned["metric"] != "miou_oracle"
    assert np.array_equal(binned["value"][same], exact["value"][same], equal_nan=True)
    assert binned["error_bound"][same].dropna().eq(0).all()


def test_zero_signs_are_equal():
    mask = np.array([[True, False]])
    assert hrbench.evaluate([np.array([[-0.0, 0.0]])], [mask]).value("pixel_auroc") == 0.5


def test_long_scratch_is_one_component_and_touching_corners_join():
    mask = np.zeros((4, 3000), bool)
    mask[1] = True
    diagonal = np.eye(30, dtype=bool)
    result = hrbench.evaluate([np.zeros(mask.shape), np.zeros(diagonal.shape)], [mask, diagonal])
    assert result.components["area"].tolist() == [3000, 30]


def test_more_than_65535_components():
    mask = np.zeros((600, 600), bool)
    mask[::2, ::2] = True
    result = hrbench.evaluate([np.random.default_rng(0).random(mask.shape)], [mask])
    assert len(result.components) == 90_000


@pytest.mark.parametrize("piece", [1, 3, 7, 50])
def test_defects_that_are_taken_in_pieces_give_the_same(monkeypatch, piece):
    maps, masks = random_case(4)
    expected = hrbench.evaluate(maps, masks).values
    monkeypatch.setattr("hrbench.metrics.curves._PIECE", piece)  # some begin inside the last defect
    pd.testing.assert_frame_equal(hrbench.evaluate(maps, masks).values, expected, rtol=1e-12)


def test_size_subsets_of_the_published_scheme():
    sizes = [10, 20, 30, 40]
    masks = [np.pad(np.ones((1, size), bool), 2) for size in sizes]
    frame = hrbench.evaluate([m.astype(float) for m in masks], masks).values
    n = frame[(frame["metric"] == "aupro") & (frame["fpr_limit"] == 0.05)].set_index("subset")["n"]
    assert n[["q1", "q2", "q3", "q4"]].tolist() == [1, 2, 3, 4]
    assert n[["tiny", "small", "medium", "large"]].tolist() == [1, 1, 1, 1]


def test_equal_areas_share_a_quarter():
    masks = [np.pad(np.ones((1, size), bool), 2) for size in (10, 10, 10, 20)]
    frame = hrbench.evaluate([m.astype(float) for m in masks], masks).values
    n = frame[(frame["metric"] == "aupro") & (frame["fpr_limit"] == 0.05)].set_index("subset")["n"]
    assert n[["q1", "q2", "q3", "q4"]].tolist() == [3, 3, 3, 4]
    assert n[["tiny", "small", "medium", "large"]].tolist() == [3, 0, 0, 1]


def test_fixed_bins_of_equivalent_diameter():
    areas = np.array([1, 50, 51, 201, 202, 12867, 12868])  # a disc of 8 px has 50.3 px, one of 128 px 12868.0
    subsets = hrbench.metrics.size_subsets(areas, hrbench.load_protocol("native").size_bins)
    assert np.flatnonzero(subsets["d<8"]).tolist() == [0, 1]
    assert np.flatnonzero(subsets["d8-16"]).tolist() == [2, 3]
    assert np.flatnonzero(subsets["d16-32"]).tolist() == [4]
    assert np.flatnonzero(subsets["d64-128"]).tolist() == [5]
    assert np.flatnonzero(subsets["d>=128"]).tolist() == [6]


def test_mask_codings_and_borders():
    mask = np.zeros((9, 9))
    mask[0, :3] = 255
    mask[8, 8] = 2
    scores = np.random.default_rng(1).random((9, 9))
    coded = hrbench.evaluate([scores], [mask.astype(np.uint8)]).values
    plain = hrbench.evaluate([scores], [mask > 0]).values
    assert coded.equals(plain)


def test_image_scores_override_the_rule():
    maps, masks = random_case(3)
    scores = [float(k.any()) for k in masks]
    assert hrbench.evaluate(maps, masks, image_scores=scores).value("image_auroc") == 1.0


def test_groups_change_intervals_and_no_value():
    rng = np.random.default_rng(0)
    maps = [rng.random((9, 8)) for _ in range(4)]
    masks = [None, maps[1] > 0.8, maps[2] > 0.8, None]
    found, alone = hrbench.evaluate(maps, masks, groups=["a", 7, 7, None]), hrbench.evaluate(maps, masks)
    assert found.evidence.images["group"].tolist() == ["a", "7", "7", ""]
    in_groups = found.values["metric"] == "group_auroc"
    assert in_groups.sum() == 1
    assert found.values[~in_groups].reset_index(drop=True).equals(alone.values)
    with pytest.raises(hrbench.HrbenchError, match="groups end after 3 images"):
        hrbench.evaluate(maps, masks, groups=["a", "b", "b"])


def test_generators_are_read_once():
    maps, masks = random_case(3)
    listed = hrbench.evaluate(maps, masks).values
    assert hrbench.evaluate(iter(maps), (k for k in masks)).values.equals(listed)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        ([np.zeros((3, 4))], [np.ones((4, 3), bool)], r"shape \(3, 4\), expected \(4, 3\)"),
        ([np.full((3, 3), np.nan)], [np.eye(3)], "9 NaN or infinite"),
        ([np.full((3, 3), np.inf)], [np.eye(3)], "NaN or infinite"),
        ([np.full((3, 3), 1e300)], [np.eye(3)], "exceeds the range of float32"),
        ([np.zeros((3, 3, 3))], [None], r"expected \(H, W\)"),
        ([np.zeros((3, 3))], [np.zeros((3, 3, 3))], r"mask 0: shape \(3, 3, 3\)"),
        ([np.zeros((3, 3))], [np.ones((3, 3))], "no normal pixel"),
        ([np.zeros((3, 3))] * 2, [np.eye(3)], "masks end after 1"),
        ([], [], "no images"),
        ([np.array([["a"]])], [None], "expected real numbers"),
    ],
)
def test_bad_input_is_named(maps, masks, message):
    with pytest.raises(hrbench.HrbenchError, match=message):
        hrbench.evaluate(maps, masks)


def test_only_defective_images_leave_the_image_metrics_undefined():
    result = hrbench.evaluate([np.random.default_rng(0).random((9, 9))], [np.eye(9)])
    assert np.isnan(result.value("image_auroc"))
    assert 0 <= result.value("pixel_auroc") <= 1


def test_evidence_merges_in_any_order_and_survives_the_disk(tmp_path):
    maps, masks = random_case(17, images=9)
    whole = hrbench.evaluate(maps, masks).evidence
    from hrbench.evidence import EvidenceCollector, EvidenceSpec

    parts = []
    for chosen in ([4, 0, 8], [7, 1, 2], [3, 5, 6]):
        collector = EvidenceCollector(EvidenceSpec())
        for index in chosen:
            collector.update(f"{index:06d}", maps[index], masks[index])
        parts.append(collector.result())
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = Evidence.merge([parts[i] for i in order])
        merged.save(tmp_path / str(order[0]))
        loaded = Evidence.load(tmp_path / str(order[0]))
        for evidence in (merged, loaded):
            assert_same_bits(evidence, whole)
    first, second = (tmp_path / "0" / "images.parquet", tmp_path / "2" / "images.parquet")
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(hrbench.HrbenchError, match="occurs twice"):
        Evidence.merge([parts[0], parts[0]])


def test_exact_evidence_of_an_earlier_form_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    maps, masks = random_case(4, levels=20)
    evidence = hrbench.evaluate(maps, masks, exact=True).evidence
    evidence.save(tmp_path)
    table = pq.read_table(tmp_path / "images.parquet")
    histograms = [part.histogram() for part in evidence.normals]
    for name in ("keys", "counts"):
        column = pa.array([getattr(part, name) for part in histograms])
        table = table.drop([f"normal_{name}"]) if f"normal_{name}" in table.column_names else table
        table = table.append_column(f"normal_{name}", column)
    pq.write_table(table, tmp_path / "images.parquet")
    assert_same_bits(Evidence.load(tmp_path), evidence)


def test_curves_integrate_to_the_metrics():
    maps, masks = random_case(19, levels=20)
    result = hrbench.evaluate(maps, masks, exact=True)
    fpr, tpr = hrbench.metrics.roc_curve(result.evidence, points=10**6)
    assert np.trapezoid(tpr, fpr) == pytest.approx(result.value("pixel_auroc"), abs=1e-12)
    for subset in ("all", "q1", "large"):
        points = np.stack(hrbench.metrics.pro_curve(result.evidence, result.protocol, subset, 10**6), axis=1)
        assert oracle.area_up_to(points, 0.05) == pytest.approx(result.value("aupro", subset, 0.05), abs=1e-9)


def test_scoring_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, hrbench; hrbench.evaluate; import hrbench.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scores_that_only_float64_tells_apart_stay_within_the_bound():
    mask = np.array([[True, True, True, False, False, False]])
    scores = 1 - 1e-12 * np.array([[9.0, 8, 7, 3, 2, 1]])
    exact = hrbench.evaluate([scores], [mask], exact=True).values
    binned = hrbench.evaluate([scores], [mask]).values
    difference = (exact["value"] - binned["value"]).abs()
    assert (difference.isna() | (difference <= binned["error_bound"] + 1e-12)).all()
    assert exact.set_index("metric").loc["pixel_auroc", "value"].iloc[0] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_curves_of_any_precision_integrate_to_the_metrics(dtype):
    maps, masks = random_case(41, levels=30, dtype=dtype)
    result = hrbench.evaluate([m - 1 for m in maps], masks, exact=True)
    points = np.stack(hrbench.metrics.pro_curve(result.evidence, result.protocol, "all", 10**6), axis=1)
    assert (np.diff(points, axis=0) >= -1e-12).all()
    assert oracle.area_up_to(points, 0.3) == pytest.approx(result.value("aupro", "all", 0.3), abs=1e-9)


@pytest.mark.parametrize("threshold", [0.5, 0.50001, 0.7, 1.0, 1.5])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_threshold_is_counted_as_it_is(threshold, exact, dtype):
    rng = np.random.default_rng(0)
    scores = rng.choice([0.5, 0.6999, 0.7, 0.7001, 1.0], (20, 20)).astype(dtype)
    mask = rng.random((20, 20)) > 0.8
    result = hrbench.evaluate([scores], [mask], exact=exact, threshold=threshold)
    precision = np.float64 if exact and dtype == np.float64 else np.float32
    predicted = scores.astype(precision) >= precision(threshold)
    frame = result.values.set_index("metric")
    iou = np.sum(predicted & mask) / np.sum(predicted | mask)
    assert abs(frame.loc["iou", "value"] - iou) <= frame.loc["iou", "error_bound"] + 1e-12
    fpr = np.sum(predicted & ~mask) / np.sum(~mask)
    assert abs(frame.loc["fpr", "value"] - fpr) <= frame.loc["fpr", "error_bound"] + 1e-12
    if exact or dtype == np.float16:
        assert frame.loc["iou", "error_bound"] == 0


def test_tensors_and_lists_are_arrays_too():
    import torch

    mask = torch.zeros(8, 8)
    mask[2:4, 2:5] = 1
    scores = torch.rand(8, 8, requires_grad=True)
    plain = hrbench.evaluate([scores.detach().numpy()], [mask.numpy()]).values
    assert hrbench.evaluate([scores], [mask]).values.equals(plain)
    assert hrbench.evaluate([scores.tolist()], [mask.bool().tolist()]).value("pixel_auroc") >= 0
    assert hrbench.evaluate([scores.bfloat16()], [mask]).values["error_bound"].fillna(0).eq(0).all()
    for maps, masks, scored, message in (
        ([[[1, 2], [3]]], [None], None, "anomaly map 0: not an array"),
        ([scores], [[["0", "1"]]], None, "mask 0: of type"),
        ([scores], [mask], [None], "image score 0 is None"),
        ([np.zeros((0, 4))], [None], None, r"shape \(0, 4\)"),
    ):
        with pytest.raises(hrbench.HrbenchError, match=message):
            hrbench.evaluate(maps, masks, image_scores=scored)


@pytest.mark.parametrize("threshold", [float("nan"), "x", "1", [1], True, 10**400, 1j])
def test_a_threshold_that_is_no_number_is_refused(threshold):
    mask = np.eye(4, dtype=bool)
    with pytest.raises(hrbench.HrbenchError, match=r"threshold is .*, expected a finite number"):
        hrbench.evaluate([mask.astype("f4")], [mask], threshold=threshold)


@pytest.mark.parametrize("exact", [False, True])
def test_maps_that_no_float_can_tell_apart_are_refused(exact):
    mask = np.eye(4, dtype=bool)
    fine = np.finfo(np.longdouble)
    maps = [np.int64(1 << 60) + mask, np.uint64(1 << 63) + mask.astype(np.uint64)]
    if fine.eps < np.finfo(np.float64).eps:  # not on every platform
        maps.append(1 + fine.eps * mask)
    for scores in maps:
        with pytest.raises(hrbench.HrbenchError, match="numbers that float64 cannot tell apart"):
            hrbench.evaluate([scores], [mask], exact=exact)
    for kind in (np.int64, np.uint64, np.longdouble):  # where nothing is lost, the type does not matter
        assert hrbench.evaluate([(2**53 - 2 + mask.astype(kind)).astype(kind)], [mask], exact=True).value("aupro") == 1


@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_complex_maps_and_scores_are_refused(kind):
    mask = np.eye(4, dtype=bool)
    with pytest.raises(hrbench.HrbenchError, match=r"type complex.*, expected real numbers"):
        hrbench.evaluate([mask.astype(kind)], [mask])
    with pytest.raises(hrbench.HrbenchError, match=r"image score 0 is .*, expected a number"):
        hrbench.evaluate([mask.astype("f4")], [mask], image_scores=[kind(1j)])


def test_without_draws_there_are_no_intervals_and_nothing_else_is_lost():
    rules = replace(load_protocol("native"), bootstrap=Bootstrap(draws=0))
    mask = np.eye(8, dtype=bool)
    maps = [np.random.default_rng(seed).random((8, 8)) + mask * (seed % 2) for seed in range(8)]
    masks = [mask if seed % 2 else None for seed in range(8)]
    result = hrbench.evaluate(maps, masks, protocol=rules)
    table = measure(result.evidence, rules)
    assert np.isnan(table.records.query("metric == 'aupro'")["ci_low"]).all()
    assert table.replicates.empty
    assert {"metric", "subset", "fpr_limit", "values", "protocol"} <= set(table.replicates)
    assert "0 draws" not in str(result.summary())
    assert hrbench.compare(result, result).difference("aupro") == 0
