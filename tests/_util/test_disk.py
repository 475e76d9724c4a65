"""What the disk refuses is said in one sentence, whoever has tried to write."""

from __future__ import annotations

import errno
import os
import resource
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from safetensors.torch import save_file

from hrbench import HrbenchError
from hrbench._util.disk import explaining
from hrbench._util.files import atomic
from hrbench.errors import Halted

NOISE = np.random.default_rng(0).random((200, 500))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"a": torch.from_numpy(NOISE)}, path),
        lambda path: save_file({"a": torch.from_numpy(NOISE)}, path),
        lambda path: pq.write_table(pa.table({"a": NOISE.ravel()}), path),
        lambda path: tifffile.imwrite(path, NOISE),
        lambda path: path.write_bytes(NOISE.tobytes()),
    ],
    ids=["torch", "safetensors", "parquet", "tiff", "bytes"],
)
def test_every_library_that_cannot_write_is_understood(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with (
        small_files(100_000),
        pytest.raises(HrbenchError, match=f"^{path}: file too large"),
        atomic(path) as temporary,
    ):
        write(temporary)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "before")]


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, Halted, "no space left on the disk: more than 2.0 KiB to be written, .* free; make room"),
        (errno.EDQUOT, Halted, "the disk quota is used up: more than 2.0 KiB"),
        (errno.EROFS, Halted, "the file system is read-only"),
        (errno.EMFILE, Halted, "this process may open no more files"),
        (errno.EACCES, HrbenchError, "permission denied"),
    ],
)
def test_what_ends_everything_and_what_one_job(tmp_path: Path, number: int, kind: type[Exception], words: str) -> None:
    path = tmp_path / "deep" / "folder"

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.mkdir()
            (temporary / "part").write_bytes(bytes(2048))
            raise OSError(number, os.strerror(number))

    with pytest.raises(kind, match=f"^{path}: {words}"):
        fail()
    assert not list(path.parent.iterdir())


def test_a_file_within_a_folder_is_named_as_it_will_be(tmp_path: Path) -> None:
    with pytest.raises(Halted, match=f"^{tmp_path / 'run' / 'table'}: "), atomic(tmp_path / "run") as folder:  # noqa: SIM117
        with atomic(folder / "table"):
            raise OSError(errno.ENOSPC, "full")


def test_the_error_s_own_path_wins_outside_of_writing(tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match=r"^image: is a folder"), explaining(tmp_path):
        raise IsADirectoryError(errno.EISDIR, "", "image")
    with pytest.raises(Halted, match=f"^{tmp_path}: .* free"), explaining(tmp_path):
        raise OSError(errno.ENOSPC, "full")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, named in (("file/table", "file: is a file"), ("file/deep/table", "file/deep: a part of this path")):
        with pytest.raises(HrbenchError, match=f"^{tmp_path}/{named}"), atomic(tmp_path / path):
            pass


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("None"),
        FileNotFoundError(errno.ENOENT, "", "x"),
        OSError(errno.ENOTEMPTY, ""),
        FileExistsError(errno.EEXIST, "", "/tmp"),  # another process has made it
        OSError("?"),
        ssl.SSLError(errno.EPERM, "no such certificate"),
    ],
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, atomic(tmp_path / "file"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())
