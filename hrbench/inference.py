"""From image files to native anomaly maps: decode, tile, predict in batches across images, merge."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hrbench.data.sample import Sample
from hrbench.errors import HrbenchError
from hrbench.imaging import read_image
from hrbench.method import Method
from hrbench.views import AnyView, Canvas, Placement, stack_tiles, to_unit

__all__ = ["NativeMaps", "predict"]

log = logging.getLogger("hrbench")

WORKERS = 2
AHEAD = 4  # decoded images that wait


@dataclass(frozen=True)
class NativeMaps:
    """A method's merged maps of one image.

    Attributes
    ----------
    sample : Sample
    parts : tuple of dict of str to Tensor
        Per view: (H, W) float32 on the device, as the method named them. One view, unless several are fused.
    decision : ndarray of bool, (H, W), or None
        Of all views: a pixel is called if any view calls it.
    seconds : float
        Share of the forward passes' time that fell to this image, and its merging.
    """

    sample: Sample
    parts: tuple[dict[str, Tensor], ...]
    decision: npt.NDArray[np.bool_] | None
    seconds: float

    @property
    def maps(self) -> dict[str, Tensor]:
        """The maps of the only view."""
        (only,) = self.parts
        return only


@dataclass
class _Part:
    """An image through one view."""

    placement: Placement
    canvases: dict[str, Canvas] = field(default_factory=dict)
    decision: Canvas | None = None


@dataclass
class _Pending:
    """An image whose inputs are partly predicted."""

    sample: Sample
    parts: list[_Part]
    done: int = 0
    seconds: float = 0.0

    def __len__(self) -> int:
        """Return the number of inputs, those of all views."""
        return sum(len(part.placement) for part in self.parts)

    def finish(self) -> NativeMaps:
        started = time.perf_counter()
        maps = tuple({name: canvas.result() for name, canvas in part.canvases.items()} for part in self.parts)
        decision: npt.NDArray[np.bool_] | None = None
        for part in self.parts:
            if part.decision is not None:
                called = part.decision.result(nearest=True).cpu().numpy() > 0.5
                decision = called if decision is None else decision | called
        return NativeMaps(self.sample, maps, decision, self.seconds + time.perf_counter() - started)


@dataclass(frozen=True)
class _Input:
    """One tile that waits for its batch."""

    image: _Pending
    part: _Part
    index: int
    pixels: Tensor


def predict(
    method: Method, samples: Sequence[Sample], view: AnyView, device: torch.device, *, batch_size: int = 8
) -> Iterator[NativeMaps]:
    """Yield the native maps of every sample, in order.

    Images are decoded ahead by worker threads, once for all views; batches are filled across views and images.
    Memory holds a bounded number of images, and one map per view of each image in the batch. A batch that does not fit
    into the device's memory is halved, and so are those that follow.

    Parameters
    ----------
    method : Method
        On `device`; put into eval mode.
    samples : sequence of Sample
    view : View or FusedView
    device : torch.device
    batch_size : int
        Tiles per forward pass.

    Raises
    ------
    HrbenchError
        For a bad image file, maps of another shape than the batch's, or a device too small for a single input.
    """
    method.eval()
    queue: list[_Input] = []
    pending: deque[_Pending] = deque()

    def ready() -> Iterator[NativeMaps]:
        while pending and pending[0].done == len(pending[0]):
            yield pending.popleft().finish()

    def forward() -> None:
        nonlocal batch_size
        batch = queue[:batch_size]
        if _forward(method, batch, device):
            del queue[: len(batch)]
        else:
            batch_size = _halved(batch, device)

    for sample, looks in _decoded(samples, view):
        image = _Pending(sample, [_Part(placement) for _, placement in looks])
        pending.append(image)
        for part, (prepared, placement) in zip(image.parts, looks, strict=True):
            for index in range(len(placement)):
                queue.append(_Input(image, part, index, placement.cut(prepared, index)))
                while len(queue) >= batch_size:
                    forward()
        yield from ready()
    while queue:
        forward()
    yield from ready()


def _decoded(samples: Sequence[Sample], view: AnyView) -> Iterator[tuple[Sample, list[tuple[Tensor, Placement]]]]:
    def look(sample: Sample) -> list[tuple[Tensor, Placement]]:
        pixels = read_image(sample.image)
        return [part.prepare(pixels) for part in view.parts]

    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[tuple[Sample, Future[list[tuple[Tensor, Placement]]]]] = deque()
        for sample in samples:
            waiting.append((sample, pool.submit(look, sample)))
            if len(waiting) > AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _halved(batch: list[_Input], device: torch.device) -> int:
    """Return the size of the batches to try where `batch` was too large for the device."""
    if len(batch) == 1:
        height, width = batch[0].pixels.shape[1:]
        raise HrbenchError(
            f"{batch[0].image.sample.id}: the memory of {device} is too small for one input of {height}x{width} "
            "pixels; expected a view with smaller inputs, or another device"
        )
    size = len(batch) // 2
    log.warning("%s is out of memory with %d inputs at a time, going on with %d", device, len(batch), size)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return size


@torch.no_grad()
def _forward(method: Method, queue: list[_Input], device: torch.device) -> bool:
    """Predict the inputs and blend them into their images' maps; return False if they were too many for the device."""
    started = time.perf_counter()
    method.inputs_per_image = [len(item.image) for item in queue]
    try:
        prediction = method.predict(to_unit(stack_tiles([item.pixels for item in queue]), device))
    except torch.cuda.OutOfMemoryError:  # the name that torch 2.4 has; nothing was blended yet
        return False
    finally:
        method.inputs_per_image = None
    for name, maps in prediction.maps.items():
        if maps.ndim != 3 or maps.shape[0] != len(queue):
            raise HrbenchError(
                f"{type(method).__name__}.predict: map {name!r} has shape {tuple(maps.shape)}, "
                f"expected ({len(queue)}, h, w)"
            )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    for position, item in enumerate(queue):
        part = item.part
        for name, maps in prediction.maps.items():
            if name not in part.canvases:
                part.canvases[name] = Canvas(part.placement, device)
            part.canvases[name].add(item.index, maps[position])
        if prediction.decision is not None:
            part.decision = part.decision or Canvas(part.placement, device)
            part.decision.add_decision(item.index, prediction.decision[position])
        item.image.done += 1
    share = (time.perf_counter() - started) / len(queue)
    for item in queue:
        item.image.seconds += share
    return True
