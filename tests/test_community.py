"""What is published in this repository is still what today's code computes."""

from __future__ import annotations

from pathlib import Path

from hrbench.runs.verification import verify_runs

COMMUNITY = Path(__file__).parents[1] / "results" / "community"


def test_published_runs_are_verified():
    found = verify_runs(COMMUNITY)
    assert len(found) >= 2
    assert all(verification.problems == () for verification in found)
