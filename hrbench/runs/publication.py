"""Runs for others to check: what a pull request needs, and nothing that says where or by whom a machine is used."""

from __future__ import annotations

import dataclasses
import getpass
import re
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrbench._util.files import atomic, plain_name
from hrbench._util.received import file_digest
from hrbench._util.tables import write_table
from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol, list_protocols, load_protocol
from hrbench.runs.environment import environment
from hrbench.runs.record import FileRecord, RunRecord, write_record
from hrbench.runs.store import Run, RunFolder
from hrbench.runs.submission import Submission, files_below, write_submission
from hrbench.runs.tables import TABLES
from hrbench.runs.verification import Verification, verify_runs

__all__ = ["publish"]

_URL = r"(?!file:)[a-z]+://\S*"
_DRIVE = r"(?<![\w.])(?:file:/{2,}|[A-Za-z]:[\\/]|\\\\|~[\w.-]*[\\/]|(?<![\w.)\]/\\])/(?=[^\s/]))"
_PATH = re.compile(rf"({_URL})|{_DRIVE}(?:[^\\/:;,'\"()\n]*[^\\/:;,'\"()\s][\\/])*")


def publish(
    runs: Path,
    target: Path,
    submission: Submission,
    *,
    protocols: Sequence[Path] = (),
    jobs: int = 1,
) -> tuple[Submission | None, list[Verification]]:
    """Verify runs, and write a copy of them with evidence and tables, but without images, weights and paths.

    Parameters
    ----------
    runs : Path
        Folder that ``hrbench run`` wrote.
    target : Path
        New folder.
    submission : Submission
        Who publishes it.
    protocols : sequence of Path
        Files of the protocols that do not ship with hrbench; they are published with the runs.
    jobs : int
        Processes that verify.

    Returns
    -------
    tuple of Submission and list of Verification
        What was written; None, and nothing is, where a run could not be verified.

    Raises
    ------
    HrbenchError
        If the folder exists or is no plain name, or what has to be published names a path or a user.
    """
    if plain_name(target.name) != target.name:
        raise HrbenchError(f"--to {target}: expected a name of letters, digits, '.', '_', '+' and '-'")
    if target.exists():
        raise HrbenchError(f"--to {target}: exists already, expected the path of a new folder")
    given = [load_protocol(path) for path in protocols]
    found = verify_runs(runs, given, jobs=jobs)
    if not all(result.verified for result in found):
        return None, found
    with atomic(target) as folder:
        for result in found:
            _copy(Run(result.folder), folder)
        for path, protocol in zip(protocols, given, strict=True):
            _copy_protocol(path, protocol, folder / "protocols")
        whole = _described(submission, folder, len(found))
        write_submission(whole, folder)
        for again in verify_runs(folder, jobs=jobs):  # what was written, too
            if not again.verified:
                raise HrbenchError(f"{again.label}: not verified once it was written: {again.problems[0]}")
    return whole, found


def _described(submission: Submission, folder: Path, runs: int) -> Submission:
    files = {
        name: FileRecord(bytes=path.stat().st_size, sha256=file_digest(path))
        for name, path in files_below(folder).items()
    }
    evidence = sum(said.bytes for name, said in files.items() if "/evidence/" in name)
    return dataclasses.replace(
        submission,
        published=Submission.now(),
        hrbench=environment()["hrbench"],
        runs=runs,
        bytes=sum(said.bytes for said in files.values()),
        evidence_bytes=evidence,
        files=files,
    )


def _copy(run: Run, folder: Path) -> None:
    about = _cleaned(run)
    target = RunFolder.of(folder, about.dataset.name, about.dataset.category, plain_name(run.folder.name))
    if target.path.exists():
        raise HrbenchError(f"{run.folder}: there is another run of this dataset, category and name")
    target.path.mkdir(parents=True)
    for part in run.about.evidence:
        run.evidence_of(part).save(target.evidence(part.name), smallest=True)
    for name in (name for name in TABLES if run.files.table(name).exists()):
        write_table(run.table(name), target.table(name), smallest=True)
    files = target.recorded(target.own())
    write_record(dataclasses.replace(about, files=files), target.record)


def _copy_protocol(path: Path, protocol: Protocol, folder: Path) -> None:
    if protocol.name in list_protocols():
        return
    folder.mkdir(exist_ok=True)
    copy = folder / f"{plain_name(protocol.name)}.toml"
    if copy.exists():
        raise HrbenchError(f"--protocol {path}: two of one name, expected each once")
    shutil.copyfile(path, copy)


def _cleaned(run: Run) -> RunRecord:
    """Return what a run says of itself without paths, and without what tells its machine from others.

    Raises
    ------
    HrbenchError
        If an option names a path: it identifies the run. If a user's or a host's name is left.
    """
    about = run.about
    for key, value in about.method.options.items():
        if without_paths(value) != value:
            raise HrbenchError(f"{run.folder}: option {key} is {value!r}, which names a path; expected none")
    table = {
        field.name: without_paths(getattr(about, field.name))
        for field in dataclasses.fields(about)
        if field.name not in ("dataset", "protocols", "evidence", "files", "threshold", "cost", "method", "unknown")
    }
    method = dataclasses.replace(
        about.method,
        **{
            name: without_paths(getattr(about.method, name))
            for name in ("title", "paper", "reference", "weights", "weights_source", "weights_licence")
        },
        unknown={},
    )
    platform = about.environment.get("platform", "")
    table["environment"] |= {"platform": platform.partition("-")[0]} if platform else {}
    cleaned = dataclasses.replace(about, **table, method=method, unknown={})
    _check_private(run, cleaned)
    return cleaned


def without_paths(value: Any) -> Any:
    """Return a value in which all texts have lost the folders of absolute paths; addresses of the web stay.

    Examples
    --------
    >>> without_paths({"weights": "resnet18 file:/home/a b/m.pth sha256:1f", "paper": "https://arxiv.org/abs/1"})
    {'weights': 'resnet18 file:m.pth sha256:1f', 'paper': 'https://arxiv.org/abs/1'}
    """
    if isinstance(value, str):
        return _PATH.sub(lambda found: found[1] or "", value)
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_paths(item) for item in value)
    return value


def _check_private(run: Run, about: RunRecord) -> None:
    """Raise an error if a name of this user or host stands anywhere but in names that the user has chosen."""
    method, names = about.method, {_user(), socket.gethostname()} - {"", "root", "localhost"}
    texts = {
        "device": about.device,
        "environment": about.environment,
        "method.options": method.options,
        "method.weights": method.weights,
        "method.weights_source": method.weights_source,
    }
    for key, value in texts.items():
        for name in names:
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(value)):
                raise HrbenchError(f"{run.files.record}: {key} names {name!r}, a user or host; expected it without")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
