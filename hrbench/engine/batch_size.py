"""The largest batch that pays: forward passes of one input, two, four and so on are timed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from hrbench._util.guard import call_name, guarded
from hrbench._util.memory import free_memory
from hrbench.data.sample import ArraySample, Sample
from hrbench.engine.device import device_seconds, memory_failed, peak_memory, reset_peak_memory
from hrbench.engine.training import seeded
from hrbench.engine.views import View, stack_tiles, to_unit
from hrbench.errors import HrbenchError
from hrbench.imaging import read_image
from hrbench.method import Method
from hrbench.precision import autocast

__all__ = ["AUTO", "BatchSize", "check_batch_size", "find_batch_size", "largest_useful"]

log = logging.getLogger("hrbench")

AUTO: Literal["auto"] = "auto"
BatchSize = int | Literal["auto"]

GAIN = 1.05  # more inputs a second than with the best batch so far, for a larger one to pay
MOST = 256  # inputs
DISTINCT = 16  # inputs that are decoded; larger batches repeat them
PASSES, ENOUGH_SECONDS = 5, 1.0  # whichever ends first; the first pass of a size warms up
MEMORY_SHARE = 0.5  # of the host's free memory that a pass may take


def check_batch_size(value: object) -> BatchSize:
    """Return a batch size that somebody asks for; anything but a number from 1 on or ``auto`` is an error."""
    if value == AUTO:
        return AUTO
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HrbenchError(f"batch size is {value!r}, expected at least 1, or 'auto'")
    return value


def largest_useful(seconds: Callable[[int], float | None], *, most: int = MOST) -> int:
    """Return the largest batch that pays, of sizes 1, 2, 4 ... `most`.

    A larger batch pays while it gives more than 5 % more inputs a second than the best before it. One size that does
    not is looked past, two in a row end the search.

    Parameters
    ----------
    seconds : callable
        From a size to the seconds of a forward pass; None if memory does not hold it.
    most : int
    """
    best, rate, size, idle = 1, 0.0, 1, 0
    while size <= most and idle < 2 and (took := seconds(size)) is not None:
        if size / took > GAIN * rate:
            best, rate, idle = size, size / took, 0
        else:
            idle += 1
        size *= 2
    return best


def find_batch_size(
    method: Method,
    sample: Sample,
    view: View,
    device: torch.device,
    *,
    images: int,
    precision: str = "float32",
    seed: int = 0,
) -> int:
    """Return the largest batch that pays for a fitted method, measured on the inputs of an image.

    What a batch takes of the host's memory must leave half of what is free; one that a GPU has no memory for is too
    large. Random numbers and settings of torch are afterwards as before.

    Parameters
    ----------
    method : Method
        On `device`; put into eval mode.
    sample : Sample
    view : View
    device : torch.device
    images : int
        Whose inputs may share a batch: no more than theirs are tried.
    precision, seed
        See :func:`hrbench.engine.inference.predict`.

    Raises
    ------
    HrbenchError
        For an image that cannot be read.
    """
    pixels = sample.pixels if isinstance(sample, ArraySample) else read_image(sample.image)
    tiles = [(prepared, place, index) for prepared, place in view.prepare(pixels) for index in range(len(place))]
    chosen = tiles[:: -(-len(tiles) // DISTINCT)]
    inputs = stack_tiles([place.cut(prepared, index) for prepared, place, index in chosen])
    with seeded(seed), torch.no_grad():
        passes = _Passes(method.eval(), inputs, device, precision)
        found = largest_useful(passes.seconds, most=min(MOST, images * len(tiles)))
    log.info("%s: batch size %d, found by timing on %s", type(method).__name__, found, device)
    return found


class _Passes:
    """Forward passes of a method, timed; on a CPU also what each takes of the memory."""

    def __init__(self, method: Method, inputs: Tensor, device: torch.device, precision: str) -> None:
        self._method = method
        self._inputs = inputs
        self._device = device
        self._precision = precision
        self._mib = 0.0  # of the host, that an input took

    def seconds(self, size: int) -> float | None:
        """Return the shortest time of a few passes of `size` inputs; None if they do not fit."""
        free = free_memory()
        if self._device.type == "cpu" and free is not None and self._mib * size > MEMORY_SHARE * free / 2**20:
            return None
        batch = self._inputs[torch.arange(size) % len(self._inputs)]
        try:
            reset = self._device.type == "cpu" and reset_peak_memory(self._device)
            before = peak_memory(self._device)
            self._timed(batch)
            if reset:
                self._mib = (peak_memory(self._device) - before) / size
            times = [self._timed(batch)]
            while len(times) < PASSES and sum(times) < ENOUGH_SECONDS:
                times.append(self._timed(batch))
        except (RuntimeError, MemoryError) as error:
            if not memory_failed(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        return min(times)

    def _timed(self, batch: Tensor) -> float:
        began = device_seconds(self._device)
        with autocast(self._device, self._precision), self._guarded():
            self._method.predict_inputs(to_unit(batch, self._device), [1] * len(batch))
        return device_seconds(self._device) - began

    def _guarded(self) -> AbstractContextManager[object]:
        return guarded(call_name(self._method, "predict"), briefly=True)
