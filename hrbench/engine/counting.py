"""An anomaly map counted where it lies: to the last bit what :mod:`hrbench.evidence.histograms` counts on the host.

A map of 4 bytes a pixel need not come to the host then. What does are its filled bins, of 8 bytes each, and the scores
of pixels that are wanted one by one; their places go to the device, 4 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hrbench.engine.transfers import fetched, to_device
from hrbench.imaging.pixel_count import PixelCount

__all__ = ["count_pixels"]

PIECE = 1 << 22  # pixels at a time
LOWEST = -(1 << 31)  # the bits of -0


@torch.no_grad()
def count_pixels(
    map_: Tensor,
    decision: Tensor | None,
    places: npt.NDArray[np.int64],
    *,
    shift: int,
    top: int = 0,
    moments: bool = False,
) -> PixelCount:
    """Count a map on its device, for which the host waits once, and again where a map has uncommonly many bins.

    Beside the map this takes some 30 bytes of memory for each of 4 million pixels at most, 125 MB however large the map
    is (measured on a CPU, results/bench_evidence.md), and with `top` what :func:`torch.topk` takes for the whole map.

    Parameters
    ----------
    map_ : (H, W) float32
        What is not finite gives keys without a meaning; the extremes tell.
    decision : (H, W) bool, optional
        The method's own, on the same device.
    places : (P,) int64
        Flat indices of the pixels whose scores are wanted.
    shift : int
        Low bits that the keys lack, at least 1.
    top : int
        How many of the highest scores are wanted.
    moments : bool
        Whether mean and standard deviation are.
    """
    pixels, device = map_.reshape(-1), map_.device
    pieces = torch.split(pixels.view(torch.int32), PIECE)
    rooms = [_room(len(piece)) for piece in pieces]
    at = to_device(torch.from_numpy(places.astype(np.int32)), device)
    flags = torch.zeros(1, dtype=torch.bool, device=device) if decision is None else decision.reshape(-1)
    extremes, numbers, scores, decided, highest, sums, *bins = fetched(
        torch.stack(pixels.aminmax()),
        torch.stack([_dropped(pieces, shift), _total(flags)]),
        pixels.index_select(0, at),
        flags[:0] if decision is None else flags.index_select(0, at),
        pixels.topk(top, sorted=False).values if top else pixels[:0],
        _moments(pixels) if moments else pixels[:0],
        *(part for piece, room in zip(pieces, rooms, strict=True) for part in _bins(piece, shift, room)),
    )
    found = []
    for piece, room, filled, *parts in zip(pieces, rooms, bins[::3], bins[1::3], bins[2::3], strict=True):
        number = int(filled)
        if number > room:
            _, *parts = fetched(*_bins(piece, shift, number))
        found.append([part[:number].clone().numpy().view(np.uint32) for part in parts])
    keys, counts = _joined(found)
    dropped, decisions = numbers.tolist()
    low, high = extremes.tolist()
    return PixelCount(
        keys=keys,
        counts=counts,
        low=low,
        high=high,
        dropped=dropped != 0,
        scores=scores.numpy(),
        decided=None if decision is None else decided.numpy(),
        decisions=None if decision is None else decisions,
        top=highest.numpy() if top else None,
        moments=(float(sums[0]), float(sums[1])) if moments else None,
    )


def _room(pixels: int) -> int:
    """Return how many bins of so many pixels travel unasked, for their number is the device's: half a megabyte's."""
    return min(pixels, max(1 << 16, pixels >> 5))


def _bins(bits: Tensor, shift: int, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count scores, given by their bits, under their keys; return how many keys there are, the first ones, and counts.

    All are int32, (1,) and twice (room,), with counts of 0 where there are fewer keys. No shape depends on values, for
    which the host would have to wait. Sorting costs the same for all maps: pixels that are alike take turns at a table
    of bins, and torch's deterministic algorithms, which jobs ask for, would fill one by sorting too.
    """
    keys = _keys(bits, shift).sort().values
    begins = torch.ones_like(keys, dtype=torch.bool)
    begins[1:] = keys[1:] != keys[:-1]
    number = begins.cumsum(0, dtype=torch.int32)
    starts = torch.searchsorted(
        number, torch.arange(1, room + 2, dtype=torch.int32, device=bits.device), out_int32=True
    )
    return number[-1:].clone(), keys.index_select(0, starts[:-1].clamp(max=len(keys) - 1)), starts.diff()


def _keys(bits: Tensor, shift: int) -> Tensor:
    """Return the keys of scores from their bits, both int32."""
    bits = bits.masked_fill(bits == LOWEST, 0)  # -0 is +0
    keys = bits >> 31  # all ones below zero: every bit turns; else none but the sign
    keys |= LOWEST
    keys ^= bits
    keys >>= shift  # which repeats the sign
    keys &= (1 << (32 - shift)) - 1
    return keys


def _joined(parts: Sequence[Sequence[npt.NDArray[np.uint32]]]) -> Sequence[npt.NDArray[np.uint32]]:
    """Return rising keys and counts of all parts together."""
    if len(parts) == 1:
        return parts[0]
    keys, rows = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    counts = np.zeros(keys.size, np.uint32)
    np.add.at(counts, rows, np.concatenate([counts for _, counts in parts]))
    return keys, counts


def _dropped(pieces: Iterable[Tensor], shift: int) -> Tensor:
    """Return a number that is zero if no low bit is set anywhere: the greatest, for torch joins no bits by ``or``."""
    return torch.stack([(piece & ((1 << shift) - 1)).amax() for piece in pieces]).amax()


def _total(flags: Tensor) -> Tensor:
    return torch.stack([piece.sum(dtype=torch.int32) for piece in torch.split(flags, PIECE)]).sum(dtype=torch.int32)


def _moments(pixels: Tensor) -> Tensor:
    """Return mean and standard deviation: no other function makes the device compute in float64."""

    def mean(pieces: Iterable[Tensor]) -> Tensor:
        return torch.stack([piece.sum() for piece in pieces]).sum() / len(pixels)

    centre = mean(piece.double() for piece in torch.split(pixels, PIECE))
    variance = mean((piece.double() - centre).square_() for piece in torch.split(pixels, PIECE))
    return torch.stack([centre, variance.sqrt()])
