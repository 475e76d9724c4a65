"""Evidence under masks one pixel wider or narrower, against evidence collected under such masks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hrbench import HrbenchError, load_protocol
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec, with_masks
from hrbench.evidence.histograms import Histogram
from hrbench.evidence.rims import Annotated
from hrbench.metrics import compute
from hrbench.metrics.catalogue import METRICS

SQUARE = np.ones((3, 3), bool)
ALTERED = {
    "dilated": lambda mask: ndimage.binary_dilation(mask, SQUARE),
    "eroded": lambda mask: ndimage.binary_erosion(mask, SQUARE, border_value=1),
}
NATIVE = load_protocol("native")
NATIVE = dataclasses.replace(
    NATIVE, alarm=dataclasses.replace(NATIVE.alarm, budgets=(0.25, 0.5), summary=(0.25, 0.5), headline=0.5)
)


def scenes(seed, images=5, side=24, dtype=np.float32):
    """Return maps of a few distinct scores, masks of rectangles and specks, and decisions; the last image is good."""
    rng = np.random.default_rng(seed)
    maps, masks = (rng.integers(0, 40, (images, side, side)) / 8).astype(dtype), np.zeros((images, side, side), bool)
    for mask in masks[:-1]:
        for _ in range(rng.integers(1, 4)):
            top, left = rng.integers(0, side, 2)
            height, width = rng.integers(1, 9, 2)
            mask[top : top + height, left : left + width] = True
    return maps, masks, rng.random(maps.shape) < 0.3


def collected(maps, masks, decisions=None, spec=EvidenceSpec()):  # noqa: B008 - frozen
    collector = EvidenceCollector(spec)
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        decision = None if decisions is None else decisions[number]
        collector.update(str(number), scores, mask, decision=decision, score=float(number % 3))
    return collector.result()


def same_pixels(found, expected):
    """Compare all but which defect pixels are whose, to the last bit."""
    label = expected.images["label"]  # of the image as it was annotated
    pd.testing.assert_frame_equal(found.images.assign(label=label), expected.images)
    for own, other in zip(found.normals, expected.normals, strict=True):
        assert (type(own), own.keys.dtype) == (type(other), other.keys.dtype)
        assert np.array_equal(own.keys, other.keys)
        if isinstance(own, Histogram):
            assert np.array_equal(own.cumulative, other.cumulative)
    ends = [np.cumsum(part.images["defect_pixels"].to_numpy())[:-1] for part in (found, expected)]
    parts = [np.split(part.defect_scores, end) for part, end in zip((found, expected), ends, strict=True)]
    for own, other in zip(*parts, strict=True):
        assert np.array_equal(np.sort(own), np.sort(other))


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from(["dilated", "eroded"]), st.booleans(), st.sampled_from([4, 8]))
def test_pixels_are_those_under_altered_masks(seed, masks, exact, connectivity):
    maps, annotated, decisions = scenes(seed, dtype=np.float64 if seed % 2 else np.float32)
    spec = EvidenceSpec(exact=exact, connectivity=connectivity)
    found = with_masks(collected(maps, annotated, decisions, spec), masks)
    same_pixels(found, collected(maps, [ALTERED[masks](mask) for mask in annotated], decisions, spec))
    assert found.components["area"].sum() == found.defect_scores.size
    assert (found.components["area"] > 0).all()


@settings(max_examples=8)
@given(st.integers(0, 10**9), st.sampled_from(["dilated", "eroded"]), st.booleans())
def test_metrics_are_those_under_altered_masks(seed, masks, exact):
    maps, annotated, decisions = scenes(seed)
    altered = [ALTERED[masks](mask) for mask in annotated]
    spec = EvidenceSpec(exact=exact)
    whole, fresh = collected(maps, annotated, decisions, spec), collected(maps, altered, decisions, spec)
    kept = with_masks(whole, masks).components[["image", "area"]]
    assume(kept.equals(fresh.components[["image", "area"]]))  # none has merged, fallen apart or vanished
    assume(len(kept) == len(whole.components))
    areas = whole.components["area"].to_numpy()
    fresh = dataclasses.replace(fresh, annotated=Annotated(areas, np.ones(areas.size, bool)))
    found, expected = (compute(of, NATIVE, threshold=2.5) for of in (with_masks(whole, masks), fresh))
    assert set(found["metric"]) >= {"aupro", "iou", "miou", "iou_decision", "recall_matched", "aupimo"}
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-12)
    before = compute(whole, NATIVE, threshold=2.5)
    by_size = before["metric"].map(lambda key: METRICS[key].counts == "components")
    assert before.loc[by_size, "n"].tolist() == found.loc[by_size, "n"].tolist()  # the same defects in each bin


def test_a_defect_that_vanishes_leaves_its_bin_to_the_others():
    maps, masks = np.zeros((2, 20, 20), np.float32), np.zeros((2, 20, 20), bool)
    maps[0, 3, 3] = maps[0, 10:14, 10:14] = 1
    masks[0, 3, 3] = masks[0, 10:14, 10:14] = True
    masks[0, 17, 2:19] = True  # thin, and the largest but one
    evidence = collected(maps, masks)
    eroded = with_masks(evidence, "eroded")
    assert evidence.components["area"].tolist() == [1, 16, 17]
    assert eroded.components["area"].tolist() == [4]
    assert eroded.sizes.tolist() == [16]
    assert eroded.images["defect_pixels"].tolist() == [4, 0]
    table = compute(eroded, NATIVE).query("metric == 'aupro' and fpr_limit == 0.05").set_index("subset")
    assert table["n"].to_dict() | {"all": 1, "tiny": 0, "small": 1, "medium": 0, "large": 0} == table["n"].to_dict()
    with pytest.raises(HrbenchError, match="can only be measured"):
        Evidence.merge([eroded])


@settings(max_examples=6)
@given(st.integers(0, 10**9), st.booleans())
def test_rims_survive_merging_taking_apart_and_files(tmp_path_factory, seed, exact):
    maps, masks, decisions = scenes(seed)
    whole = collected(maps, masks, decisions, EvidenceSpec(exact=exact))
    parts = [whole.of_images({"3", "1"}), whole.of_images({"4"}), whole.of_images({"0", "2"})]
    folder = tmp_path_factory.mktemp("rims")
    whole.save(folder)
    for other in (Evidence.merge(parts), Evidence.load(folder), whole.grouped({"1": "part"})):
        pd.testing.assert_frame_equal(other.rims.table, whole.rims.table)
        assert np.array_equal(other.rims.outer_scores, whole.rims.outer_scores)
        assert other.rims.outer_scores.dtype == whole.rims.outer_scores.dtype
        assert np.array_equal(other.rims.inner, whole.rims.inner)


def test_evidence_without_rims(tmp_path):
    maps, masks, _ = scenes(0)
    whole = collected(maps, masks)
    whole.save(tmp_path)
    (tmp_path / "rims.parquet").unlink()  # as an earlier version left it
    old = Evidence.load(tmp_path)
    assert old.rims is None
    assert with_masks(old, "annotated") is old
    with pytest.raises(HrbenchError, match="no rims of defects, for an earlier version collected it"):
        with_masks(old, "dilated")
    mixed = Evidence.merge([old.of_images({"0", "1"}), whole.of_images({"2", "3", "4"})])
    assert mixed.rims is None
    mixed.save(tmp_path)  # over evidence that had some
    assert Evidence.load(tmp_path).rims is None
    shrunk = collected(maps, masks, spec=EvidenceSpec(side=12))
    with pytest.raises(HrbenchError, match="it is of shrunk masks"):
        with_masks(shrunk, "eroded")
    with pytest.raises(HrbenchError, match="masks are 'wider', expected one of: eroded, annotated, dilated"):
        with_masks(whole, "wider")


def test_without_any_defect_nothing_changes():
    maps, masks, _ = scenes(0)
    good = collected(maps[-1:], masks[-1:])
    assert good.rims is None
    assert with_masks(good, "dilated") is good
