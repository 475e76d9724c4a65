"""Notes of failed jobs: what another process failed at is not repeated, what failed before is tried again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hrbench import HrbenchError
from hrbench.runs.failures import FailureNotes
from hrbench.runs.store import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "toy-1")


def test_a_failure_elsewhere_is_known_to_who_began_before_it(folder: RunFolder) -> None:
    mine, theirs = FailureNotes([folder]), FailureNotes([folder])
    assert mine.elsewhere(folder) is None
    theirs.write(folder, "nut toy", HrbenchError("002.png: no image"))
    error = mine.elsewhere(folder)
    assert isinstance(error, HrbenchError)
    assert "002.png: no image" in str(error)
    assert str(error).startswith("failed on ")


def test_a_failure_of_before_is_tried_again(folder: RunFolder) -> None:
    FailureNotes([folder]).write(folder, "nut toy", KeyError())
    later = FailureNotes([folder])
    assert later.elsewhere(folder) is None
    later.clear(folder)
    assert not folder.failed.exists()
    assert later.elsewhere(folder) is None
    later.clear(folder)


def test_a_second_failure_of_the_same_job_is_news(folder: RunFolder) -> None:
    other = FailureNotes([folder])
    other.write(folder, "nut toy", HrbenchError("first"))
    os.utime(folder.failed, ns=(1, 1))
    later = FailureNotes([folder])
    other.write(folder, "nut toy", HrbenchError("second"))
    assert "second" in str(later.elsewhere(folder))


def test_an_error_without_a_text_is_named(folder: RunFolder) -> None:
    notes = FailureNotes([folder])
    notes.write(folder, "nut toy", ZeroDivisionError())
    assert "ZeroDivisionError" in str(notes.elsewhere(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"text"', '{"host": "a"}'])
def test_what_is_no_note_says_nothing(folder: RunFolder, text: str) -> None:
    notes = FailureNotes([folder])
    folder.failed.parent.mkdir(parents=True)
    folder.failed.write_text(text, encoding="utf-8")
    assert notes.elsewhere(folder) is None


def test_a_note_that_cannot_be_written_is_left_out(folder: RunFolder) -> None:
    folder.path.parent.touch()  # a file in the folder's place
    FailureNotes([folder]).write(folder, "nut toy", KeyError())
