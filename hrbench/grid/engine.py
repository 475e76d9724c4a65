"""What runs the jobs of a grid: the contract of an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hrbench.engine.rehearsal import Expected
from hrbench.grid.gallery import Gallery
from hrbench.runs.job import Job
from hrbench.runs.stages import Setting
from hrbench.runs.store import Run

__all__ = ["Engine", "Outcome", "Watch"]


@dataclass(frozen=True)
class Outcome:
    """How a job has ended.

    Attributes
    ----------
    job : Job
    run : Run or None
    error : Exception or None
        Why there is no run.
    traceback : str
        Of an error that is a fault of the method or of the suite.
    """

    job: Job
    run: Run | None = None
    error: Exception | None = None
    traceback: str = ""


@dataclass(frozen=True)
class Watch:
    """What an engine asks and tells while it runs.

    Attributes
    ----------
    stop : callable
        Tells whether to end early: what is begun is finished as far as that is soon, and what is done is kept.
    told : callable
        Is told of every stage that ends: its job, and how many test images it has predicted (0 for a fit).
    """

    stop: Callable[[], bool] = lambda: False
    told: Callable[[Job, int], None] = lambda job, images: None


class Engine(ABC):
    """Where the stages of jobs are done; a context, within which its workers are there."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many jobs, or parts of jobs, are done at the same time."""

    @abstractmethod
    def describe(self) -> str:
        """Return in words where jobs will run."""

    @abstractmethod
    def precision(self, asked: str) -> str:
        """Return the precision that ``auto``, or another one that was asked for, means on the workers.

        Raises
        ------
        HrbenchError
            If it means different ones: runs of different precision are different runs.
        """

    @abstractmethod
    def check(self, jobs: Sequence[Job]) -> None:
        """Check that all that the jobs need is there, and is the same, wherever they may run.

        Raises
        ------
        HrbenchError
            With the node and what it lacks.
        """

    @abstractmethod
    def rehearse(self, jobs: Sequence[Job], setting: Setting) -> Iterator[tuple[Job, Expected | str]]:
        """Measure a batch of each of some jobs; yield what they are expected to take, or why that is not known."""

    @abstractmethod
    def run(self, jobs: Sequence[Job], output: Path, setting: Setting, watch: Watch) -> Iterator[Outcome]:
        """Do the jobs; yield each when it has ended. Those that are not yielded were left, see :class:`Watch`."""

    @abstractmethod
    def draw(self, gallery: Gallery, output: Path, watch: Watch) -> None:
        """Draw the pictures that finished runs lack."""
