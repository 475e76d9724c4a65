"""Which runs were verified: written by ``hrbench verify --record``, read by reports, which compute nothing anew."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from hrbench._util.files import atomic
from hrbench._util.received import file_digest, read_json
from hrbench._util.types import Mismatch, conform
from hrbench.errors import HrbenchError
from hrbench.runs.environment import environment
from hrbench.runs.store import RunFolder
from hrbench.runs.submission import NAME as SUBMISSION
from hrbench.runs.submission import Submission, read_submission, submission_of
from hrbench.runs.tables import TABLES
from hrbench.runs.verification import Verification

__all__ = ["NAME", "Origin", "origin_of", "record_verified"]

NAME = "verified.json"
SCHEMA = 1
_LARGEST = 1 << 26  # bytes
_LEVELS = 6  # from a run's folder, or that of its submission, up to where the file is looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    sha256: str
    verified: bool
    when: str
    hrbench: str
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Origin:
    """Who published a run, and what came of verifying it.

    Attributes
    ----------
    submission : Submission or None
        None for a run that was not published.
    verified : bool or None
        None where nobody has recorded it of the files as they are.
    when : str
        When it was recorded, ISO 8601 in UTC.
    """

    submission: Submission | None = None
    verified: bool | None = None
    when: str = ""

    @property
    def text(self) -> str:
        """Who, when, and verified or not, in words; "" for a run of which nothing is known."""
        said = "" if self.verified is None else f"{'verified' if self.verified else 'NOT verified'} {self.when[:10]}"
        if self.submission is None:
            return said
        by, published = self.submission.author, self.submission.published[:10]
        return f"{by}, {published}, {said or 'not verified'}"


def record_verified(found: Sequence[Verification], path: Path) -> None:
    """Write what came of verifying runs into a file, beside what it says of others that are still there.

    Parameters
    ----------
    found : sequence of Verification
    path : Path
        Reports find it as ``verified.json`` in a folder above the runs, as in ``results/community/``.

    Raises
    ------
    HrbenchError
        If a run does not lie below the file's folder, or the file that is there is no such file.
    """
    root = path.absolute().parent.resolve()
    entries = {name: entry for name, entry in _entries(path).items() if (root / name / "run.json").is_file()}
    version, when = environment()["hrbench"], datetime.now(UTC).isoformat(timespec="seconds")
    for result in found:
        place = result.folder.resolve()
        if not place.is_relative_to(root):
            raise HrbenchError(
                f"--record {path}: {result.folder} does not lie below its folder, expected a file above it"
            )
        entries[place.relative_to(root).as_posix()] = _Entry(
            sha256=_state(result.folder),
            verified=result.verified,
            when=when,
            hrbench=version,
            problems=result.problems[:3],
        )
    runs = {name: dataclasses.asdict(entries[name]) for name in sorted(entries)}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({"schema": SCHEMA, "runs": runs}, indent=1) + "\n", encoding="utf-8")


def origin_of(run: Path) -> Origin:
    """Return who published a run, and whether it was verified as it is now.

    Raises
    ------
    HrbenchError
        If its ``submission.json``, or a ``verified.json`` above it, is damaged.
    """
    place, folder = run.resolve(), submission_of(run)
    submission = None if folder is None else read_submission(folder)
    # What stands in a submission's own folder, however deep the run lies there, was written by who published it.
    own = max((n for n, above in enumerate(place.parents, 1) if (above / SUBMISSION).is_file()), default=0)
    for above in place.parents[own : own + _LEVELS]:
        path = above / NAME
        if path.is_file():
            entry = _entries(path).get(place.relative_to(above).as_posix())
            if entry is not None and entry.sha256 == _state(run):
                return Origin(submission, entry.verified, entry.when)
    return Origin(submission)


def _state(run: Path) -> str:
    """Return a digest of what reports read of a run; "" where a file of it cannot be read."""
    folder, state = RunFolder(run), hashlib.sha256()
    tables = (folder.table(name) for name in TABLES if name != "annotation" or folder.table(name).exists())
    for path in (folder.record, *tables):  # an earlier version left none of the annotation
        try:
            state.update(file_digest(path).encode())
        except HrbenchError:
            state.update(b"-")
    return state.hexdigest()


def _entries(path: Path) -> dict[str, _Entry]:
    if not path.exists():
        return {}
    return dict(_read(path, path.stat().st_mtime_ns))


@cache
def _read(path: Path, _changed: int) -> dict[str, _Entry]:
    table: Any = read_json(path, _LARGEST)
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise HrbenchError(f"{path}: not a record of verified runs of schema {SCHEMA}")
    try:
        read: dict[str, _Entry] = conform(table.get("runs"), dict[str, _Entry])
    except Mismatch as wrong:
        raise HrbenchError(f"{path}: key {wrong.path!r} {wrong.problem}") from None
    return read
