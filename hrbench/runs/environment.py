"""Where a number comes from: code, libraries and platform, as every run records them."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["environment"]


def environment() -> dict[str, str]:
    """Return versions of hrbench, its commit, the libraries that shape results, Python and the platform."""
    return {
        "hrbench": _installed("hrbench"),
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
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "release"
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
