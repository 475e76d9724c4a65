"""Maps counted where they lie are counted as in the host's memory: the same bits, and means to a float64's rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hrbench import HrbenchError
from hrbench.data.sample import Sample
from hrbench.engine import anomaly_map, counting
from hrbench.engine.anomaly_map import AnomalyMap
from hrbench.engine.counting import count_pixels
from hrbench.evidence import EvidenceCollector, EvidenceSpec, NormalTally
from hrbench.evidence.histograms import KEY_SHIFT, Histogram, drops_bits
from hrbench.imaging import Region

SAMPLE = Sample("test/7.png", None, None, 1, "dent", "test", "bolt")
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 1e-45, -1e-45, 1e-38, -1e-38, 3.4e38, -3.4e38, 1 + 2**-13, 1 + 2**-14, 0.5]
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHORT = st.floats(width=16, allow_nan=False, allow_infinity=False)  # they drop no bit
MAPS = SIZES.flatmap(
    lambda size: st.one_of(
        hnp.arrays(np.float32, size, elements=FLOATS),
        hnp.arrays(np.float32, size, elements=SHORT),
        hnp.arrays(np.float32, size, elements=st.sampled_from(SPECIAL)),
        st.sampled_from(SPECIAL).map(lambda value: np.full(size, value, np.float32)),
    )
)


@pytest.fixture(autouse=True)
def counted_on_the_cpu() -> Iterator[None]:
    with mock.patch.object(anomaly_map, "COUNTING", {"cpu"}):
        yield


def in_small_pieces(pixels: int) -> Any:
    return mock.patch.multiple(counting, PIECE=pixels, _room=lambda size: min(size, 2))


def predicted(scores: np.ndarray, decision: np.ndarray | None = None) -> AnomalyMap:
    map_ = torch.from_numpy(scores)
    extremes = torch.stack(map_.aminmax())[None]
    return AnomalyMap(
        SAMPLE,
        "Toy",
        map_,
        None if decision is None else torch.from_numpy(decision),
        extremes,
        ((1.0, 3.0, 0.5),),
        None,
    )


@given(MAPS, st.integers(0, 2**32 - 1), st.sampled_from([5, 1 << 22]))
def test_a_count_is_that_of_the_host(scores: np.ndarray, seed: int, piece: int) -> None:
    rng = np.random.default_rng(seed)
    decision, places = rng.random(scores.shape) < 0.5, rng.integers(0, scores.size, rng.integers(0, 9))
    with in_small_pieces(piece):
        found = count_pixels(
            torch.from_numpy(scores), torch.from_numpy(decision), places, shift=KEY_SHIFT, top=1, moments=True
        )
    expected = Histogram.of(scores, KEY_SHIFT)
    for own, other in ((found.keys, expected.keys), (found.counts, expected.counts)):
        assert own.dtype == other.dtype
        assert np.array_equal(own, other)
    assert found.scores.tobytes() == scores.ravel()[places].tobytes()
    assert np.array_equal(found.decided, decision.ravel()[places])
    assert found.decisions == decision.sum()
    assert (found.low, found.high) == (scores.min(), scores.max())
    assert found.dropped == drops_bits(scores.ravel(), KEY_SHIFT)
    mean, std = scores.mean(dtype=np.float64), scores.std(dtype=np.float64)
    assert found.moments == pytest.approx((mean, std), rel=1e-14, abs=1e-14 * np.abs(scores.astype(np.float64)).max())


@settings(max_examples=20)
@given(MAPS, st.integers(0, 2**32 - 1), st.sampled_from(["max", "mean", "top:0.1"]), st.sampled_from([4, 8]))
def test_evidence_is_the_same_wherever_the_map_lies(
    scores: np.ndarray, seed: int, rule: str, connectivity: int
) -> None:
    rng = np.random.default_rng(seed)
    here, there = (EvidenceCollector(EvidenceSpec(rule, connectivity)) for _ in range(2))
    for number, share in enumerate([None, None, 0.0, 0.3, 1.0]):
        own = np.roll(scores, number, axis=1)
        mask = None if share is None else rng.random(own.shape) < share
        decision = rng.random(own.shape) < 0.5 if number % 2 else None
        regions = [] if mask is None or not mask.any() else [Region(mask, 1)]
        about = {"unmasked": number == 1, "defect_type": "dent", "group": "a", "regions": regions}
        here.update(f"{9 - number}", own, mask, decision=decision, seconds=1.0, **about)
        with in_small_pieces(50):
            there.update_predicted(f"{9 - number}", predicted(own, decision), mask, **about)
    found, expected = there.result(), here.result()
    assert found.rims is not None
    assert found.regions is not None
    assert_same_bits(found, expected, but=("score",) if rule == "mean" else ())
    largest = np.abs(scores.astype(np.float64)).max()
    np.testing.assert_allclose(found.images["score"], expected.images["score"], rtol=1e-14, atol=1e-14 * largest)


@given(MAPS)
def test_held_out_normals_are_measured_the_same(scores: np.ndarray) -> None:
    found = NormalTally.of_predicted(predicted(scores), [None, 4])
    for own, expected in zip(found, (NormalTally.of(scores), NormalTally.of(scores, 4)), strict=True):
        assert np.array_equal(own.pixels.keys, expected.pixels.keys)
        assert np.array_equal(own.pixels.cumulative, expected.pixels.cumulative)
        largest = np.abs(scores.astype(np.float64)).max()
        assert (own.mean, own.std) == pytest.approx((expected.mean, expected.std), rel=1e-14, abs=1e-14 * largest)


def test_more_bins_than_travel_at_first_come_too() -> None:
    scores = np.exp(3 * np.random.default_rng(0).standard_normal((400, 500), np.float32))
    expected = Histogram.of(scores, KEY_SHIFT)
    assert expected.keys.size > counting._room(scores.size) == 1 << 16
    found = count_pixels(torch.from_numpy(scores), None, np.zeros(0, np.int64), shift=KEY_SHIFT)
    assert np.array_equal(found.keys, expected.keys)
    assert np.array_equal(found.counts, expected.counts)
    assert (found.decided, found.decisions, found.top, found.moments) == (None, None, None, None)


def test_no_piece_keeps_an_array_of_its_size() -> None:
    bits = torch.arange(1 << 12, dtype=torch.int32)
    kept = counting._bins(bits, KEY_SHIFT, 8)
    assert [part.untyped_storage().nbytes() for part in kept] == [4, 32, 32]


@pytest.mark.parametrize("wanted", [EvidenceSpec(side=4), EvidenceSpec(exact=True), EvidenceSpec()])
def test_the_map_comes_only_where_all_of_it_is_wanted(wanted: EvidenceSpec) -> None:
    scores = np.random.default_rng(0).random((6, 7), np.float32)
    collector, expected = EvidenceCollector(wanted), EvidenceCollector(wanted)
    with mock.patch.object(AnomalyMap, "scores", autospec=True, side_effect=AnomalyMap.scores) as brought:
        collector.update_predicted("a", predicted(scores, scores > 0.4), scores > 0.5)
    assert brought.called == wanted.takes_map == (wanted != EvidenceSpec())
    expected.update("a", scores, scores > 0.5, decision=scores > 0.4, seconds=1.0)
    assert_same_bits(collector.result(), expected.result())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = np.ones((5, 7), np.float32)
    scores[2, 3] = bad
    item = predicted(scores)
    with pytest.raises(HrbenchError, match=r"test/7\.png: Toy gave an anomaly map with NaN or infinite pixels"):
        EvidenceCollector(EvidenceSpec()).update_predicted("a", item, None)
    item.extremes.zero_()  # of the looks, before fusion
    with pytest.raises(HrbenchError, match=r"a: the anomaly map has 1 NaN or infinite pixels"):
        EvidenceCollector(EvidenceSpec()).update_predicted("a", item, None)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(HrbenchError, match=r"a: the anomaly map has shape \(5, 7\), expected \(7, 5\)"):
        EvidenceCollector(EvidenceSpec()).update_predicted(
            "a", predicted(np.ones((5, 7), np.float32)), np.ones((7, 5), bool)
        )


def test_a_device_that_is_full_leaves_the_count_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, tried = np.random.default_rng(0).random((6, 7), np.float32), []

    def full(map_: torch.Tensor, decision: torch.Tensor, **asked: object) -> object:
        tried.append(map_)
        if len(tried) == 1:
            raise torch.cuda.OutOfMemoryError
        return count_pixels(map_, decision, **asked)

    monkeypatch.setattr(anomaly_map, "count_pixels", full)
    found = predicted(scores, scores > 0.4).counted(np.array([3]), shift=KEY_SHIFT)
    assert len(tried) == 2
    assert found.scores.tolist() == [scores[0, 3]]
    assert found.decisions == (scores > 0.4).sum()
