"""What a run costs: time per image from its evidence, and the most memory that a phase of it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hrbench.origin import peak_memory, reset_peak_memory

if TYPE_CHECKING:
    import torch

__all__ = ["MemoryPeaks", "largest_peaks", "timing"]


def timing(images: pd.DataFrame, pixels: Mapping[str, int]) -> dict[str, Any]:
    """Return what prediction took, from the table of images of the evidence.

    The seconds of an image are the method's: its share of the forward passes, merging and ``finish``; not decoding, not
    evidence. No image is left out as a warm-up: in every attempt of a job the held-out normal images go the same way
    before the first test image does.

    Parameters
    ----------
    images : DataFrame
        Columns id and seconds, one row per image; see :class:`hrbench.evidence.Evidence`.
    pixels : mapping of str to int
        Native pixels of the images by id: evidence of a low-resolution protocol does not know them.

    Returns
    -------
    dict
        ``timed_images``, ``predict_seconds``, ``megapixels_per_second`` ``ms_median`` and ``ms_p95``
        per image. Empty where no image has a time, as those whose maps another tool made.
    """
    timed = images[images["seconds"].notna()]
    if timed.empty:
        return {}
    seconds = timed["seconds"].to_numpy()
    native = sum(pixels[name] for name in timed["id"])
    return {
        "timed_images": len(timed),
        "predict_seconds": float(seconds.sum()),
        "megapixels_per_second": native / 1e6 / float(seconds.sum()),
        "ms_median": float(1e3 * np.median(seconds)),
        "ms_p95": float(1e3 * np.quantile(seconds, 0.95)),
    }


class MemoryPeaks:
    """The most memory that this process takes from now on.

    Where the system cannot count the host's anew (anything but Linux), that is the most since the process began, which
    an earlier job may have taken; the record says which.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._since = "phase" if reset_peak_memory(device) else "process"

    def record(self) -> dict[str, Any]:
        """Return ``peak_host_mib``, ``peak_host_since`` and ``peak_device_mib``, which is None on a CPU."""
        import torch

        return {
            "peak_host_mib": peak_memory(torch.device("cpu")),
            "peak_host_since": self._since,
            "peak_device_mib": peak_memory(self._device) if self._device.type == "cuda" else None,
        }


def largest_peaks(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the records of the parts of a phase, which several processes may have done; empty if there is none."""
    known = [record for record in records if record]
    if not known:
        return {}
    devices = [record["peak_device_mib"] for record in known if record["peak_device_mib"] is not None]
    return {
        "peak_host_mib": max(record["peak_host_mib"] for record in known),
        "peak_host_since": "process" if any(r["peak_host_since"] == "process" for r in known) else "phase",
        "peak_device_mib": max(devices, default=None),
    }
