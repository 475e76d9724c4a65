"""From the merged maps of an image to its anomaly map: ``finish``, fusion, the check for NaN, the way to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hrbench._util.guard import call_name, guarded
from hrbench.contract import check_final
from hrbench.data.sample import Sample
from hrbench.engine.counting import count_pixels
from hrbench.engine.device_timer import Span, mark, seconds_of
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import NativeMaps
from hrbench.engine.transfers import fetched, to_host
from hrbench.errors import HrbenchError
from hrbench.imaging.pixel_count import PixelCount
from hrbench.method import Method

__all__ = ["AnomalyMap", "finish", "finish_looks"]

COUNTING = frozenset({"cuda"})  # kinds of devices that count maps faster than the host could fetch them


@dataclass(frozen=True)
class AnomalyMap:
    """The anomaly map of one image, which a GPU may still be working on.

    Attributes
    ----------
    sample : Sample
    source : str
        Name of the method, for errors.
    map_ : Tensor
        (H, W) float32 where the method left it.
    decided : Tensor or None
        (H, W) bool there: the method's own decision.
    extremes : Tensor
        (looks, 2) float32 in the host's memory: the least and greatest score of each look, NaN if one is NaN.
    spans : tuple of Span
        When the device worked on the image; all is there when the last one has ended.
    sent : tuple of Tensor, or None
        Map, and decision if there is one, in the host's memory; None where they were not asked for.
    """

    sample: Sample
    source: str
    map_: Tensor
    decided: Tensor | None
    extremes: Tensor
    spans: tuple[Span, ...]
    sent: tuple[Tensor, ...] | None

    @property
    def seconds(self) -> float:
        """The image's share of the forward passes, its merging, ``finish`` and what was sent to the host."""
        return seconds_of(self.spans)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.map_.shape
        return height, width

    @property
    def elsewhere(self) -> bool:
        """Whether the map is better counted where it lies, by :meth:`counted`, than in the host's memory."""
        places = [self.map_.device.type, *([] if self.decided is None else [self.decided.device.type])]
        return all(place in COUNTING for place in places)

    def scores(self) -> npt.NDArray[np.float32]:
        """Wait for the map and return it, (H, W) float32; scores that are not finite are an error."""
        scores: npt.NDArray[np.float32] = self._here()[0].numpy()
        _check_finite(self.extremes, self.sample, self.source)
        return scores

    def decision(self) -> npt.NDArray[np.bool_] | None:
        """Wait for the method's own decision and return it, (H, W) bool; None if it has none."""
        return None if self.decided is None else self._here()[1].numpy()

    def counted(self, places: npt.NDArray[np.int64], *, shift: int, top: int = 0, moments: bool = False) -> PixelCount:
        """Wait for what :func:`hrbench.engine.counting.count_pixels` finds of map and decision where they lie.

        Where the device has no memory left for it, that is in the host's.
        """
        asked = partial(count_pixels, places=places, shift=shift, top=top, moments=moments)
        try:
            count = asked(self.map_, self.decided)
        except torch.cuda.OutOfMemoryError:
            count = asked(self.map_.cpu(), None if self.decided is None else self.decided.cpu())
        _check_finite(self.extremes, self.sample, self.source)
        return count

    def _here(self) -> Sequence[Tensor]:
        """Wait for map, and decision if there is one, in the host's memory."""
        if self.sent is None:
            return fetched(self.map_, *([] if self.decided is None else [self.decided]))
        seconds_of(self.spans)
        return self.sent


@torch.no_grad()
def finish(method: Method, item: NativeMaps, fusion: Fusion | None = None, *, whole: bool = True) -> AnomalyMap:
    """Let the method finish the maps of one image, and fuse those of several looks.

    On a GPU this only queues the work.

    Parameters
    ----------
    method : Method
    item : NativeMaps
    fusion : Fusion, optional
    whole : bool
        Send the result to the host. What is not sent can be counted, or takes a wait when it is asked for.

    Raises
    ------
    HrbenchError
        For what is no map of the image's size, see :mod:`hrbench.contract`.
    """
    device = next(iter(item.looks[0].values())).device
    started = mark(device)
    finals = _finals(method, item)
    extremes = to_host(_extremes(finals))
    map_ = finals[0] if fusion is None else fusion(finals)
    parts = (map_,) if item.decision is None else (map_, item.decision)
    sent = tuple(to_host(part) for part in parts) if whole else None
    spans = (*item.spans, (started, mark(device), 1.0))
    return AnomalyMap(item.sample, type(method).__name__, map_, item.decision, extremes, spans, sent)


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
