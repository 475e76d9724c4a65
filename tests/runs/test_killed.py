"""What processes leave that were killed at an unlucky moment, and what becomes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hrbench import load_dataset, load_protocol
from hrbench._util import files
from hrbench._util.files import atomic
from hrbench.runs import lease, shards
from hrbench.runs.job import make_job
from hrbench.runs.lease import Leases, Presence
from hrbench.runs.runner import run_job
from hrbench.runs.store import RunFolder, text_of

NOBODY = 2**22 + 1  # no process has this number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Set what the clock of leases says."""
    now = [100.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    return now


def test_a_lease_without_a_holder_s_name_is_taken_when_nobody_has_touched_it(
    tmp_path: Path, clock: list[float]
) -> None:
    path = tmp_path / "job.lease"
    path.touch()  # as who was killed between making and filling it
    leases = Leases()
    assert not leases.take(path)
    clock[0] += lease.SECONDS - 1
    assert not leases.take(path)
    path.unlink()
    path.touch()  # another one
    clock[0] += 2
    assert not leases.take(path)
    clock[0] += lease.SECONDS
    assert leases.take(path)
    assert path.stat().st_size
    assert not Leases().take(path)
    leases.give_back(path)
    assert not list(tmp_path.iterdir())


def test_who_leaves_last_forgets_those_that_were_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / ".workers"
    with Presence(tmp_path, "cpu") as presence:
        (own,) = folder.iterdir()
        own.with_name(f"{own.name.rpartition('.')[0]}.{NOBODY}").touch()
        assert len(list(folder.iterdir())) == 2
    assert not folder.exists()
    with presence:
        (folder / own.name).with_name(f"{own.name.rpartition('.')[0]}.{NOBODY}").touch()
        assert presence.workers() == 1
        assert list(folder.iterdir()) == [own]


def test_who_comes_while_the_last_one_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real, left = tmp_path / "runs" / ".workers", Path.touch, []

    def touch(path: Path) -> None:
        if not left:
            left.append(folder.rmdir())
        real(path)

    monkeypatch.setattr(Path, "touch", touch)
    with Presence(tmp_path, "cpu") as presence:
        assert left
        assert presence.workers() == 1


def test_a_job_that_ends_leaves_no_lease_of_a_chunk(tmp_path: Path) -> None:
    folder, other = RunFolder(tmp_path / "toy-s0-12345678"), RunFolder(tmp_path / "toy-s1-12345678")
    for path in (folder.chunk_lease(3), folder.lease, other.chunk_lease(3)):
        path.touch()  # the first as who was killed after it had written the shard
    folder.scratch.mkdir(parents=True)
    folder.tidy()
    assert not folder.chunk_lease(3).exists()
    assert folder.lease.exists()
    assert other.chunk_lease(3).exists()


def test_a_job_that_ends_leaves_nothing_half_written_and_all_that_is_the_user_s(tmp_path: Path) -> None:
    folder, outside = RunFolder(tmp_path / "toy-s0-12345678"), tmp_path / "outside"
    half = f"{NOBODY}-0123abcd.tmp"
    for path in (
        folder.path / "maps" / f".000.tiff.aaaaaa-{half}",
        folder.path / ".tmpAbCd12",  # safetensors writes beside the file that it was told
        folder.path / "maps" / ".mine.tmp",
        outside / f".000.tiff.aaaaaa-{half}",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder.path / "elsewhere").symlink_to(outside)
    folder.scratch.mkdir()
    (folder.failed.with_name(f".{folder.failed.name}.{files._host()}-{half}")).touch()
    folder.tidy()
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir())
    assert left == [f"outside/.000.tiff.aaaaaa-{half}", "toy-s0-12345678/maps/.mine.tmp"]


def test_what_was_taken_away_is_not_there(tmp_path: Path) -> None:
    assert text_of(tmp_path / "gone") is None
    assert not RunFolder(tmp_path).began("digest")


@pytest.mark.parametrize("whole", [True, False])
def test_a_shard_that_two_processes_write_at_the_same_moment(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    @contextmanager
    def late(path: Path) -> Iterator[Path]:
        with atomic(path) as temporary:
            yield temporary
            shutil.copytree(temporary, path)  # another process comes first
            if not whole:
                (path / "inputs.sha256").unlink()

    monkeypatch.setattr(shards, "atomic", late)
    job = make_job(load_dataset("folder", tree).categories[0], toy, preset="native", options={"steps": 2})
    arguments = (job, tmp_path, [load_protocol("native")])
    if whole:
        assert len(run_job(*arguments, device=torch.device("cpu")).evidence.images) == 8
        return
    with pytest.raises(OSError, match="not empty"):
        run_job(*arguments, device=torch.device("cpu"))
