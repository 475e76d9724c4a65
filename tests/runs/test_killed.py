"""What processes leave that were killed at an unlucky moment, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrbench.runs import lease
from hrbench.runs.lease import Leases


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
