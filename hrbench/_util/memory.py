"""How much memory this process may have."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["host_memory"]


def host_memory() -> int | None:
    """Return the bytes of the host that its container leaves to this process; None if unknown."""
    try:
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no POSIX
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        host = min(host, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return host
