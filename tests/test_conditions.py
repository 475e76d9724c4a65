"""A method under several lights, and what it loses against one of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

import hrbench
from hrbench import HrbenchError
from hrbench.evidence import Evidence
from hrbench.metrics.conditions import CONDITION_COLUMNS
from hrbench.metrics.measurement import measure
from hrbench.protocol import Bootstrap, load_protocol

QUICK = dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=60))
NO_DRAWS = dataclasses.replace(QUICK, bootstrap=Bootstrap(draws=0))
LIGHTS = {"regular": 3.0, "twin": 3.0, "dark": 0.5}  # how far a defect stands out
PARTS = 24  # half of them defective


@pytest.fixture(scope="module")
def result():
    """Photographs of parts in order of the light; those under `twin` are those under `regular` once more."""
    maps, masks, groups = [], [], []
    for strength in LIGHTS.values():
        rng = np.random.default_rng(0)
        for part in range(PARTS):
            scores, mask = rng.normal(size=(32, 32)), np.zeros((32, 32), bool)
            if part % 2:
                mask[4 : 5 + part // 2, 4:12] = True
            maps.append((scores + strength * mask * rng.random()).astype(np.float32))
            masks.append(mask)
            groups.append(f"part {part}")
    return hrbench.evaluate(maps, masks, protocol=QUICK, groups=groups, threshold=2.5)


@pytest.fixture(scope="module")
def conditions(result):
    return dict(zip(result.evidence.images["id"], np.repeat(list(LIGHTS), PARTS).tolist(), strict=True))


@pytest.fixture(scope="module")
def table(result, conditions):
    return hrbench.by_condition(result, conditions)


def rows(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    return table[table["condition"] == condition].set_index(["metric", "subset", "fpr_limit"])


def test_each_condition_is_measured_on_its_images_alone(result, conditions, table):
    assert list(table["condition"].unique()) == ["regular", "dark", "twin"]
    for light in LIGHTS:
        own = [name for name, condition in conditions.items() if condition == light]
        alone = hrbench.Evaluation(result.evidence.of_images(own), QUICK, threshold=2.5)
        of_light = table[table["condition"] == light]
        pd.testing.assert_frame_equal(of_light[list(alone.frame)].reset_index(drop=True), alone.frame)


def test_the_drop_is_paired_by_part(table):
    regular, dark, twin = (rows(table, light) for light in ("regular", "dark", "twin"))
    assert (twin["drop"].dropna() == 0).all()  # unpaired draws would differ
    assert (twin["drop_low"].dropna() == 0).all()
    assert regular["drop"].isna().all()
    key = ("aupro", "all", 0.05)
    assert dark.loc[key, "drop"] == pytest.approx(regular.loc[key, "value"] - dark.loc[key, "value"])
    assert 0 < dark.loc[key, "drop_low"] < dark.loc[key, "drop"] < dark.loc[key, "drop_high"]
    assert (dark["parts"] == PARTS).all()


def test_the_drop_is_measured_on_parts_that_show_the_same_under_both(result, conditions):
    ids = list(conditions)
    lacking = {name: light for name, light in conditions.items() if name not in ids[2 * PARTS : 2 * PARTS + 4]}
    evidence = hrbench.Evaluation(result.evidence, NO_DRAWS)
    fewer = rows(hrbench.by_condition(evidence, lacking), "dark")
    assert (fewer["parts"] == PARTS - 4).all()
    assert fewer["drop_low"].isna().all()
    images = result.evidence.images.copy()
    images.loc[2 * PARTS + 1, "group"] = "part 0"  # a defective image in the place of a good one
    mixed = hrbench.Evaluation(dataclasses.replace(result.evidence, images=images), NO_DRAWS)
    assert (rows(hrbench.by_condition(mixed, conditions), "dark")["parts"] == PARTS - 2).all()


def test_without_groups_there_are_values_but_no_drop(result, conditions):
    alone = hrbench.Evaluation(result.evidence.grouped({}), NO_DRAWS, threshold=2.5)
    found = hrbench.by_condition(alone, conditions)
    assert found["value"].notna().any()
    assert found["drop"].isna().all()
    assert (found["parts"] == 0).all()


def test_order_of_ids_does_not_matter(result, conditions, table):
    images, components = result.evidence.images, result.evidence.components
    order = {name: f"{9 - index % 7} {name}" for index, name in enumerate(images["id"])}
    shuffled = Evidence.merge(
        [
            dataclasses.replace(
                result.evidence,
                images=images.assign(id=images["id"].map(order).astype("str")),
                components=components.assign(image=components["image"].map(order).astype("str")),
            )
        ]
    )
    found = hrbench.by_condition(
        hrbench.Evaluation(shuffled, QUICK, threshold=2.5), {order[name]: of for name, of in conditions.items()}
    )
    for column in ("drop", "drop_low", "drop_high"):
        np.testing.assert_allclose(found[column], table[column], rtol=1e-9)


def test_conditions_that_evidence_knows_need_no_mapping(result, conditions, table):
    known = hrbench.Evaluation(result.evidence.grouped(None, conditions), QUICK, threshold=2.5)
    pd.testing.assert_frame_equal(hrbench.by_condition(known), table)
    with pytest.raises(HrbenchError, match="no image has a condition, expected some by the dataset's descriptor"):
        hrbench.by_condition(result)


def test_what_a_run_keeps_is_the_headline_of_the_same(result, conditions, table):
    found = measure(result.evidence.grouped(None, conditions), QUICK, threshold=2.5).conditions
    assert list(found) == [*CONDITION_COLUMNS, "protocol"]
    keys = ["condition", "metric", "subset", "fpr_limit"]
    both = found.merge(table, on=keys, suffixes=("", "_whole"), validate="one_to_one")
    assert len(both) == len(found) == 6
    for column in ("value", "error_bound", "n", "ci_low", "ci_high", "drop", "drop_low", "drop_high"):
        np.testing.assert_array_equal(both[column], both[f"{column}_whole"])
    assert set(zip(found["metric"], found["fpr_limit"], strict=True)) == {("aupro", 0.05), ("recall_matched", 0.05)}
    assert found["reference"].unique().tolist() == ["regular"]
    assert found["images"].unique().tolist() == [PARTS]
    assert found["parts"].tolist() == [0, 0, PARTS, PARTS, PARTS, PARTS]


def test_without_conditions_a_run_keeps_no_rows_and_without_masks_those_of_images(result, conditions):
    assert measure(result.evidence, NO_DRAWS).conditions.empty
    one = dict.fromkeys(conditions, "regular")
    assert measure(result.evidence.grouped(None, one), NO_DRAWS).conditions.empty
    labels = result.evidence.images["label"].tolist()
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(16, 16)).astype(np.float32) + label for label in labels]
    bare = hrbench.evaluate(maps, [None] * len(maps), labels=labels, protocol=QUICK).evidence
    names = dict(zip(bare.images["id"], conditions.values(), strict=True))
    found = measure(bare.grouped({}, names), QUICK).conditions
    assert found["metric"].unique().tolist() == ["image_auroc", "called_matched"]
    assert found["drop"].isna().all()
    assert found["ci_low"].notna().any()


def test_mistakes_are_named(result, conditions):
    with pytest.raises(
        HrbenchError, match=r"unknown condition 'regulr'; did you mean 'regular'\? Known: dark, regular"
    ):
        hrbench.by_condition(result, conditions, reference="regulr")


def test_a_condition_of_good_images_alone_has_false_alarms_alone(result, conditions):
    good = dict.fromkeys(list(conditions)[0:PARTS:2], "good")
    found = hrbench.by_condition(result, conditions | good).groupby("condition")["metric"].unique()
    assert set(found["good"]) == {"fpr", "alarms", *(f"{name}_matched" for name in ("fpr", "alarms"))} & set(
        found["regular"]
    )
