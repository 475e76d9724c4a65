"""The one error that a user's mistake raises, and what ends jobs early."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UNFINISHED_STATUS", "Halted", "HrbenchError", "Stopped", "unknown_name"]

UNFINISHED_STATUS = 75  # EX_TEMPFAIL: the same command goes on later


class HrbenchError(ValueError):
    """A mistake in the input: names the file or option, what was found and what was expected.

    The command line prints its message without a traceback and exits with status 2.
    """


class Halted(Exception):  # noqa: N818 - whoever has started it need not have made a mistake
    """Nothing can go on, whatever the job, as on a full or read-only disk; what was finished is kept.

    A grid ends at once. The command line exits with :data:`UNFINISHED_STATUS`: the same command goes on later.
    """


class Stopped(Exception):  # noqa: N818 - no error
    """Work ends early because it was asked to; what was finished is kept, and the same job continues there."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HrbenchError:
    """Return the error for a look-up that failed, with the nearest and all known names.

    Examples
    --------
    >>> str(unknown_name("method", "fastflw", ["fastflow", "l2bt"]))
    "unknown method 'fastflw'; did you mean 'fastflow'? Known: fastflow, l2bt"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return HrbenchError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known) or 'none'}")
