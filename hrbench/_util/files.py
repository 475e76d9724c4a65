"""Writing files whole or not at all, and names that stay below their folder."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath

from hrbench._util.disk import explaining
from hrbench._util.received import inside
from hrbench.errors import HrbenchError

__all__ = [
    "LONGEST",
    "alive",
    "atomic",
    "below",
    "check_utf8",
    "name_digest",
    "plain_name",
    "relative_path",
    "remove_leftovers",
    "safe_name",
]

LONGEST = 200  # bytes of a name: file systems take 255, and others are made of it
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)  # by Windows, whatever the ending
_ELSEWHERE = re.compile(r"[\\\0]|^([A-Za-z]:|\.{0,2}$)")  # with the separators and drives of Windows
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")
# Names of before had no host.
_TEMPORARY = re.compile(r"\..+\.((?P<host>[0-9a-f]{6})-)?(?P<process>\d{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)
_OLD_SECONDS = 86_400.0


def plain_name(text: str) -> str:
    """Turn a name from a file or an option into one path component of ASCII; others may become the same."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip(".")[:LONGEST].rstrip(".") or "_"
    return f"_{name}" if _RESERVED.match(name) else name


def name_digest(text: str) -> str:
    """Return twelve hex digits that tell a name from others."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def safe_name(text: str) -> str:
    """Turn a name from a file or an option into a path component that no other name becomes.

    One that is plain stays as it is; any other gets its digest, after a sign that no plain name holds.

    Examples
    --------
    >>> safe_name("metal_nut"), safe_name("metal nut")
    ('metal_nut', 'metal_nut~27b5f3a93d5b')
    """
    plain = plain_name(text)
    return plain if plain == text else f"{plain}~{name_digest(text)}"


def relative_path(*names: str) -> PurePosixPath:
    """Join names from a file or an option, which may hold ``/``, to a path that stays below any folder.

    Raises
    ------
    HrbenchError
        For a name that is empty, absolute or not UTF-8, has a part that is empty, ``.`` or ``..``, a backslash or a
        drive.
    """
    for name in names:
        check_utf8(name)
        if any(_ELSEWHERE.search(part) for part in name.split("/")):
            raise HrbenchError(
                f"{name!r}: a path that leaves its folder, expected names joined by '/', none of them empty, '.' or "
                "'..', without a backslash or a drive"
            )
    return PurePosixPath(*names)


def below(root: Path, *names: str) -> Path:
    """Return the path below `root` that :func:`relative_path` makes of the names: all that is written goes there.

    Raises
    ------
    HrbenchError
        For names that lead outside, by themselves or by a link below `root`; and for a `root` that is not UTF-8.
    """
    check_utf8(str(root))
    try:
        path = root / relative_path(*names)
    except HrbenchError as error:
        raise HrbenchError(f"{root}: {error}") from None
    return inside(root, path)


def check_utf8(name: str) -> None:
    """Raise an error for a name that is not UTF-8: records and tables cannot hold it."""
    if _NOT_UTF8.search(name):  # as Python reads names in other encodings
        raise HrbenchError(f"{name!r}: not UTF-8, expected a name that is; rename it")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; move it there if the block ends without error.

    What dead processes have left half-written in the same folder is removed.

    Raises
    ------
    HrbenchError
        If the disk refuses it, see :func:`hrbench._util.disk.explaining`.
    """
    # Threads of a process may write the same file. A long name is cut.
    temporary = path.with_name(f".{path.name[:50]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with explaining(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers_once(path.parent.absolute())
            yield temporary
            if temporary.is_file():  # safetensors makes files that only their owner can read
                temporary.chmod(path.parent.stat().st_mode & 0o666)
            temporary.replace(path)
    finally:
        _remove(temporary)


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Remove what :func:`atomic` has left in a folder, though not in those below it, when its process was killed.

    Parameters
    ----------
    folder : Path
    alone : bool
        Nobody else writes there. Otherwise only what a dead process of this host has left, and what is a day old.
    """
    for path in folder.glob(".*.tmp"):
        if (made := _TEMPORARY.fullmatch(path.name)) is not None and (alone or _dead(path, made)):
            _remove(path)


def alive(process: int) -> bool:
    """Tell whether there is, or may be, a process of this number on this host."""
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


@cache
def _host() -> str:
    """Return what tells apart hosts that share a folder, and containers whose process ids mean others."""
    spaces = Path("/proc/self/ns/pid")
    place = spaces.readlink() if spaces.is_symlink() else ""
    return hashlib.sha256(f"{socket.gethostname()} {place}".encode()).hexdigest()[:6]


@cache
def _remove_leftovers_once(folder: Path) -> None:
    remove_leftovers(folder)


def _dead(path: Path, made: re.Match[str]) -> bool:
    if made["host"] == _host() and not alive(int(made["process"])):
        return True
    try:
        return time.time() - path.lstat().st_mtime > _OLD_SECONDS
    except OSError:  # it has just been removed
        return False


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all in it; what cannot be removed must not hide why it was to be."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()
