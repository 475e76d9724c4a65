"""Images whose masks are unknown, in the evidence: kept apart, saved, merged and measured per image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits

from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.metrics.alarms import alarm_scores


def collected(numbers: range, *, exact: bool = False, unknown: bool = True) -> Evidence:
    """Return evidence of good images (even), masked ones (3, 7, ...) and others (1, 5, ...), `unknown` or good."""
    collector = EvidenceCollector(EvidenceSpec(exact=exact))
    for number in numbers:
        scores = np.random.default_rng(number).normal(size=(9, 12)).astype(np.float32)
        mask = None
        if number % 4 == 3:
            mask = np.zeros((9, 12), bool)
            mask[2:4, 3:6] = True
        collector.update(f"{number}", scores, mask, unmasked=unknown and number % 4 == 1, decision=scores > 1)
    return collector.result()


@pytest.mark.parametrize("exact", [False, True])
def test_their_pixels_are_neither_normal_nor_defects(exact: bool) -> None:
    evidence, known = collected(range(8), exact=exact), collected(range(8), exact=exact, unknown=False)
    assert set(evidence.unmasked) == {"1", "5"}
    assert evidence.known.tolist() == [number % 4 != 1 for number in range(8)]
    rows = evidence.images[~evidence.known]
    assert (rows["label"] == 1).all()
    assert not rows[["normal_pixels", "defect_pixels"]].any(axis=None)
    assert evidence.normal_pixels == evidence.normal.total == known.normal_pixels - 2 * 9 * 12
    assert [part.total for part in evidence.pixels] == [part.total for part in known.normals]
    assert np.array_equal(alarm_scores(evidence, 2), alarm_scores(known, 2))
    assert rows["decision_fp"].tolist() == known.images.loc[~evidence.known, "decision_fp"].tolist()


@pytest.mark.parametrize("exact", [False, True])
def test_saved_and_merged_they_are_the_same(tmp_path: Path, exact: bool) -> None:
    whole = collected(range(8), exact=exact)
    whole.save(tmp_path / "whole")
    read = Evidence.load(tmp_path / "whole")
    merged = Evidence.merge([collected(range(4, 8), exact=exact), collected(range(4), exact=exact)])
    for other in (read, merged):
        assert_same_bits(other, whole)
        assert {name: part.keys.tolist() for name, part in other.unmasked.items()} == {
            name: part.keys.tolist() for name, part in whole.unmasked.items()
        }
    assert set(whole.of_images({"0", "1"}).unmasked) == {"1"}


def test_an_image_without_pixels_that_should_have_some_is_refused(tmp_path: Path) -> None:
    whole = collected(range(8))
    images = whole.images.copy()
    images.loc[images["id"] == "0", "normal_pixels"] = 0  # a good one
    dataclasses.replace(whole, images=images).save(tmp_path)
    with pytest.raises(HrbenchError, match="pixels that are not those of their image"):
        Evidence.load(tmp_path)
    images = whole.images.copy()
    images.loc[images["id"] == "1", "decision_fp"] = 9 * 12 + 1
    dataclasses.replace(whole, images=images).save(tmp_path)
    with pytest.raises(HrbenchError, match="a decision on more pixels than there are"):
        Evidence.load(tmp_path)
