"""Leases: one holder at a time, whoever is dead is taken over, and processes of a host know of each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hrbench.runs import lease
from hrbench.runs.lease import Leases, Presence

HOLD = """
import sys
from pathlib import Path
from hrbench.runs.lease import Leases
leases = Leases()
print(leases.take(Path(sys.argv[1])), flush=True)
sys.stdin.readline()
leases.give_back(Path(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "job.lease"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of a lease."""
    monkeypatch.setattr(lease, "SECONDS", 0.3)
    return lease.SECONDS


@contextmanager
def other_process(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that has tried to take a lease, and what it says; it gives back when it is told a line."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def soon(there: Callable[[], bool]) -> bool:
    """Tell whether something is so within ten seconds."""
    until = time.monotonic() + 10
    while not there():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_one_holder_at_a_time(path: Path) -> None:
    first, second = Leases(), Leases()
    assert first.take(path)
    assert not first.take(path)  # it had it before
    assert not second.take(path)
    second.give_back(path)  # what it does not hold
    assert not second.take(path)
    assert not first.lost(path)
    first.give_back(path)
    assert not path.exists()
    assert second.take(path)
    assert not first.take(path)
    second.give_back(path)
    assert list(path.parent.iterdir()) == []


def test_leases_of_other_paths_are_free(path: Path) -> None:
    leases = Leases()
    assert leases.take(path)
    assert leases.take(path.with_name("other.lease"))
    leases.give_back(path.with_name("other.lease"))
    assert path.exists()
    leases.give_back(path)


def test_a_block_holds_a_lease_and_gives_back_only_its_own(path: Path) -> None:
    leases, other = Leases(), Leases()
    with suppress(KeyError), leases.holding(path) as mine:
        assert mine
        with leases.holding(path) as again, other.holding(path) as others:
            assert not again
            assert not others
        assert not other.take(path)
        raise KeyError
    assert other.take(path)
    other.give_back(path)


def test_another_process_is_refused_and_one_that_was_killed_is_taken_over_at_once(path: Path) -> None:
    leases = Leases()
    assert leases.take(path)
    with other_process(path) as (_, said):
        assert said == "False"
    leases.give_back(path)
    with other_process(path) as (process, said):
        assert said == "True"
        assert not leases.take(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert leases.take(path)  # within lease.SECONDS, by who has seen it alive
        assert not Leases().take(path)
    leases.give_back(path)


def marked_by_another_host(path: Path) -> None:
    """Leave the marker of a host that does not touch it."""
    leases = Leases()
    assert leases.take(path)
    marker = path.read_text(encoding="utf-8")
    leases.give_back(path)
    lines = ["host=elsewhere" if line.startswith("host=") else line for line in marker.splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_another_host_is_taken_over_by_who_has_looked_long_enough(path: Path, short: float) -> None:
    marked_by_another_host(path)
    watching = Leases()
    began = time.monotonic()
    assert not watching.take(path)
    time.sleep(1.5 * short)
    assert not Leases().take(path)  # it has seen nothing yet, however old the marker is
    assert soon(lambda: watching.take(path))
    assert time.monotonic() - began > short
    watching.give_back(path)


def test_another_host_that_is_alive_keeps_its_lease(path: Path, short: float) -> None:
    marked_by_another_host(path)
    watching = Leases()
    until = time.monotonic() + 3 * short
    while time.monotonic() < until:
        os.utime(path)
        assert not watching.take(path)
        time.sleep(short / 10)


def test_who_was_taken_over_learns_it_and_harms_nobody(path: Path, short: float) -> None:
    leases = Leases()
    assert leases.take(path)
    path.unlink()
    marked_by_another_host(path)
    theirs = path.read_bytes()
    assert soon(lambda: leases.lost(path))
    leases.give_back(path)
    assert path.read_bytes() == theirs
    assert not leases.lost(path)  # it is not held any more


def test_live_processes_on_a_device_are_counted_and_dead_ones_forgotten(tmp_path: Path) -> None:
    with Presence(tmp_path, "cuda:0") as presence, Presence(tmp_path, "cuda:1") as elsewhere:
        assert presence.workers() == elsewhere.workers() == 1
        folder = next(tmp_path.rglob(f"*cuda_0.{os.getpid()}")).parent
        mine = next(folder.glob(f"*cuda_0.{os.getpid()}"))
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            theirs = mine.with_name(mine.name.replace(str(os.getpid()), str(process.pid)))
            theirs.touch()
            assert presence.workers() == 2
            assert elsewhere.workers() == 1
            process.kill()
        assert presence.workers() == 1
        assert not theirs.exists()
        mine.unlink()  # somebody has tidied up: this process is there all the same
        assert presence.workers() == 1
    assert not folder.exists()


def test_devices_whose_names_begin_alike_are_told_apart(tmp_path: Path) -> None:
    with Presence(tmp_path, "cuda:1") as first, Presence(tmp_path, "cuda:10") as tenth:
        assert first.workers() == tenth.workers() == 1
        assert len(list((tmp_path / "runs" / ".workers").iterdir())) == 2
