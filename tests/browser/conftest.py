"""One browser, and one page of made-up runs, for all tests of pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from report import conftest as made_up

from hrbench.protocol import Alarms, ThresholdRule
from hrbench.report import write_leaderboard

from .driver import browser, installed, opened

_curves = made_up._curves
RULES = dataclasses.replace(
    made_up.PROTOCOL,
    alarm=Alarms(budgets=(0.01, 0.02, 0.05, 0.1, 0.2), summary=(0.01, 0.02, 0.05, 0.1)),
    threshold=ThresholdRule("conformal"),
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Start the browser once; without one, the tests are skipped."""
    if installed() is None:
        pytest.skip("neither Chromium nor Chrome is on the PATH")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with browser() as started:
        yield started


@pytest.fixture(scope="session")
def board(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page of two datasets, of two categories and of one, with three rows and with two."""
    root = tmp_path_factory.mktemp("board")
    runs = []
    measured = {RULES.name: {"version": RULES.version, "sha256": RULES.digest}}
    for dataset, category, rows in (("weave", "fabric", 3), ("weave", "steel_1", 3), ("bsdata", "ballscrew", 2)):
        for place, config in enumerate(made_up.CONFIGS[-rows:]):
            run = made_up.write_run(root, config, dataset, category, intervals=place < 2, protocols=measured)
            runs.append(made_up.give_scores(run, skill=0.4 + 0.3 * place, seed=place))
    return write_leaderboard(runs, root / "report", RULES)["html"]


@pytest.fixture
def visit(chromium: Any, board: Path) -> Callable[..., Any]:
    """Return a context that opens the page, with settings of the window."""
    return partial(opened, chromium, board)
