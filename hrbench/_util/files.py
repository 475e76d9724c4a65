"""Writing files whole or not at all, and names that stay inside their folder."""

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
from pathlib import Path

from hrbench._util.disk import explaining

__all__ = ["alive", "atomic", "remove_leftovers", "safe_name"]

# Names of before had no host.
_TEMPORARY = re.compile(r"\..+\.((?P<host>[0-9a-f]{6})-)?(?P<process>\d{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)
_OLD_SECONDS = 86_400.0


def safe_name(text: str) -> str:
    """Turn a name from a file or an option into one path component that cannot leave its folder."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip(".") or "_"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; move it there if the block ends without error.

    What dead processes have left half-written in the same folder is removed.

    Raises
    ------
    HrbenchError
        If the disk refuses it, see :func:`hrbench._util.disk.explaining`.
    """
    # Threads of a process may write the same file.
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
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
