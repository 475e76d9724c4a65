"""What the operating system answers when a file cannot be read or written, in one sentence for users."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hrbench._util.words import nbytes
from hrbench.errors import Halted, HrbenchError

__all__ = ["explaining"]

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
}
_HALTS = {  # what every other job would meet as well
    errno.EROFS: "the file system is read-only; expected one that can be written",
    errno.EMFILE: "this process may open no more files; raise the limit (ulimit -n)",
    errno.ENFILE: "this machine can open no more files; raise its limit or end other processes",
}
_FAILS = {
    errno.EACCES: "permission denied; expected files and folders that this user may read and write",
    errno.EPERM: "not permitted; expected files and folders that this user may read and write",
    errno.ENOTDIR: "a part of this path is a file, expected folders",
    errno.EEXIST: "is a file, expected a folder",
    errno.EISDIR: "is a folder, expected a file",
    errno.EFBIG: "file too large for this disk or for the limit of this process (ulimit -f)",
    errno.EIO: "the disk, or the connection to it, has failed",
    errno.ESTALE: "the connection to this network folder was lost",
    errno.ELOOP: "a circle of links",
    errno.ENAMETOOLONG: "a name longer than the file system takes; choose shorter names",
}
_PROBE = 1 << 20  # bytes


@contextmanager
def explaining(path: Path | None = None, temporary: Path | None = None) -> Iterator[None]:
    """Turn what the disk refuses in a block into one sentence.

    Parameters
    ----------
    path : Path, optional
        What is read or written there, where the error does not say it itself.
    temporary : Path, optional
        Where the block writes what will be `path`.

    Raises
    ------
    Halted
        For a disk that is full or read-only, or too many open files.
    HrbenchError
        For a path that cannot be used, as without permission.
    """
    try:
        yield
    except Halted as error:
        if temporary is None:
            raise
        raise Halted(str(error).replace(str(temporary), str(path))) from error
    except Exception as error:
        number, named = _errno(error, temporary), getattr(error, "filename", None)
        if named is not None and not str(named).startswith(str(temporary)):
            path = Path(str(named))
        place = path or "input or output"
        if number in _FULL:
            raise Halted(f"{place}: {_FULL[number]}{_room(path, temporary)}; make room for it") from error
        if number in _HALTS:
            raise Halted(f"{place}: {_HALTS[number]}") from error
        if number in _FAILS and not (number == errno.EEXIST and path is not None and path.is_dir()):
            raise HrbenchError(f"{place}: {_FAILS[number]}") from error
        raise


def _errno(error: Exception, temporary: Path | None) -> int | None:
    """Return the number of what the system has answered; libraries that write in C or Rust may not hand it on."""
    if isinstance(error, HrbenchError):
        return None
    if isinstance(error, OSError) and error.errno and type(error).__module__ == "builtins":  # others count otherwise
        return error.errno
    if told := re.search(r"\bos error (\d+)\b", str(error)):  # safetensors
        return int(told[1])
    if temporary is not None:  # torch, and arrays that write themselves: ask the disk again
        try:
            with (temporary / ".probe" if temporary.is_dir() else temporary).open("ab") as file:
                file.write(bytes(_PROBE))
        except OSError as answer:
            return answer.errno
    return None


def _room(path: Path | None, temporary: Path | None) -> str:
    """Return in words how much was to be written at least, and how much there is room for without it."""
    if path is None:
        return ""
    written = 0
    for file in (temporary, *temporary.rglob("*")) if temporary is not None else ():
        with suppress(OSError):
            written += file.stat().st_size if file.is_file() else 0
    needed = f"more than {nbytes(written)} to be written, " if written else ""
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):
            return f": {needed}{nbytes(shutil.disk_usage(folder).free + written)} free"
    return ""
