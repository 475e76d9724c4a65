"""Notes of jobs that failed, beside their folders: processes that share the jobs do not all fail at the same one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hrbench._util.files import atomic
from hrbench.errors import HrbenchError
from hrbench.runs.store import RunFolder

__all__ = ["FailureNotes"]


class FailureNotes:
    """The notes of other processes since this object was made; what failed before is tried again.

    Parameters
    ----------
    folders : iterable of RunFolder
        Of all jobs.
    """

    def __init__(self, folders: Iterable[RunFolder]) -> None:
        self._before = {folder.failed: _stamp(folder.failed) for folder in folders}

    def elsewhere(self, folder: RunFolder) -> HrbenchError | None:
        """Return the error that another process has ended the job with meanwhile; None if there is none."""
        if _stamp(folder.failed) in (None, self._before.get(folder.failed)):
            return None
        try:
            note = json.loads(folder.failed.read_text(encoding="utf-8"))
            return HrbenchError(f"failed on {note['host']}: {note['error']}")
        except (OSError, ValueError, KeyError, TypeError):  # taken away meanwhile, or no note of ours
            return None

    def write(self, folder: RunFolder, job: str, error: BaseException) -> None:
        """Note that a job has failed here, if that can be written: the error itself is told anyhow."""
        text = str(error) or type(error).__name__
        with suppress(HrbenchError, OSError), atomic(folder.failed) as path:
            path.write_text(json.dumps({"job": job, "host": socket.gethostname(), "error": text}), encoding="utf-8")

    def clear(self, folder: RunFolder) -> None:
        """Forget the note of a job that has ended well."""
        folder.failed.unlink(missing_ok=True)


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
