"""Leases: how any number of processes, on any hosts that share a folder, do not do the same work twice.

A lease is a file that its holder touches every few seconds. One whose process is dead is taken over: at once on the
same host, on another when nobody has touched it for :data:`SECONDS` of the taker's own clock. A lease saves work and is
no guarantee: who was stopped for that long, and goes on, writes the same bits to the same places as who took over.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from hrbench._util.files import alive, plain_name
from hrbench.runs.store import runs_root

__all__ = ["Leases", "Presence"]

SECONDS = 30.0  # all processes must agree


class Leases:
    """The leases that this process holds or has tried to get.

    It has to live as long as the process waits: that another host's lease is not touched any more is seen only by who
    looks at it again.
    """

    def __init__(self) -> None:
        self._known: dict[Path, SoftFileLease] = {}
        self._held: set[Path] = set()
        self._empty: dict[Path, tuple[tuple[int, int], float]] = {}  # as it was, and since when by the own clock

    def take(self, path: Path) -> bool:
        """Try to take the lease `path`, without waiting; return whether this process has it now and had it not before.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        if path in self._held:
            return False
        if path not in self._known:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Any thread may give it back.
            self._known[path] = SoftFileLease(path, lease_duration=SECONDS, timeout=0, thread_local=False)
        try:
            self._known[path].acquire()
        except Timeout:
            if not self._remove_empty(path):
                return False
            try:
                self._known[path].acquire()
            except Timeout:
                return False
        self._empty.pop(path, None)
        self._held.add(path)
        return True

    def lost(self, path: Path) -> bool:
        """Tell whether another process has taken a held lease over, because this one was stopped for too long."""
        return path in self._held and self._known[path].compromise is not None

    def give_back(self, path: Path) -> None:
        """Give a held lease back; one that is not held is left alone."""
        if path in self._held:
            self._held.discard(path)
            self._known.pop(path).release()

    def _remove_empty(self, path: Path) -> bool:
        """Remove a lease whose holder was killed before it could say who it is: filelock never takes that one over."""
        try:
            state = path.stat()
        except OSError:
            return False
        seen = (state.st_ino, state.st_mtime_ns)  # a holder that lives touches it
        before, since = self._empty.get(path, (None, 0.0))
        if state.st_size or before != seen:
            self._empty[path] = (seen, time.monotonic())
            return False
        if time.monotonic() - since < SECONDS:
            return False
        with suppress(OSError):
            path.unlink()
        return True

    @contextmanager
    def holding(self, path: Path) -> Iterator[bool]:
        """Take a lease for a block, which learns whether it has it."""
        taken = self.take(path)
        try:
            yield taken
        finally:
            if taken:
                self.give_back(path)


class Presence:
    """Says in a shared folder which processes of this host compute on a device: times of a shared one mean little.

    Parameters
    ----------
    output : Path
        The folder that the processes share.
    device : str
        As torch calls it.
    """

    def __init__(self, output: Path, device: str) -> None:
        self._folder = runs_root(output) / ".workers"
        self._prefix = f"{plain_name(socket.gethostname())}.{plain_name(device)}."
        self._file = self._folder / f"{self._prefix}{os.getpid()}"

    def __enter__(self) -> Presence:
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._file.touch()
                return self
            except FileNotFoundError:  # the last one has just left, and has taken the folder away
                continue

    def __exit__(self, *failure: object) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
            self._others()  # those that were killed cannot do it
            self._folder.rmdir()  # of the last one

    def workers(self) -> int:
        """Return how many processes compute on the device now, this one included; forget those that are dead."""
        return 1 + self._others()

    def _others(self) -> int:
        others = 0
        for file in self._folder.glob(f"{self._prefix}*"):
            process = file.name.removeprefix(self._prefix)
            if process.isdigit() and alive(int(process)):
                others += file != self._file
            else:
                file.unlink(missing_ok=True)
        return others
