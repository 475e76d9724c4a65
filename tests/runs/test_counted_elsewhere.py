"""Runs whose maps are counted on the device: here the CPU, which otherwise counts in the host's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same_bits

from hrbench import load_dataset, load_protocol
from hrbench.engine import anomaly_map
from hrbench.engine.anomaly_map import AnomalyMap
from hrbench.evidence import Evidence, EvidenceSpec
from hrbench.runs import stages
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job
from hrbench.runs.shards import EvidenceShards
from hrbench.runs.store import Run, RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return for each map that is finished whether all of it is sent to the host."""
    sent: list[bool] = []
    finish = stages.finish

    def watched(*args: object, whole: bool = True) -> AnomalyMap:
        sent.append(whole)
        return finish(*args, whole=whole)

    monkeypatch.setattr(stages, "finish", watched)
    return sent


@pytest.mark.parametrize(("protocols", "save_maps"), [(["native"], False), (["native", "lowres256"], True)])
def test_a_run_leaves_the_same_evidence(
    tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: list[bool], protocols, save_maps
) -> None:
    category = load_dataset("folder", tree).categories[0]
    job = make_job(category, toy, preset="native", view="whole:32+tiled:32:8", options={"steps": 2, "decide": True})

    def run(name: str) -> Run:
        return run_job(job, tmp_path / name, [load_protocol(p) for p in protocols], device=CPU, save_maps=save_maps)

    here = run("here")
    brought.clear()
    counted: list[int] = []
    real = AnomalyMap.counted
    monkeypatch.setattr(anomaly_map, "COUNTING", {"cpu"})
    monkeypatch.setattr(AnomalyMap, "counted", lambda *a, **k: counted.append(1) or real(*a, **k))
    there = run("there")
    held_out, tests = there.about.dataset.held_out, len(category.test)
    assert len(counted) == held_out + tests
    lowres, saved = "lowres256" in protocols, sorted(here.folder.glob("maps/**/*.tiff"))
    assert brought[: held_out + tests] == [lowres] * held_out + [lowres or save_maps] * tests

    folders = sorted(here.folder.glob("evidence/*"))
    assert len(folders) == len(protocols)
    for folder in folders:
        own, other = Evidence.load(there.folder / "evidence" / folder.name), Evidence.load(folder)
        assert_same_bits(own, other, but=("seconds",))
        assert own.calibration is not None
        assert other.calibration is not None
        for image, expected in zip(own.calibration.normals, other.calibration.normals, strict=True):
            assert np.array_equal(image.keys, expected.keys)
            assert np.array_equal(image.cumulative, expected.cumulative)
        assert own.calibration.mean == pytest.approx(other.calibration.mean, rel=1e-13)
        assert own.calibration.std == pytest.approx(other.calibration.std, rel=1e-13)
    assert bool(saved) == save_maps
    for path in saved:
        assert path.read_bytes() == (there.folder / path.relative_to(here.folder)).read_bytes()


@pytest.mark.parametrize("save_maps", [False, True])
@pytest.mark.parametrize("spec", [EvidenceSpec(), EvidenceSpec(side=32)])
def test_whole_maps_are_wanted_to_be_saved_or_shrunk(tmp_path: Path, spec: EvidenceSpec, save_maps: bool) -> None:
    shards = EvidenceShards(RunFolder(tmp_path), [], [spec], seed=0, fitted="", save_maps=save_maps)
    assert shards.takes_maps == (save_maps or spec.side is not None)
