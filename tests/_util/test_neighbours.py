"""Defects beside a far larger one, against the plain definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hrbench._util.neighbours import NEAR, TIMES, larger_neighbours

BOXES = st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 12)] * 2)
DEFECTS = st.lists(st.tuples(st.sampled_from("ab"), BOXES, st.integers(1, 120)), max_size=12)


@given(DEFECTS)
def test_neighbours_are_those_of_the_definition(defects: list[tuple[str, tuple[int, int, int, int], int]]) -> None:
    images, places, areas = zip(*defects, strict=True) if defects else ((), (), ())
    boxes = [(top, left, top + height, left + width) for top, left, height, width in places]
    found = larger_neighbours(images, boxes, areas)
    assert found.shape == (len(defects),)
    for number, (image, box, area) in enumerate(zip(images, boxes, areas, strict=True)):
        beside = [
            other
            for other, (top, left, bottom, right) in enumerate(boxes)
            if images[other] == image
            and areas[other] >= TIMES * area
            and max(top - box[2], box[0] - bottom, left - box[3], box[1] - right) <= NEAR
        ]
        assert (found[number] == -1) == (not beside)
        if beside:
            assert found[number] in beside
            assert areas[found[number]] == max(areas[other] for other in beside)


def test_nothing_has_no_neighbours() -> None:
    assert larger_neighbours([], np.zeros((0, 4)), []).size == 0
