"""How long a device works on something, without making the host wait for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["Mark", "Span", "mark", "seconds_of", "wait_for"]

Mark = Any  # seconds, or on a GPU an event: its stubs are untyped
Span = tuple[Mark, Mark, float]
"""Two points in the device's time, and the share of what lies between that counts."""


def mark(device: torch.device) -> Mark:
    """Return a point in the device's time: when all work that was queued so far is done."""
    if device.type == "cuda":
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def wait_for(point: Mark) -> None:
    """Wait until the device has come to a point in its time."""
    if not isinstance(point, float):
        point.synchronize()


def seconds_of(spans: Sequence[Span]) -> float:
    """Return how long the device took from mark to mark; wait for a GPU that is not there yet.

    On a CPU it is wall-clock time, in which threads beside it take their part of the cores.
    """
    total = 0.0
    for start, end, share in spans:
        if isinstance(start, float):
            total += (end - start) * share
        else:
            wait_for(end)
            total += start.elapsed_time(end) / 1e3 * share
    return total
