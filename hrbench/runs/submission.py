"""What stands beside runs that were published: who has measured them, when, and which files belong to it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from hrbench._util.files import atomic
from hrbench._util.received import file_digest, inside, read_json
from hrbench._util.types import Mismatch, conform
from hrbench.errors import HrbenchError
from hrbench.runs.record import FileRecord, is_sealed, json_digest

__all__ = ["NAME", "Submission", "read_submission", "submission_of", "submission_problems", "write_submission"]

NAME = "submission.json"
SCHEMA = 1
_LARGEST = 1 << 26  # bytes
_LONGEST = 200  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """Who published runs, and when.

    Attributes
    ----------
    author : str
        A name for people.
    orcid : str
        ``0000-0002-1825-0097``, or empty.
    url : str
        Of a page about it, with ``https://``; or empty.
    published : str
        ISO 8601 in UTC.
    hrbench : str
        Version that verified and wrote it.
    runs : int
    bytes, evidence_bytes : int
        Of all files, and of the evidence among them.
    files : dict of str to FileRecord
        By their path beside the submission, with forward slashes.

    Raises
    ------
    HrbenchError
        For a name that is empty or more than one line, and for an ORCID or a URL that is none.
    """

    author: str
    orcid: str = ""
    url: str = ""
    published: str = ""
    hrbench: str = ""
    runs: int = 0
    bytes: int = 0
    evidence_bytes: int = 0
    files: dict[str, FileRecord] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.author.strip() or not self.author.isprintable() or len(self.author) > _LONGEST:
            raise HrbenchError(
                f"author is {self.author!r}, expected a name in one line of at most {_LONGEST} characters"
            )
        if self.orcid and not _is_orcid(self.orcid):
            raise HrbenchError(f"orcid is {self.orcid!r}, expected an ORCID iD such as 0000-0002-1825-0097")
        if self.url and not (re.fullmatch(r"https://[!-~]+", self.url) and len(self.url) <= _LONGEST):
            raise HrbenchError(f"url is {self.url!r}, expected an address that begins with https://")
        if self.published and not _is_time(self.published):
            raise HrbenchError(f"published is {self.published!r}, expected a time such as 2026-11-27T12:00:00+00:00")

    @staticmethod
    def now() -> str:
        """Return the time, as :attr:`published` has it."""
        return datetime.now(UTC).isoformat(timespec="seconds")


def read_submission(folder: Path) -> Submission:
    """Read the ``submission.json`` of a folder.

    Raises
    ------
    HrbenchError
        If it is missing, damaged, of another schema, or not what a submission is.
    """
    path = inside(folder, folder / NAME)
    table = read_json(path, _LARGEST)
    if not isinstance(table, dict) or table.pop("schema", None) != SCHEMA:
        raise HrbenchError(f"{path}: not a submission of schema {SCHEMA}")
    table.pop("sha256", None)
    try:
        read: Submission = conform(table, Submission)
    except Mismatch as wrong:
        raise HrbenchError(f"{path}: key {wrong.path!r} {wrong.problem}") from None
    except HrbenchError as error:
        raise HrbenchError(f"{path}: {error}") from None
    return read


def write_submission(submission: Submission, folder: Path) -> None:
    """Write the ``submission.json`` of a folder, with a digest over all that it says."""
    files = {name: {"bytes": said.bytes, "sha256": said.sha256} for name, said in submission.files.items()}
    table = {"schema": SCHEMA, **dataclasses.asdict(submission), "files": files}
    with atomic(folder / NAME) as path:
        path.write_text(json.dumps({**table, "sha256": json_digest(table)}, indent=1) + "\n", encoding="utf-8")


def submission_of(run: Path) -> Path | None:
    """Return the folder of the submission that a run's folder belongs to; None for a run that was not published."""
    parents = run.absolute().parents  # NAME/runs/DATASET/CATEGORY/RUN
    folder = parents[3] if len(parents) > 3 else None
    return folder if folder is not None and (folder / NAME).is_file() else None


def submission_problems(folder: Path) -> list[str]:
    """Return what of a published folder is not as it was published, by its ``submission.json``."""
    try:
        submission = read_submission(folder)
        sealed = is_sealed(folder / NAME)
    except HrbenchError as error:
        return [str(error)]
    problems = [] if sealed else [f"{NAME}: was edited after it was written"]
    there = files_below(folder)
    problems += [f"{name}: is missing, {NAME} names it" for name in submission.files.keys() - there.keys()]
    problems += [f"{name}: {NAME} does not name it" for name in there.keys() - submission.files.keys()]
    problems += [
        f"{name}: is not as {NAME} says"
        for name in there.keys() & submission.files.keys()
        if _differs(folder, there[name], submission.files[name])
    ]
    return sorted(problems)


def files_below(folder: Path) -> Mapping[str, Path]:
    """Return all files of a published folder, but for its ``submission.json``, by their path in it."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return {name: path for path in paths if (name := path.relative_to(folder).as_posix()) != NAME}


def _differs(folder: Path, path: Path, said: FileRecord) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size != said.bytes:
        return True
    try:
        return file_digest(inside(folder, path)) != said.sha256
    except HrbenchError:
        return True


def _is_orcid(text: str) -> bool:
    """Tell whether a text is an ORCID iD: its last character checks the others (ISO 7064, MOD 11-2)."""
    if not re.fullmatch(r"(\d{4}-){3}\d{3}[\dX]", text):
        return False
    digits, total = text.replace("-", ""), 0
    for digit in digits[:-1]:
        total = (total + int(digit)) * 2
    return "0123456789X"[(12 - total % 11) % 11] == digits[-1]


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
