"""From the merged maps of an image to its anomaly map on the host: ``finish``, fusion, and the check for NaN."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hrbench._util.guard import call_name, guarded
from hrbench.contract import check_final
from hrbench.data.sample import Sample
from hrbench.engine.device_timer import Span, mark, seconds_of
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import NativeMaps
from hrbench.errors import HrbenchError
from hrbench.method import Method

__all__ = ["AnomalyMap", "finish", "finish_looks"]


@dataclass(frozen=True)
class AnomalyMap:
    """The anomaly map of one image, which may still be on its way from a GPU to the host.

    Attributes
    ----------
    sample : Sample
    source : str
        Name of the method, for errors.
    map_ : Tensor
        (H, W) float32 in the host's memory.
    decided : Tensor or None
        (H, W) bool in the host's memory: the method's own decision.
    extremes : Tensor
        (looks, 2) float32 in the host's memory: the least and greatest score of each look, NaN if one is NaN.
    spans : tuple of Span
        When the device worked on the image; all is there when the last one has ended.
    """

    sample: Sample
    source: str
    map_: Tensor
    decided: Tensor | None
    extremes: Tensor
    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """The image's share of the forward passes, its merging, ``finish`` and the way to the host."""
        return seconds_of(self.spans)

    def scores(self) -> npt.NDArray[np.float32]:
        """Wait for the map and return it, (H, W) float32; scores that are not finite are an error."""
        seconds_of(self.spans)
        _check_finite(self.extremes, self.sample, self.source)
        scores: npt.NDArray[np.float32] = self.map_.numpy()
        return scores

    def decision(self) -> npt.NDArray[np.bool_] | None:
        """Wait for the method's own decision and return it, (H, W) bool; None if it has none."""
        seconds_of(self.spans)
        return None if self.decided is None else self.decided.numpy()


@torch.no_grad()
def finish(method: Method, item: NativeMaps, fusion: Fusion | None = None) -> AnomalyMap:
    """Let the method finish the maps of one image, fuse those of several looks, and send the result to the host.

    On a GPU this only queues the work.

    Raises
    ------
    HrbenchError
        For what is no map of the image's size, see :mod:`hrbench.contract`.
    """
    device = next(iter(item.looks[0].values())).device
    started = mark(device)
    finals = _finals(method, item)
    extremes = _to_host(_extremes(finals))
    map_ = _to_host(finals[0] if fusion is None else fusion(finals))
    decided = None if item.decision is None else _to_host(item.decision)
    spans = (*item.spans, (started, mark(device), 1.0))
    return AnomalyMap(item.sample, type(method).__name__, map_, decided, extremes, spans)


@torch.no_grad()
def finish_looks(method: Method, item: NativeMaps) -> list[Tensor]:
    """Return the method's anomaly map of each look at one image, (H, W) float32 on the device, checked."""
    finals = _finals(method, item)
    _check_finite(_extremes(finals).cpu(), item.sample, type(method).__name__)
    return finals


def _finals(method: Method, item: NativeMaps) -> list[Tensor]:
    finals = []
    for maps, (left, right, top, bottom) in zip(item.looks, item.pads or [(0, 0, 0, 0)] * len(item.looks), strict=True):
        with guarded(call_name(method, "finish"), briefly=True):
            final = method.finish(maps)
        size = next(iter(maps.values())).shape
        final = check_final(method, final, size, item.sample.id).float()
        finals.append(final[top : size[0] - bottom, left : size[1] - right].contiguous())
    return finals


def _extremes(maps: list[Tensor]) -> Tensor:
    """Return the least and greatest score of each map, which are finite if all are: no mask of all pixels is made."""
    return torch.stack([torch.stack(map_.aminmax()) for map_ in maps])


def _check_finite(extremes: Tensor, sample: Sample, source: str) -> None:
    if not extremes.isfinite().all():
        raise HrbenchError(
            f"{sample.id}: {source} gave an anomaly map with NaN or infinite pixels, expected finite scores"
        )


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
