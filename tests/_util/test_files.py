"""Files are written whole or not at all."""

from pathlib import Path

import pytest

from hrbench._util.files import atomic


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
