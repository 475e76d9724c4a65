"""Progress bars with throughput on a terminal; one line per finished step elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

__all__ = ["track"]

T = TypeVar("T")
log = logging.getLogger("hrbench")


def track(items: Iterable[T], description: str, *, total: int, unit: str = "it", initial: int = 0) -> Iterator[T]:
    """Yield from `items` under a progress bar; without a terminal, log time and throughput at the end."""
    started, done = time.perf_counter(), 0
    bar = tqdm(
        items, description, total=total, initial=initial, unit=unit, leave=False, disable=not sys.stderr.isatty()
    )
    for item in bar:
        yield item
        done += 1
    seconds = time.perf_counter() - started
    if done:
        log.info("%s: %d %s in %.1f s (%.3g %s/s)", description, done, unit, seconds, done / max(seconds, 1e-9), unit)
