"""Work that threads do ahead of those who need it: in order, bounded, and without a thread left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int = 1,
    depth: int = 1,
    weight: Callable[[T], int] | None = None,
    room: int = 0,
) -> Generator[R, None, None]:
    """Yield ``function(item)`` of all items in their order; while one result is used, threads work on the next ones.

    `items` is drawn from in the caller's thread. Results do not depend on the number of threads. What fails, be it
    `items` or `function`, fails after the results before it were yielded. Whatever ends the iteration, the threads are
    gone and `items` is closed when it has ended.

    Parameters
    ----------
    function : callable
    items : iterable
        A generator is closed at the end.
    workers : int
        Threads.
    depth : int
        Results that wait or are worked on beside the one in use, at most.
    weight, room
        Beside the one in use only so many results may wait that their items, without the last, weigh no more than
        `room`.
    """
    # With torch.set_num_threads(1) in these threads OpenMP had no team but the caller's, which would spin between
    # operators instead of sleeping: a tenth quicker on idle cores, but three times slower where other programs compete.
    pool = ThreadPoolExecutor(workers)
    waiting: deque[tuple[int, Future[R]]] = deque()
    failure: Exception | None = None
    source = iter(items)
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            waiting.append((weight(item) if weight else 0, pool.submit(function, item)))
            del item  # it may be large
            while len(waiting) > 1 and (len(waiting) > depth or sum(size for size, _ in waiting) > room > 0):
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
        if isinstance(source, Generator):
            source.close()
