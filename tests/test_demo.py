"""The demo: what it says before it begins, and that it goes on where it was stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hrbench import cli, demo


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, toy: str) -> None:
    """Let the demo run a toy method on few images."""
    monkeypatch.setattr(demo, "METHODS", {toy: {}})
    monkeypatch.setattr(demo, "CATEGORY", "weave")
    for name, number in (("_TRAIN", 6), ("_GOOD", 3), ("_DEFECTIVE", 4)):
        monkeypatch.setattr(demo, name, number)


@pytest.mark.usefixtures("small")
def test_it_says_what_it_does_and_what_each_job_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert cli.main(["demo", "--output", str(output), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Makes 13 images of 256 x 256 px")
    assert "1 method on them in the smallest presets, the fastest first." in printed.out
    assert "minutes on 2 cores" in printed.out.split("\n\n")[0]
    assert f"page: {output / 'report' / 'leaderboard.html'}" in printed.out
    assert re.search(r"^\[1/1\] .*AUPRO@0\.05 ", printed.err, re.M)
    assert not list((output / "report").glob("*.svg"))
    assert cli.main(["demo", "--output", str(output), "--device", "cpu"]) == 0
    assert "[1/1]" not in capsys.readouterr().err  # done before


def test_the_fastest_method_is_first() -> None:
    assert list(demo.METHODS)[:2] == ["gaussian", "knn"]
