"""A pull request of results: what it adds is verified, and it touches nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import verify_submissions
from verify_submissions import submissions


def git(repository: Path, *command: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(repository), *who, *command], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "README.md").write_text("x")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "begin")
    return tmp_path


def verify(repository: Path, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> tuple[int, list[str]]:
    """Commit what is there and verify the change; return the status, and the folders that were verified."""
    base = git(repository, "rev-parse", "HEAD")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "change")
    seen: list[str] = []
    monkeypatch.setattr(verify_submissions, "hrbench", lambda command: seen.append(command[1]) or status)
    monkeypatch.setattr(sys, "argv", ["x", str(repository), base, git(repository, "rev-parse", "HEAD")])
    return verify_submissions.main(), seen


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")


def test_each_folder_that_is_added_is_verified(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    community = repository / "results" / "community"
    for name in ("ada; rm -rf x", "bob"):
        write(community / name / "submission.json")
        write(community / name / "runs" / "run.json")
    assert verify(repository, monkeypatch) == (0, [str(community / "ada; rm -rf x"), str(community / "bob")])
    write(community / "bob" / "more.json")
    assert verify(repository, monkeypatch, status=1) == (1, [str(community / "bob")])
    git(repository, "rm", "-rq", "results/community/bob")
    assert verify(repository, monkeypatch) == (0, [])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hrbench/cli.py", "outside of results/community"),
        ("results/community/verified.json", "is written by who merges"),
        ("results/community/notes.txt", "expected in a folder of its own"),
        ("results/community/ada/runs/run.json", "no submission.json"),
    ],
)
def test_anything_else_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    write(repository / name)
    assert verify(repository, monkeypatch) == (1, [])
    assert said in capsys.readouterr().err


def test_what_is_moved_away_counts_too() -> None:
    folders, wrong = submissions(["results/community/ada/x", "results/communityx/y"])
    assert folders == ["ada"]
    assert len(wrong) == 1
