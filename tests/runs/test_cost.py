"""Cost: time per image, native pixels, peaks of memory, and what a run keeps of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrbench import load_dataset, load_protocol
from hrbench.engine import device
from hrbench.engine.device import MemoryPeaks, largest_peaks
from hrbench.runs import shards
from hrbench.runs.cost import Spent, spent_together, timing
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not device.reset_peak_memory(CPU), reason="only Linux can count peaks anew")


def images(seconds):
    return pd.DataFrame({"id": [f"{i:03d}" for i in range(len(seconds))], "seconds": seconds})


def test_timing_of_known_images():
    seconds = np.linspace(0.1, 2.1, 21)
    pixels = {f"{i:03d}": (i + 1) * 10**6 for i in range(21)}
    found = timing(images(seconds), pixels)
    assert found.pop("timed_images") == 21
    expected = {
        "predict_seconds": 23.1,
        "megapixels_per_second": 231 / 23.1,
        "ms_median": 1100.0,
        "ms_p95": 2000.0,
    }
    assert found == pytest.approx(expected)


def test_images_without_a_time_do_not_count():
    found = timing(images([math.nan, 0.5, math.nan]), {"000": 10**9, "001": 10**6, "002": 10**9})
    assert (found["timed_images"], found["megapixels_per_second"], found["ms_p95"]) == (1, 2.0, 500.0)
    assert timing(images([math.nan, math.nan]), {}) == {}


@LINUX
def test_a_peak_belongs_to_its_phase():
    first = MemoryPeaks(CPU)
    before = first.record()["peak_host_mib"]
    block = torch.ones(64 << 20, dtype=torch.uint8)
    during = first.record()
    assert during["peak_host_mib"] - before == pytest.approx(64, abs=8)
    assert during["peak_host_since"] == "phase"
    assert during["peak_device_mib"] is None
    del block
    assert MemoryPeaks(CPU).record()["peak_host_mib"] < during["peak_host_mib"] - 48


@LINUX
def test_freed_memory_does_not_count():
    peaks = MemoryPeaks(CPU)
    blocks = [np.ones(8192, np.uint8) for _ in range(16_000)]
    during = peaks.record()["peak_host_mib"]
    kept = blocks[::500]  # between them the heap has holes, which malloc does not return by itself
    del blocks
    assert MemoryPeaks(CPU).record()["peak_host_mib"] < during - 100
    assert len(kept) == 32


def test_where_peaks_cannot_be_set_back_the_record_says_so(monkeypatch):
    monkeypatch.setattr("hrbench.engine.device.reset_peak_memory", lambda device: False)
    record = MemoryPeaks(CPU).record()
    assert record["peak_host_since"] == "process"
    assert record["peak_host_mib"] > 1


def test_without_the_files_of_linux_the_peak_is_the_process_own(monkeypatch):
    def missing(*_, **__):
        raise OSError

    monkeypatch.setattr(device.Path, "read_text", missing)
    monkeypatch.setattr(device.Path, "write_text", missing)
    assert not device.reset_peak_memory(CPU)
    assert device.peak_memory(CPU) > 1
    assert device.device_name(CPU).endswith(")")


def test_parts_of_a_phase_are_joined():
    one = {"peak_host_mib": 5.0, "peak_host_since": "phase", "peak_device_mib": None}
    two = {"peak_host_mib": 9.0, "peak_host_since": "process", "peak_device_mib": 2.0}
    assert largest_peaks([one]) == one
    assert largest_peaks([one, {}, two]) == two
    assert largest_peaks([]) == {}


def test_the_device_is_named_by_its_processor():
    name = device.device_name(CPU)
    assert name.endswith(f"({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)})")
    assert len(name.partition(" (")[0]) > 2
    assert not name.startswith("cpu")


@pytest.fixture
def job(tree, toy):
    return make_job(load_dataset("folder", tree).categories[0], toy, preset="native")


def test_the_device_has_one_name_whichever_thread_counts(job, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = run_job(job, tmp_path, [load_protocol("native")], device=CPU)
        assert run.about.device == device.device_name(CPU)
        assert run.about.cost.megapixels_per_second > 0  # left out where parts ran on several devices
    finally:
        torch.set_num_threads(before)


COST = [
    "fit_seconds", "fit_peak_host_mib", "fit_peak_host_since", "fit_peak_device_mib",
    "timed_images", "predict_seconds", "megapixels_per_second", "ms_median", "ms_p95",
    "peak_host_mib", "peak_host_since", "peak_device_mib",
]  # fmt: skip


def test_a_run_keeps_its_cost(job, tmp_path):
    done = run_job(job, tmp_path, [load_protocol("native")], device=CPU)
    cost = done.about.cost
    assert [name for name in COST if getattr(cost, name) is None] == ["fit_peak_device_mib", "peak_device_mib"]
    seconds = done.evidence.images["seconds"]
    assert cost.predict_seconds == pytest.approx(seconds.sum())
    assert cost.ms_median == pytest.approx(1e3 * seconds.median())
    assert cost.megapixels_per_second == pytest.approx(8 * 48 * 70 / 1e6 / seconds.sum())


def test_low_resolution_evidence_does_not_slow_a_method_down(job, tmp_path):
    done = run_job(job, tmp_path, [load_protocol("lowres256")], device=CPU)
    seconds = done.evidence.images["seconds"].sum()
    assert done.about.cost.megapixels_per_second == pytest.approx(8 * 48 * 70 / 1e6 / seconds)


def test_an_interrupted_run_knows_the_cost_of_all_its_attempts(job, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 3)
    peaks = iter([500.0, 700.0, 300.0, 100.0])  # of the fit and the shards, the last one after the interruption

    def record(self):
        return {"peak_host_mib": next(peaks), "peak_host_since": "phase", "peak_device_mib": None}

    monkeypatch.setattr(MemoryPeaks, "record", record)
    with monkeypatch.context() as patch:
        collectors = iter([shards.EvidenceCollector] * 2)

        def collector(way):
            if (made := next(collectors, None)) is None:
                raise KeyboardInterrupt
            return made(way)

        patch.setattr(shards, "EvidenceCollector", collector)
        with pytest.raises(KeyboardInterrupt):
            run_job(job, tmp_path, [load_protocol("native")], device=CPU)
    cost = run_job(job, tmp_path, [load_protocol("native")], device=CPU).about.cost
    assert cost.fit_peak_host_mib == 500.0
    assert cost.peak_host_mib == 700.0
    assert cost.timed_images == 8


def spent(began: float, ended: float, device: str = "A", workers: int = 1, earlier: float = 0.0) -> Spent:
    return Spent(began, ended, device, workers, earlier=earlier)


def test_stages_that_overlap_and_pauses_between_them() -> None:
    stages = [spent(10, 20, workers=2), spent(12, 15, "B"), spent(18, 25, earlier=100.0), spent(40, 41)]
    assert spent_together(stages) == {
        "wall_seconds": 15 + 1 + 100,
        "stage_seconds": 10 + 3 + 107 + 1,
        "workers_on_device": 2,
        "devices": 2,
    }


def test_no_stage_and_a_clock_that_was_set_back_cost_nothing() -> None:
    nothing = {"wall_seconds": 0.0, "stage_seconds": 0.0, "workers_on_device": 1, "devices": 1}
    assert spent_together([]) == nothing
    assert spent_together([spent(10, 4)]) == nothing
    assert spent_together([spent(10, 4), spent(5, 8)])["wall_seconds"] == 3


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(0, 3)), max_size=8))
def test_wall_seconds_are_those_in_which_something_was_done(stages: list[tuple[int, int, int]]) -> None:
    found = spent_together([spent(began, began + took, earlier=earlier) for began, took, earlier in stages])
    worked = {second for began, took, _ in stages for second in range(began, began + took)}
    earlier = sum(stage[2] for stage in stages)
    assert found["wall_seconds"] == len(worked) + earlier
    assert found["stage_seconds"] == sum(stage[1] for stage in stages) + earlier


def test_what_a_stage_took_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Spent(1.25, 2.5, "Ä", 3, {"peak_host_mib": 2.0, "peak_device_mib": None}, 7.0)
    written.write(tmp_path / "spent.json")
    assert Spent.read(tmp_path / "spent.json") == written
    assert written.seconds == 8.25
