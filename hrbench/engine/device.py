"""The device that a run computes on: its choice, its name, and the most memory that a phase took."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import re
import resource
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from hrbench._util.memory import host_memory
from hrbench.engine.views import View
from hrbench.errors import HrbenchError

__all__ = [
    "MemoryPeaks",
    "check_memory",
    "device_identity",
    "device_name",
    "device_seconds",
    "free_on_gpu",
    "largest_peaks",
    "memory_failed",
    "peak_memory",
    "pick_device",
    "reset_peak_memory",
]


def pick_device(name: str) -> torch.device:
    """Return the torch device called `name`; ``auto`` is the first GPU, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" has shapes only
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise HrbenchError(f"device {name!r} cannot be used: {reason}; try auto or cpu") from None
    return device


def check_memory(view: View, device: torch.device) -> None:
    """Raise an error if a single input of a view takes more than all memory of the device."""
    height, width = view.tile
    # Float32 for the network; where that is the host, also the 8-bit image that it is made of.
    needed, there = (12 if device.type == "cuda" else 15) * height * width, _memory(device)
    if there is not None and needed > there:
        raise HrbenchError(
            f"view {view.text!r}: one input of {height}x{width} pixels takes {needed / 2**30:.1f} GiB before any layer "
            f"of a network, {device} has {there / 2**30:.1f} GiB; expected a view with smaller inputs, as tiled:512:128"
        )


def memory_failed(error: BaseException) -> bool:
    """Tell whether an error says that memory could not be had, of the host or of a GPU."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)


def _memory(device: torch.device) -> int | None:
    """Return the bytes of the GPU, or of the host; None if unknown."""
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        return int(properties.total_memory)
    return host_memory()


def free_on_gpu(device: torch.device) -> int:
    """Return the bytes of a GPU that this process can still take, those included that torch holds in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def device_seconds(device: torch.device) -> float:
    """Return the time, in seconds from some moment, at which a device has done all that was asked of it so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return perf_counter()


def device_name(device: torch.device) -> str:
    """Return the device's name for people: that of the GPU, or of the processor with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    named = _processor() if device.type == "cpu" else device.type
    return f"{named} ({threads} thread{'s' * (threads > 1)})"


def device_identity(device: torch.device) -> str:
    """Return what tells a device from others of the same host, however processes count those that they see."""
    if device.type != "cuda":
        return device.type
    properties: Any = torch.cuda.get_device_properties(device)
    return f"cuda-{getattr(properties, 'uuid', device.index or 0)}"


def _processor() -> str:
    """Return the processor's name; its architecture where the system tells no name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name" and name.strip():
                return re.sub(r"\(R\)|\(TM\)", "", " ".join(name.split()))
    return f"{platform.processor() or platform.machine() or 'unknown'} CPU"


def reset_peak_memory(device: torch.device) -> bool:
    """Count peaks from now on, without what is freed; return whether the host's could be set back: only Linux can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # glibc keeps what was freed, gigabytes at times
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return _resident_peak() is not None


def peak_memory(device: torch.device) -> float:
    """Return MiB since peaks were set back: allocated on a GPU; resident in this process on any other device.

    Where the host's peak cannot be set back, it is that of the process since it began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    resident = _resident_peak()
    if resident is not None:
        return resident
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _resident_peak() -> float | None:
    """Return the largest resident set in MiB as Linux counts it; None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) / 2**10 if match else None


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
        return {
            "peak_host_mib": peak_memory(torch.device("cpu")),
            "peak_host_since": self._since,
            "peak_device_mib": peak_memory(self._device) if self._device.type == "cuda" else None,
        }


def largest_peaks(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the records of the parts of a phase, which several processes may have done; empty if there is none."""
    measured = [record for record in records if record]
    if not measured:
        return {}
    devices = [record["peak_device_mib"] for record in measured if record["peak_device_mib"] is not None]
    return {
        "peak_host_mib": max(record["peak_host_mib"] for record in measured),
        "peak_host_since": "process" if any(r["peak_host_since"] == "process" for r in measured) else "phase",
        "peak_device_mib": max(devices, default=None),
    }
