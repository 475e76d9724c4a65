"""Figures in words."""

from __future__ import annotations

__all__ = ["duration", "held_out_text", "nbytes"]


def duration(seconds: float) -> str:
    """Return a duration as people say it.

    Examples
    --------
    >>> [duration(x) for x in (0.4, 12.2, 80, 3720, 201_600)]
    ['1 s', '12 s', '1 min 20 s', '1 h 2 min', '2 d 8 h']
    """
    whole = max(1, round(seconds))
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def held_out_text(share: float | None) -> str:
    """Return what share of the normal training images was held out; nothing for the default.

    Examples
    --------
    >>> [held_out_text(x) for x in (None, 0.0, 0.125)]
    ['', 'none held out', '12.5 % held out']
    """
    if share is None:
        return ""
    return f"{100 * share:g} % held out" if share else "none held out"


def nbytes(count: int) -> str:
    """Return a number of bytes as people say it.

    Examples
    --------
    >>> [nbytes(x) for x in (0, 2000, 3 << 20, 5 << 29)]
    ['0 bytes', '2.0 KiB', '3.0 MiB', '2.5 GiB']
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
