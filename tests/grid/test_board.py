"""The board: whatever workers do and however many die, every stage of every job is done, and nothing twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrbench.grid.board import MOST_CHUNKS, RETRIES, WORTH_HELPING, Board, Task

BEGUN = st.tuples(st.booleans(), st.integers(0, 20))  # whether a job is fitted before, and its chunks


@dataclass
class Simulation:
    """Workers that do what a board says, in any order, and may die."""

    begun: Sequence[tuple[bool, int]]
    workers: int
    seed: int
    loss: float = 0.0  # chance of a worker to die of a task
    board: Board = field(default_factory=Board)
    fitted: set[str] = field(default_factory=set)
    out: dict[int, Task] = field(default_factory=dict)  # by worker
    predicted: Counter[tuple[str, int]] = field(default_factory=Counter)
    scored: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    last: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.chunks = {f"job {at}": count for at, (_, count) in enumerate(self.begun)}
        self.names = list(range(self.workers))
        for name, (fitted, count) in zip(self.chunks, self.begun, strict=True):
            self.board.add(name, fitted=fitted, chunks=range(count) if fitted else ())
            self.fitted |= {name} if fitted else set()

    def run(self) -> None:
        """Until nothing is left."""
        for _ in range(10_000):
            for worker in self.names:
                if worker not in self.out and (task := self.board.next(worker, self.workers)) is not None:
                    self._check(worker, task)
                    self.out[worker], self.last[worker] = task, task.job
            if not self.out:
                return
            idle = [worker for worker in self.names if worker not in self.out]
            running = {task.job for task in self.out.values()}
            if idle:  # then no job is left that nobody works at, and none has much left
                alive = set(self.chunks) - set(self.scored) - set(self.given_up)
                assert alive <= running
                assert all(len(self._unclaimed(job)) < WORTH_HELPING for job in alive & self.fitted)
            self._end(self.random.choice(sorted(self.out)))
        raise AssertionError("it does not end")

    def _unclaimed(self, job: str) -> set[int]:
        claimed = {chunk for task in self.out.values() if task.job == job for chunk in task.chunks}
        done = {chunk for name, chunk in self.predicted if name == job}
        return set(range(self.chunks[job])) - done - claimed

    def _check(self, worker: int, task: Task) -> None:
        assert task.job not in self.scored + self.given_up
        others = [other for other in self.out.values() if other.job == task.job]
        if task.stage == "fit":
            assert task.job not in self.fitted
            assert not others
            assert task.chunks == ()
        elif task.stage == "predict":
            assert task.job in self.fitted
            assert 0 < len(task.chunks) <= MOST_CHUNKS
            assert set(task.chunks) <= self._unclaimed(task.job)
        else:
            assert not others
            assert all(self.predicted[task.job, chunk] for chunk in range(self.chunks[task.job]))
        own = self.last.get(worker)
        if own in self.fitted and own not in self.scored + self.given_up and self._unclaimed(own):
            assert task.job == own  # the method is loaded there

    def _end(self, worker: int) -> None:
        task = self.out.pop(worker)
        if self.random.random() < self.loss:
            self.losses[task.job] += 1
            too_many = self.board.lost(worker)
            assert too_many == (task.job if task.job in self.chunks and self._too_many(task.job) else None)
            self.last.pop(worker)
            self.names[self.names.index(worker)] = max(self.names) + 1  # another one comes
            if too_many:
                self.given_up.append(too_many)
                self.board.remove(too_many)
        elif task.job in self.given_up:
            self.board.predicted(worker)
        elif task.stage == "fit":
            self.fitted.add(task.job)
            self.board.fitted(worker, range(self.chunks[task.job]))
        elif task.stage == "predict":
            self.predicted.update((task.job, chunk) for chunk in task.chunks)
            self.board.predicted(worker)
        else:
            self.scored.append(task.job)
            self.board.remove(task.job)

    def _too_many(self, job: str) -> bool:
        return job not in self.given_up and self.losses[job] > RETRIES


@given(begun=st.lists(BEGUN, max_size=6), workers=st.integers(1, 7), seed=st.integers(0, 2**20))
def test_every_stage_of_every_job_is_done_once(begun: list[tuple[bool, int]], workers: int, seed: int) -> None:
    simulation = Simulation(begun, workers, seed)
    simulation.run()
    assert sorted(simulation.scored) == sorted(simulation.chunks)
    assert len(simulation.board) == 0
    assert set(simulation.predicted.values()) <= {1}


@given(
    begun=st.lists(BEGUN, max_size=6),
    workers=st.integers(1, 7),
    seed=st.integers(0, 2**20),
    loss=st.sampled_from([0.05, 0.3, 0.9, 1.0]),
)
def test_what_dead_workers_did_is_done_by_others(
    begun: list[tuple[bool, int]], workers: int, seed: int, loss: float
) -> None:
    simulation = Simulation(begun, workers, seed, loss)
    simulation.run()
    assert sorted(simulation.scored + simulation.given_up) == sorted(simulation.chunks)
    assert len(simulation.board) == 0
    assert set(simulation.predicted.values()) <= {1}
    for job in simulation.given_up:
        assert simulation.losses[job] > RETRIES
    if loss == 1.0:
        assert not simulation.scored


def test_workers_begin_jobs_before_they_help() -> None:
    board = Board()
    for job in "ab":
        board.add(job)
    assert board.next(1, 3) == Task("a", "fit")
    assert board.next(2, 3) == Task("b", "fit")
    assert board.next(3, 3) is None  # a fit cannot be shared
    assert not board.has_free(3)
    board.fitted(1, range(12))
    assert board.next(3, 3) == Task("a", "predict", (0, 1))  # an equal share of half of it
    assert board.next(1, 3) == Task("a", "predict", (2, 3))
    board.predicted(3)
    board.fitted(2, range(6))
    assert board.next(2, 3) == Task("b", "predict", (0,))
    assert board.next(3, 3) == Task("a", "predict", (4, 5))  # its method is loaded


def test_while_there_are_jobs_to_begin_chunks_are_not_kept_for_others() -> None:
    board = Board()
    board.add("a", fitted=True, chunks=range(8))
    board.add("b")
    assert board.next(1, 4) == Task("a", "predict", (0, 1, 2, 3))
    board.remove("b")
    board.predicted(1)
    assert board.next(1, 4) == Task("a", "predict", (4,))


def test_the_only_worker_takes_as_many_chunks_as_may_be_lost() -> None:
    board = Board()
    board.add("a", fitted=True, chunks=range(9))
    taken = []
    while (task := board.next(1, 1)) is not None and task.stage == "predict":
        taken.append(task.chunks)
        board.predicted(1)
    assert taken == [(0, 1, 2, 3), (4, 5, 6), (7,), (8,)]
    assert task == Task("a", "score")


def test_chunks_of_a_dead_worker_are_done_first_and_its_job_by_the_next_one() -> None:
    board = Board()
    board.add("a", fitted=True, chunks=range(9))
    assert board.next(1, 1) == Task("a", "predict", (0, 1, 2, 3))
    assert board.lost(1) is None
    assert board.lost(1) is None  # it is known
    assert board.next(2, 1) == Task("a", "predict", (0, 1, 2, 3))


def test_a_job_is_given_up_when_it_has_cost_too_many_workers() -> None:
    board = Board()
    board.add("a")
    board.add("b")
    for worker in range(RETRIES + 1):
        assert board.next(worker, 1) == Task("a", "fit")
        assert board.lost(worker) == ("a" if worker == RETRIES else None)
    board.remove("a")
    assert board.next("x", 1) == Task("b", "fit")


@pytest.mark.parametrize("dies", [False, True])
def test_what_is_still_done_for_a_job_that_has_failed_does_not_matter(dies: bool) -> None:
    board = Board()
    board.add("a", fitted=True, chunks=range(8))
    board.add("b")
    board.next(1, 1)
    board.remove("a")
    if dies:
        assert board.lost(1) is None
    else:
        board.predicted(1)
    assert board.next(1, 1) == Task("b", "fit")
    assert board.lost(2) is None  # it has never done anything
