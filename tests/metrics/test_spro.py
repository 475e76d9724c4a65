"""sPRO against its definition, and against AUPRO where both are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics import oracle

import hrbench
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.imaging import Region
from hrbench.metrics import bootstrap, catalogue, compute
from hrbench.metrics.context import Context
from hrbench.metrics.spro import spro

NATIVE = replace(
    hrbench.load_protocol("native"), bootstrap=replace(hrbench.load_protocol("native").bootstrap, draws=20)
)
LIMITS = (0.3, 0.1, 0.05, 0.01, 1.0)
LOCO = {"L": "logical_anomalies", "S": "structural_anomalies", "": "good"}


def case(seed: int, kinds: str, levels: int | None = 2, size: int = 12, most: int = 4):
    """Maps, and regions that overlap, may be in pieces, and of which 1 px to all are enough."""
    rng = np.random.default_rng(seed)
    maps, regions = [], []
    for kind in kinds:
        scores = rng.normal(size=(size, size + 3))
        own = []
        for _ in range(0 if kind == "." else rng.integers(1, most)):
            mask = np.zeros(scores.shape, bool)
            for _ in range(rng.integers(1, 3)):
                top, left, height, width = rng.integers(0, 7), rng.integers(0, 7), *rng.integers(1, 6, 2)
                mask[top : top + height, left : left + width] = True
            scores[mask] += rng.normal(1)
            own.append((mask, int(rng.integers(1, mask.sum() + 1))))
        scores = np.round(scores * levels) / levels if levels else scores
        maps.append(scores.astype(np.float32))
        regions.append(own)
    return maps, regions, [kind.strip(".") for kind in kinds]


def collect(maps, regions, kinds, names=LOCO, exact=False) -> Evidence:
    collector = EvidenceCollector(EvidenceSpec(exact=exact))
    for index, (scores, own, kind) in enumerate(zip(maps, regions, kinds, strict=True)):
        mask = np.any([np.zeros(scores.shape, bool), *(mask for mask, _ in own)], axis=0)
        given_regions = [Region(mask, saturation, f"defect {n}") for n, (mask, saturation) in enumerate(own)]
        collector.update(f"{index:03d}", scores, mask, defect_type=names.get(kind, kind), regions=given_regions)
    return collector.result()


def rows(evidence: Evidence, protocol=NATIVE):
    context, table = Context(evidence, protocol), []
    for metric, key in catalogue.rows(context):
        if key.metric == "spro":
            found = metric.exact(context, key.subset, key.fpr_limit)
            table.append((*key[1:], found.value, found.bound, metric.n(context, key.subset)))
    columns = ["subset", "fpr_limit", "value", "error_bound", "n"]
    return pd.DataFrame(table, columns=columns).set_index(columns[:2])


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), kinds=st.text("LS.", min_size=1, max_size=5), exact=st.booleans())
def test_brute_force(seed, kinds, exact):
    kinds = f"{kinds}L"
    maps, regions, kinds = case(seed, kinds)
    found = rows(collect(maps, regions, kinds, exact=exact))
    subsets = {"all": kinds} | {name: name[0].upper() for name in ("logical", "structural") if name[0].upper() in kinds}
    assert list(dict.fromkeys(found.index.get_level_values("subset"))) == list(subsets)
    for subset, own in subsets.items():
        parts = [part for part in zip(maps, regions, kinds, strict=True) if not part[2] or part[2] in own]
        expected = oracle.spro(*zip(*parts, strict=True), LIMITS)
        for limit in LIMITS:
            assert found.loc[(subset, limit), "value"] == pytest.approx(expected[limit], abs=1e-9)
    assert (found["error_bound"] == 0).all()  # few levels: no bit is lost


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_kinds_of_other_names_are_one(seed):
    maps, regions, kinds = case(seed, "LS.")
    found = rows(collect(maps, regions, kinds, {"L": "scratch", "S": "structural_anomalies"}))
    expected = oracle.spro(maps, regions, ["any" if kind else "" for kind in kinds], LIMITS)
    assert found["value"].to_numpy() == pytest.approx([expected[limit] for limit in LIMITS], abs=1e-9)
    assert set(found.index.get_level_values("subset")) == {"all"}
    assert (found["n"] == sum(map(len, regions))).all()


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_the_true_value_lies_within_the_bound(seed):
    maps, regions, kinds = case(seed, "LS.", levels=None, size=9)
    maps = [100 + scores / 50 for scores in maps]  # bins of several scores
    found = rows(collect(maps, regions, kinds))
    assert 0 < found["error_bound"].max() < 0.5
    for limit, expected in oracle.spro(maps, regions, kinds, LIMITS).items():
        row = found.loc[("all", limit)]
        assert abs(row["value"] - expected) <= row["error_bound"] + 1e-12


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6))
def test_pro_where_all_of_every_component_must_be_found(seed):
    maps, regions, kinds = case(seed, "SS.S")
    masks = [
        np.any([np.zeros(m.shape, bool), *(k for k, _ in own)], axis=0) for m, own in zip(maps, regions, strict=True)
    ]
    parts = oracle.components(masks)
    whole = [[(part, part.sum()) for image, part in parts if image == index] for index in range(len(maps))]
    context = Context(collect(maps, whole, kinds), NATIVE)
    for limit in NATIVE.fpr_limits:
        expected = context.aupro[limit]["all"].value
        assert spro(context, "all", limit).value == pytest.approx(expected, abs=1e-12)
        assert spro(context, "structural", limit).value == pytest.approx(expected, abs=1e-12)


def test_what_is_enough_is_enough():
    """Half of each region is found before anything else: with half for its saturation that is all of it."""
    mask = np.zeros((10, 10), bool)
    mask[:4, :4] = True
    scores = np.zeros((10, 10), np.float32)
    scores[:2, :4] = 1
    found = rows(collect([scores], [[(mask, 8)]], ["S"]))
    assert (found["value"] == 1).all()
    assert rows(collect([scores], [[(mask, 16)]], ["S"])).loc[("all", 0.3), "value"] == pytest.approx(0.5 + 0.5 * 0.15)


def test_false_positives_in_images_of_another_kind_do_not_count():
    quiet, loud = np.zeros((2, 8, 8), np.float32)
    mask = np.zeros((8, 8), bool)
    mask[0, :4] = True
    quiet[mask], loud[4:] = 1, 2
    found = rows(collect([quiet, loud], [[(mask, 4)], [(mask, 4)]], ["S", "L"]))["value"]
    assert found["structural", 0.05] == 1
    assert found["logical", 0.05] < 0.1
    assert found["all", 0.05] == pytest.approx((found["structural", 0.05] + found["logical", 0.05]) / 2)


def test_a_kind_that_covers_its_images_wholly_is_undefined():
    mask, other = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    other[0] = True
    maps = [np.arange(16, dtype=np.float32).reshape(4, 4)] * 2
    evidence = collect(maps, [[(mask, 16)], [(other, 4)]], ["L", "S"])
    found = rows(evidence)["value"]
    assert found[["logical", "all"]].isna().all()
    assert found["structural"].notna().all()
    drawn = bootstrap.replicates(evidence, NATIVE)
    assert np.isnan(drawn.estimate[drawn.row("spro", "all", 0.05)])


def test_no_rows_without_regions_or_with_sampled_thresholds():
    maps, regions, kinds = case(0, "LS.")
    evidence = collect(maps, regions, kinds)
    assert len(rows(evidence)) == 3 * len(LIMITS)
    assert rows(replace(evidence, regions=None)).empty
    for name in ("rd4ad", "l2bt"):
        protocol = hrbench.load_protocol(name)
        assert rows(replace(evidence, spec=EvidenceSpec.of(protocol)), protocol).empty
    mvtec = hrbench.load_protocol("mvtec")
    assert set(rows(evidence, mvtec).index.get_level_values("fpr_limit")) == {0.3, 1.0}


def test_other_metrics_are_those_of_the_union():
    maps, regions, kinds = case(1, "LLSS..")
    evidence = collect(maps, regions, kinds)
    with_regions, without = (compute(each, NATIVE) for each in (evidence, replace(evidence, regions=None)))
    assert with_regions[with_regions["metric"] != "spro"].reset_index(drop=True).equals(without)


@pytest.mark.parametrize("exact", [False, True])
def test_evidence_is_kept_merged_and_divided(exact: bool, tmp_path: Path):
    maps, regions, kinds = case(2, "LSLS..")
    whole = collect(maps, regions, kinds, exact=exact)
    whole.save(tmp_path / "whole")
    assert (tmp_path / "whole/regions.parquet").is_file()
    halves = [whole.of_images(set(whole.images["id"][part])) for part in (slice(1, None, 2), slice(0, None, 2))]
    for number, half in enumerate(halves):
        half.save(tmp_path / f"{number}")
    good = whole.of_images({"004", "005"})
    assert good.regions is None
    for found in (
        Evidence.load(tmp_path / "whole"),
        Evidence.merge(halves),
        Evidence.merge([Evidence.load(tmp_path / f"{number}") for number in range(2)]),
        Evidence.merge([good, whole.of_images({"000", "001", "002", "003"})]),
    ):
        assert found.regions.table.equals(whole.regions.table)
        assert found.regions.scores.dtype == whole.regions.scores.dtype
        assert np.array_equal(found.regions.scores, whole.regions.scores)
    replace(whole, regions=None).save(tmp_path / "whole")
    assert Evidence.load(tmp_path / "whole").regions is None
    with pytest.raises(HrbenchError, match="000: a defective image without regions, others have some"):
        Evidence.merge([replace(halves[1], regions=None), halves[0]])


def test_shrunk_evidence_has_no_regions():
    maps, regions, _ = case(3, "L")
    collector = EvidenceCollector(EvidenceSpec(side=8))
    mask = np.any([mask for mask, _ in regions[0]], axis=0)
    collector.update("0", maps[0], mask, regions=[Region(*pair) for pair in regions[0]])
    assert collector.result().regions is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: [Region(m[:, :-1], 1)], r"00: region 0 has shape \(4, 3\), expected \(4, 4\)"),
        (lambda m: [Region(m & False, 1)], "00: region 0 of 0 pixels has saturation 1, expected 1 to all"),
        (lambda m: [Region(m, 0)], "00: region 0 of 4 pixels has saturation 0"),
        (lambda m: [Region(m, 2), Region(m, 5)], "00: region 1 of 4 pixels has saturation 5"),
        (lambda m: [Region(~m | m, 1)], "00: its regions mark other pixels than its mask"),
        (lambda m: [], "00: its regions mark other pixels than its mask"),
        (lambda m: None, "00: a defective image without regions, others have some"),
    ],
)
def test_regions_that_are_not_those_of_the_mask(change, problem):
    mask = np.zeros((4, 4), bool)
    mask[0] = True

    def collected():
        collector = EvidenceCollector(EvidenceSpec())
        collector.update("00", np.zeros((4, 4)), mask, regions=change(mask))
        collector.update("01", np.zeros((4, 4)), mask, regions=[Region(mask, 4)])
        return collector.result()

    with pytest.raises(HrbenchError, match=problem):
        collected()


def test_evaluate_takes_regions():
    maps, regions, kinds = case(4, "LSLS..")
    types = [LOCO[kind] for kind in kinds]
    result = hrbench.evaluate(maps, [None] * 6, regions=[own or None for own in regions], defect_types=types)
    for limit, expected in oracle.spro(maps, regions, kinds, LIMITS).items():
        assert result.value("spro", fpr_limit=limit) == pytest.approx(expected, abs=1e-9)
    parts = [result.value("spro", subset) for subset in ("logical", "structural")]
    assert result.value("spro") == pytest.approx(np.mean(parts))
    assert "sPRO up to FPR 0.05, logical" in str(result.summary())
    assert np.isnan(result.interval("spro")[0])  # of four images
    alone = hrbench.evaluate(maps, [None] * 6, regions=regions)
    assert set(alone.values.query("metric == 'spro'")["subset"]) == {"all"}
    masks = [np.any([mask for mask, _ in own], axis=0) if own else None for own in regions]
    assert hrbench.evaluate(maps, masks, regions=regions).value("spro") == alone.value("spro")
    compared = hrbench.compare(alone, hrbench.evaluate([-m for m in maps], masks, regions=regions))
    assert "sPRO up to FPR 0.05" in str(compared)


@pytest.mark.parametrize(
    ("regions", "problem"),
    [
        ([3], "regions 0: expected pairs of a mask and of a whole number of pixels"),
        ([(np.ones((4, 4)), 2.5)], "regions 0: expected pairs"),
        ([(np.ones(4), 2)], r"region 0 of image 0: shape \(4,\), expected \(H, W\)"),
        ([(np.eye(4), 2), (np.eye(3), 2)], r"region 1 of image 0: shape \(3, 3\), expected \(4, 4\)"),
        ([(np.eye(4), 5)], "000000: region 0 of 4 pixels has saturation 5, expected 1 to all"),
        ([(np.eye(5), 5)], r"anomaly map has shape \(4, 4\), expected \(5, 5\)"),
    ],
)
def test_evaluate_refuses_what_are_no_regions(regions, problem):
    with pytest.raises(HrbenchError, match=problem):
        hrbench.evaluate([np.zeros((4, 4))], [None], regions=[regions])
