"""How much memory this process may have."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["free_memory", "host_memory"]

_CONTAINER = Path("/sys/fs/cgroup")


def host_memory() -> int | None:
    """Return the bytes of the host that its container leaves to this process; None if unknown."""
    try:
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no POSIX
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        host = min(host, int((_CONTAINER / "memory.max").read_text(encoding="ascii")))
    return host


def free_memory() -> int | None:
    """Return the bytes of the host, or of what its container leaves, that nobody needs now; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(1024 * int(_numbers(Path("/proc/meminfo"))["MemAvailable:"]))
    with contextlib.suppress(OSError, ValueError, KeyError):
        most, used = (int((_CONTAINER / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        found.append(most - used + int(_numbers(_CONTAINER / "memory.stat")["inactive_file"]))  # files can be dropped
    return min(found, default=None)


def _numbers(path: Path) -> dict[str, str]:
    """Return the second word of each line by the first."""
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    return {words[0]: words[1] for words in lines if len(words) > 1}
