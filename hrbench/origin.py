"""Where a number comes from: code, libraries, device and memory, as every run records them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import re
import resource
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import hrbench
from hrbench.errors import HrbenchError

if TYPE_CHECKING:  # torch is imported when a device is used: scoring finished maps needs none
    import torch

__all__ = ["device_name", "environment", "peak_memory", "pick_device", "reset_peak_memory"]


def pick_device(name: str) -> torch.device:
    """Return the torch device called `name`; ``auto`` is the first GPU, else the CPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise HrbenchError(f"device {name!r} cannot be used: {reason}; try auto or cpu") from None
    return device


def device_name(device: torch.device) -> str:
    """Return the device's name for people: that of the GPU, or of the processor with the number of threads."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    named = _processor() if device.type == "cpu" else device.type
    return f"{named} ({threads} thread{'s' * (threads > 1)})"


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
    import torch

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
    import torch

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
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 2**10 if found else None


def environment() -> dict[str, str]:
    """Return versions of hrbench, its commit, the libraries that shape results, Python and the platform."""
    return {
        "hrbench": hrbench.__version__,
        "commit": _commit(),
        **{name: _installed(name) for name in ("torch", "timm", "numpy", "scipy")},
        "python": platform.python_version(),
        "platform": re.sub(r"-with.*", "", platform.platform()),
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    """Return the checkout's commit, marked if it has changes; ``release`` for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "release"
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
