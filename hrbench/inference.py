"""From image files to native anomaly maps: decode, tile, predict in batches across images, merge."""

from __future__ import annotations

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
from hrbench.views import Canvas, Placement, View, stack_tiles, to_unit

__all__ = ["NativeMaps", "predict"]

WORKERS = 2
AHEAD = 4  # decoded images that wait


@dataclass(frozen=True)
class NativeMaps:
    """A method's merged maps of one image.

    Attributes
    ----------
    sample : Sample
    maps : dict of str to Tensor
        (H, W) float32 on the device, as the method named them.
    decision : ndarray of bool, (H, W), or None
    seconds : float
        Share of the forward passes' time that fell to this image, and its merging.
    """

    sample: Sample
    maps: dict[str, Tensor]
    decision: npt.NDArray[np.bool_] | None
    seconds: float


@dataclass
class _Pending:
    """An image whose tiles are partly predicted."""

    sample: Sample
    placement: Placement
    canvases: dict[str, Canvas] = field(default_factory=dict)
    decision: Canvas | None = None
    done: int = 0
    seconds: float = 0.0

    def finish(self) -> NativeMaps:
        started = time.perf_counter()
        maps = {name: canvas.result() for name, canvas in self.canvases.items()}
        decision = None
        if self.decision is not None:
            decision = self.decision.result(nearest=True).cpu().numpy() > 0.5
        return NativeMaps(self.sample, maps, decision, self.seconds + time.perf_counter() - started)


def predict(
    method: Method, samples: Sequence[Sample], view: View, device: torch.device, *, batch_size: int = 8
) -> Iterator[NativeMaps]:
    """Yield the native maps of every sample, in order.

    Images are decoded ahead by worker threads; batches are filled across images. Memory holds a bounded number
    of images, and one map per image in the batch.

    Parameters
    ----------
    method : Method
        On `device`; put into eval mode.
    samples : sequence of Sample
    view : View
    device : torch.device
    batch_size : int
        Tiles per forward pass.
    """
    method.eval()
    queue: list[tuple[_Pending, int, Tensor]] = []
    pending: deque[_Pending] = deque()

    def ready() -> Iterator[NativeMaps]:
        while pending and pending[0].done == len(pending[0].placement):
            yield pending.popleft().finish()

    for sample, prepared, placement in _decoded(samples, view):
        image = _Pending(sample, placement)
        pending.append(image)
        for index in range(len(placement)):
            queue.append((image, index, placement.cut(prepared, index)))
            if len(queue) == batch_size:
                _forward(method, queue, device)
                queue.clear()
        yield from ready()
    if queue:
        _forward(method, queue, device)
    yield from ready()


def _decoded(samples: Sequence[Sample], view: View) -> Iterator[tuple[Sample, Tensor, Placement]]:
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[tuple[Sample, Future[tuple[Tensor, Placement]]]] = deque()
        for sample in samples:
            waiting.append((sample, pool.submit(lambda s: view.prepare(read_image(s.image)), sample)))
            if len(waiting) > AHEAD:
                done, future = waiting.popleft()
                yield done, *future.result()
        for done, future in waiting:
            yield done, *future.result()


@torch.no_grad()
def _forward(method: Method, queue: list[tuple[_Pending, int, Tensor]], device: torch.device) -> None:
    started = time.perf_counter()
    batch = to_unit(stack_tiles([tile for _, _, tile in queue]), device)
    method.inputs_per_image = [len(image.placement) for image, _, _ in queue]
    try:
        prediction = method.predict(batch)
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
    for position, (image, index, _) in enumerate(queue):
        for name, maps in prediction.maps.items():
            canvas = image.canvases.setdefault(name, Canvas(image.placement, device))
            canvas.add(index, maps[position])
        if prediction.decision is not None:
            image.decision = image.decision or Canvas(image.placement, device)
            image.decision.add_decision(index, prediction.decision[position])
        image.done += 1
    share = (time.perf_counter() - started) / len(queue)
    for image, _, _ in queue:
        image.seconds += share
