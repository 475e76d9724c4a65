"""The made-up runs of the page's benchmark are runs like any other."""

from __future__ import annotations

import bench_page

from hrbench.protocol import load_protocol
from hrbench.report import summarise


def test_a_configuration_on_two_categories_can_be_summarised(tmp_path, monkeypatch):
    configurations = bench_page.configurations()
    assert len(configurations) == 13
    monkeypatch.setattr(bench_page, "configurations", lambda: configurations[:1])
    runs = bench_page.make_runs(tmp_path, 2)
    assert {run.about.dataset.category for run in runs} == {"bottle", "cable"}
    summary = summarise(runs, load_protocol("native"))
    assert [len(board.runs) for board in summary.leaderboards] == [2]
    assert all((run.folder / "annotation.parquet").is_file() for run in runs)
