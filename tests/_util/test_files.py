"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from hrbench._util import files
from hrbench._util.files import atomic

NOBODY = 2**22 + 1  # no process has this number


def test_a_file_is_as_readable_as_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    with atomic(folder / "weights.safetensors") as path:
        path.touch(mode=0o600)  # as safetensors does
    assert (folder / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("run.json", "before")]


def leftover(path: Path, *, process: int = NOBODY, host: str | None = None) -> Path:
    """Return a path as :func:`atomic` takes it, in another process."""
    return path.with_name(f".{path.name}.{files._host() if host is None else host}-{process}-0123abcd.tmp")


def test_what_dead_processes_have_left_goes_when_something_is_written_beside_it(tmp_path: Path) -> None:
    file, old = tmp_path / "page.html", tmp_path / ".page.html.4242-0123abcd.tmp"  # as versions before named it
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    link = leftover(tmp_path / "link")
    link.symlink_to(outside)
    folder = leftover(tmp_path / "shard")
    folder.mkdir()
    (folder / "part").touch()
    gone = [link, folder, leftover(file), old, leftover(file, host="ffffff", process=1)]
    kept = [
        leftover(file, process=os.getpid()),
        leftover(file, host="aaaaaa"),
        tmp_path / ".notes.tmp",
        tmp_path / "page.html.4242-0123abcd.tmp",
    ]
    for path in gone[2:] + kept:
        path.touch()
    for path in gone[3:] + kept[2:]:
        os.utime(path, (1, 1))
    with atomic(file) as temporary:
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (*kept, file, outside)}
    assert list(outside.iterdir())


def test_who_writes_somewhere_alone_removes_what_is_left_of_all(tmp_path: Path) -> None:
    young = leftover(tmp_path / "map.tiff", host="aaaaaa")
    young.touch()
    (tmp_path / ".notes.tmp").touch()
    files.remove_leftovers(tmp_path)
    assert young.exists()
    files.remove_leftovers(tmp_path, alone=True)
    assert [path.name for path in tmp_path.iterdir()] == [".notes.tmp"]
