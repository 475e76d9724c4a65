"""Progress bars with throughput on a terminal; elsewhere a line every half minute and at the end of each step."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["track", "tracker"]

T = TypeVar("T")
log = logging.getLogger("hrbench")

LOG_SECONDS = 30.0


def track(items: Iterable[T], description: str, *, total: int, unit: str = "it", initial: int = 0) -> Iterator[T]:
    """Yield from `items` under a progress bar; without a terminal, log how far it is, and time and throughput."""
    terminal = sys.stderr.isatty()
    bar = tqdm(items, description, total=total, initial=initial, unit=unit, leave=False, disable=not terminal)
    started = said = time.perf_counter()
    done = 0
    for item in bar:
        yield item
        done += 1
        now = time.perf_counter()
        if not terminal and now - said > LOG_SECONDS and initial + done < total:
            said = now
            log.info(
                "%s: %d of %d %s (%.3g %s/s)", description, initial + done, total, unit, done / (now - started), unit
            )
    seconds = time.perf_counter() - started
    if done:
        log.debug("%s: %d %s in %.1f s (%.3g %s/s)", description, done, unit, seconds, done / max(seconds, 1e-9), unit)


def tracker(description: str, unit: str = "img") -> Callable[[Iterable[T]], Iterator[T]]:
    """Return what wraps any items in :func:`track`."""

    def wrap(items: Iterable[T]) -> Iterator[T]:
        items = list(items)
        return track(items, description, total=len(items), unit=unit)

    return wrap
