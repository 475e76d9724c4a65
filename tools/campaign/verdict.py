"""What is said of a case, and from what: how commands ended, what lies on disk before and after, what the bits are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VERDICTS = ("ok", "wrong number", "traceback", "hang", "outside", "lost", "silent", "other")
"""``other``: refused without naming what is wrong, failed without need, or files left over."""

WORST_FIRST = ("wrong number", "outside", "lost", "hang", "traceback", "silent", "other", "ok")
TRACEBACK = re.compile(r"Traceback \(most recent call last\)|terminate called|Fatal Python error|Segmentation fault")
PYTHON_FRAME = re.compile(r'^\s+File "([^"]+)", line \d+', re.MULTILINE)
REFUSALS = (1, 2, 75)
MOST_LINES = 40
UNREADABLE = (ValueError, TypeError, OSError, RecursionError, pa.ArrowException)
# In run.json and fit.json: when, where and at what cost.
NOT_OF_THE_JOB = {"cost", "created", "environment", "device", "seconds", "spent", "fit.json"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `ended_by` is "time" or "memory" where the campaign had to end it."""

    code: int
    out: str = ""
    err: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0
    ended_by: str = ""
    writes: int = 0

    @property
    def text(self) -> str:
        """All that was printed."""
        return self.out + self.err


@dataclass(frozen=True)
class Finding:
    """A verdict, and in one line why."""

    verdict: str
    why: str = ""


OK = Finding("ok")


def worst(findings: Iterable[Finding]) -> Finding:
    """Return the gravest finding; ok if there is none."""
    return min([*findings, OK], key=lambda finding: WORST_FIRST.index(finding.verdict))


def judge_end(outcome: Outcome, *, own_frames: str = "") -> list[Finding]:
    """Return what is wrong with the end of any command; frames in files called `own_frames` are an author's to see."""
    findings = []
    if outcome.ended_by:
        findings.append(
            Finding("hang", f"{outcome.ended_by} used up: {outcome.seconds:.0f} s, {outcome.peak_mib:.0f} MiB")
        )
    elif outcome.code < 0:
        findings.append(Finding("traceback", f"died of signal {-outcome.code}"))
    if TRACEBACK.search(outcome.text):
        files = {Path(name).name for name in PYTHON_FRAME.findall(outcome.text)}
        if not own_frames or files - {own_frames}:
            findings.append(Finding("traceback", last_line(outcome.text)))
    return findings


def judge_refusal(outcome: Outcome, words: str, *, silent: str = "silent", own_frames: str = "") -> list[Finding]:
    """Return what is wrong where a command must refuse, naming what matches `words`; `silent` if it just goes on."""
    findings = judge_end(outcome, own_frames=own_frames)
    if findings:
        return findings
    if outcome.code == 0:
        return [Finding(silent, f"accepted: exit 0, {last_line(outcome.text)}")]
    if outcome.code not in REFUSALS:
        return [Finding("other", f"exit {outcome.code}: {last_line(outcome.text)}")]
    return judge_words(outcome, words)


def judge_words(outcome: Outcome, words: str) -> list[Finding]:
    """Return what is wrong where a line must match `words`, all that `` & `` joins, among few others."""
    lines = [line for line in outcome.text.splitlines() if line.strip()]
    if not any(all(re.search(word, line, re.IGNORECASE) for word in words.split(" & ")) for line in lines):
        return [Finding("other", f"exit {outcome.code}, no line says {words!r}: {last_line(outcome.text)}")]
    if len(lines) > MOST_LINES and "usage:" not in outcome.text:
        return [Finding("other", f"exit {outcome.code}, {len(lines)} lines")]
    return []


def judge_success(outcome: Outcome) -> list[Finding]:
    """Return what is wrong where a command must do its work."""
    findings = judge_end(outcome)
    if not findings and outcome.code != 0:
        findings.append(Finding("other", f"exit {outcome.code}, expected 0: {last_line(outcome.text)}"))
    return findings


def last_line(text: str) -> str:
    """Return the last line that says something, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("  hrbench run")]
    return (lines[-1] if lines else "nothing was said")[:200]


# -- files


def listing(root: Path, without: Iterable[Path] = ()) -> dict[str, str]:
    """Return kind, size and time of everything below a folder, but for some folders; links are not followed."""
    leave, found = {str(path) for path in without}, {}
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if os.path.join(place, name) not in leave]  # noqa: PTH118
        for name in [*folders, *files]:
            path = Path(place, name)
            about = path.lstat()
            kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
            size = f" {about.st_size} {about.st_mtime_ns}" if kind == "file" else ""
            found[str(path.relative_to(root))] = kind + size
    return found


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return in words what is different in a listing, or in digests."""
    words = [f"{name!r} is gone" for name in sorted(before.keys() - after.keys())]
    words += [f"{name!r} is new" for name in sorted(after.keys() - before.keys())]
    return words + [
        f"{name!r} is another" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]
    ]


def digests(root: Path) -> dict[str, str]:
    """Return SHA-256 by name of all files below a folder, without what only says when and at what cost it was made."""
    return {str(path.relative_to(root)): _digest(path) for path in sorted(root.rglob("*"))}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link {path.readlink()}"
    if path.is_dir():
        return "folder"
    with contextlib.suppress(*UNREADABLE):  # what is damaged counts by its bytes
        if path.name == "images.parquet" and "evidence" in path.parts:
            return hashlib.sha256(_without_seconds(path)).hexdigest()
        if path.name in ("run.json", "fit.json"):
            about = _of_the_job(json.loads(path.read_text(encoding="utf-8")))
            return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _of_the_job(value: Any) -> Any:
    """Return a record without when, where and at what cost, and without digests of a table that holds seconds."""
    if isinstance(value, dict):
        timed = re.compile(r"^evidence/.*images\.parquet$")
        return {k: _of_the_job(v) for k, v in value.items() if k not in NOT_OF_THE_JOB and not timed.match(k)}
    return [_of_the_job(item) for item in value] if isinstance(value, list) else value


def _without_seconds(path: Path) -> bytes:
    table = pq.read_table(path)
    if "seconds" in table.column_names:
        table = table.drop_columns(["seconds"])
    table = table.combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def judge_bits(found: Mapping[str, str], expected: Mapping[str, str]) -> list[Finding]:
    """Return what differs from what an undisturbed command has left."""
    findings = []
    for name in sorted(expected.keys() & found.keys()):
        if found[name] != expected[name]:
            findings.append(Finding("wrong number", f"{name}: other bits, exit 0"))
    findings += [Finding("lost", f"{name}: missing") for name in sorted(expected.keys() - found.keys())]
    return findings + [Finding("other", f"{name}: left over") for name in sorted(found.keys() - expected.keys())]
