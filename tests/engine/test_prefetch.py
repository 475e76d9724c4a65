"""Work that threads do ahead: order, bounds, errors in their turn, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrbench.engine.prefetch import ahead


def collect(results: Iterable, found: list) -> None:
    for result in results:
        found.append(result)


@given(
    items=st.lists(st.integers(0, 9), max_size=12),
    workers=st.integers(1, 4),
    depth=st.integers(1, 5),
    room=st.integers(0, 20),
)
def test_results_come_in_order_and_so_many_are_ahead(items, workers, depth, room):
    drawn: list[int] = []

    def source():
        for item in items:
            drawn.append(item)
            yield item

    found = []
    for result in ahead(lambda x: x * x, source(), workers=workers, depth=depth, weight=lambda x: x, room=room):
        waiting = drawn[len(found) + 1 :]
        assert len(waiting) <= depth
        assert not room or sum(waiting[:-1]) <= room
        found.append(result)
    assert found == [x * x for x in items]


def test_items_are_drawn_in_the_callers_thread_and_worked_on_in_others():
    here = threading.get_ident()

    def source():
        for _ in range(3):
            yield threading.get_ident()

    pairs = list(ahead(lambda drawn: (drawn, threading.get_ident()), source()))
    assert {drawn for drawn, _ in pairs} == {here}
    assert here not in {worked for _, worked in pairs}


def test_what_fails_fails_after_the_results_before_it():
    def slow_then_bad(item):
        if item == 3:
            raise ValueError("three")
        time.sleep(0.01 * (item == 0))
        return item

    found = []
    with pytest.raises(ValueError, match="three"):
        collect(ahead(slow_then_bad, range(6), workers=3, depth=5), found)
    assert found == [0, 1, 2]


def test_items_that_fail_fail_after_the_results_before_them():
    def source():
        yield from (0, 1, 2)
        raise ValueError("no more")

    found = []
    with pytest.raises(ValueError, match="no more"):
        collect(ahead(str, source(), depth=5), found)
    assert found == ["0", "1", "2"]


def test_an_interrupt_is_not_held_up_by_what_waits():
    started = threading.Event()
    closed = []

    def source():
        try:
            yield from (0, 1)
            started.wait(5)
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    def work(item):
        started.set()
        return item

    before = threading.active_count()
    found = []
    with pytest.raises(KeyboardInterrupt) as held:  # whose traceback keeps the frames
        collect(ahead(work, source(), depth=5), found)
    assert found == []
    assert closed == [True]
    assert threading.active_count() == before
    assert held.value is not None


def test_a_reader_that_leaves_early_leaves_no_thread():
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    before = threading.active_count()
    with closing(ahead(str, source(), workers=3, depth=4)) as results:
        assert next(results) == "0"
        assert threading.active_count() > before
    assert threading.active_count() == before
    assert closed == [True]
