"""Metrics under masks one pixel wider and narrower, as a table."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

import hrbench
from hrbench import HrbenchError, load_protocol
from hrbench.evidence import with_masks
from hrbench.metrics import compute
from hrbench.metrics.annotation import ANNOTATION_COLUMNS
from hrbench.metrics.bootstrap import paired_difference, replicates

NATIVE = load_protocol("native")
QUICK = dataclasses.replace(NATIVE, bootstrap=dataclasses.replace(NATIVE.bootstrap, draws=40))
KEYS = ["metric", "subset", "fpr_limit"]


def evaluation(images=24, protocol=QUICK, side=32, **settings):
    """Return scores that rise inside squares of 1 to 9 px, among noise; the last third of the images is good."""
    rng = np.random.default_rng(0)
    maps, masks = rng.random((images, side, side), np.float32), np.zeros((images, side, side), bool)
    for number, mask in enumerate(masks[: -(-2 * images // 3)]):
        edge = 1 + number % 9
        top, left = rng.integers(1, side - edge - 1, 2)
        mask[top : top + edge, left : left + edge] = True
        maps[number, top + 1 : top + edge + 1, left : left + edge] += 0.5 + rng.random()  # found a pixel too low
    return hrbench.evaluate(maps, masks, protocol=protocol, threshold=0.9, **settings)


@pytest.mark.parametrize("exact", [False, True])
def test_rows_are_metrics_of_the_altered_evidence(exact):
    whole = evaluation(exact=exact)
    table = hrbench.annotation_tolerance(whole)
    assert tuple(table.columns) == ANNOTATION_COLUMNS
    annotated = whole.values
    for masks, own in table.groupby("masks"):
        evidence = with_masks(whole.evidence, masks)
        expected = own[KEYS].merge(compute(evidence, QUICK, threshold=0.9), "left", on=KEYS)["value"]
        assert np.array_equal(own["value"], expected, equal_nan=True)
        base = own[KEYS].merge(annotated, "left", on=KEYS)["value"]
        if masks == "annotated":
            assert own[["change", "change_low", "change_high"]].isna().all(axis=None)
            continue
        assert np.array_equal(own["change"], expected.to_numpy() - base, equal_nan=True)
        drawn = replicates(evidence, QUICK, threshold=0.9)
        paired = own[KEYS].merge(paired_difference(drawn, whole.replicates), "left", on=KEYS)
        assert np.array_equal(own[["change_low", "change_high"]], paired[["ci_low", "ci_high"]], equal_nan=True)
    assert set(table["metric"]) == {"aupro", "recall_matched", "miou", "iou"}
    overall = table[(table["metric"] == "aupro") & (table["subset"] == "all")].set_index("masks")
    assert overall["components"].to_dict() == {"eroded": 12, "annotated": 16, "dilated": 16}
    assert overall["vanished"].to_dict() == {"eroded": 4, "annotated": 0, "dilated": 0}  # squares of 1 and 2 px
    assert overall.loc[["eroded", "dilated"], "change_low"].notna().all()


def test_bins_hold_the_same_defects_under_all_masks():
    table = hrbench.annotation_tolerance(evaluation())
    of_size = table[table["metric"] == "aupro"].assign(every=lambda t: t["components"] + t["vanished"])
    assert (of_size.groupby("subset")["every"].nunique() == 1).all()


def test_where_every_defect_vanishes_there_is_no_value():
    mask = np.zeros((9, 9), bool)
    mask[4, 2:7] = True
    whole = hrbench.evaluate([mask.astype(float), 0.0 * mask], [mask, None], protocol=QUICK, threshold=0.5)
    table = hrbench.annotation_tolerance(whole)
    eroded = table[table["masks"] == "eroded"]
    assert eroded["value"].isna().all()
    assert (eroded["components"] == 0).all()
    assert eroded.loc[eroded["subset"] == "all", "vanished"].tolist() == [1] * 4


def test_without_budgets_or_draws_there_is_recall_without_intervals():
    rules = dataclasses.replace(
        NATIVE,
        alarm=dataclasses.replace(NATIVE.alarm, budgets=(), summary=()),
        bootstrap=dataclasses.replace(NATIVE.bootstrap, draws=0),
    )
    table = hrbench.annotation_tolerance(evaluation(protocol=rules))
    assert set(table["metric"]) == {"aupro", "recall", "miou", "iou"}
    assert table["change"].notna().any()
    assert table[["change_low", "change_high"]].isna().all(axis=None)


def test_what_has_no_rims_is_said():
    whole = evaluation(6)
    old = hrbench.Evaluation(dataclasses.replace(whole.evidence, rims=None), QUICK, threshold=0.9)
    with pytest.raises(HrbenchError, match="no rims of its defects, for an earlier version collected it"):
        hrbench.annotation_tolerance(old)
    good = hrbench.evaluate(np.zeros((3, 8, 8)), [None] * 3, protocol=QUICK)
    with pytest.raises(HrbenchError, match="no defect in any mask"):
        hrbench.annotation_tolerance(good)
    with pytest.raises(HrbenchError, match="it is of shrunk masks"):
        hrbench.annotation_tolerance(evaluation(6, protocol="lowres256"))
    assert isinstance(hrbench.annotation_tolerance(whole, protocol=QUICK), pd.DataFrame)


def test_two_annotations_are_compared_with_each_other():
    masks = np.zeros((3, 9, 9), bool)
    others = masks.copy()
    masks[0, 1:3, 1:3] = masks[0, 6, 6] = others[0, 2:4, 1:3] = True
    others[1, 4, 4] = True
    table = hrbench.annotation_agreement([*masks[:2], None], others)
    assert table["iou"].tolist() == [2 / 7, 0, 1]
    assert table[["components", "matched"]].to_numpy().tolist() == [[2, 1], [0, 0], [0, 0]]
    assert table[["others", "others_matched"]].to_numpy().tolist() == [[1, 1], [1, 0], [0, 0]]
    with pytest.raises(HrbenchError, match="ends after 1 images"):
        hrbench.annotation_agreement(masks[:1], others)
    with pytest.raises(HrbenchError, match=r"masks 0: of shapes \(9, 9\) and \(4, 9\)"):
        hrbench.annotation_agreement(masks[:1], others[:1, :4])
