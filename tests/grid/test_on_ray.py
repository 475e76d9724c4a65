"""Grids on a Ray cluster of two nodes, on this machine: no bit and no stage depends on who is there.

Only where Ray is installed: ``pip install 'hrbench[ray]'``.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import assert_same_bits, write_tree

import hrbench
from hrbench import RayEngine, load_protocol
from hrbench.protocol import Bootstrap, Protocol
from hrbench.runs.more_pictures import lacks
from hrbench.runs.store import Run

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # processes and sockets that Ray leaves
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PROTOCOL = dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10))
PAUSE = 0.2  # seconds that the adapter takes for a step, and for an image


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each, and a head with none."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def adapter(toy: str, tmp_path: Path) -> str:
    """The toy, which takes its time and writes down what it does."""
    path, journal = tmp_path / "slow_toy.py", str(tmp_path / "journal")
    text = Path(toy).read_text(encoding="utf-8")
    text = text.replace(
        "import torch\n",
        "import os\nimport time\n\nimport torch\n\n\ndef note(what: str) -> None:\n"
        f"    with open({journal!r}, 'a') as file:\n"
        "        file.write(f'{what} {os.getpid()}\\n')\n\n",
        1,
    )
    text = text.replace(
        "            noise = self.noise", f"            time.sleep({PAUSE})\n            noise = self.noise"
    )
    text = text.replace("        optimizer = torch", "        note('fit')\n        optimizer = torch")
    text = text.replace(
        "        distance = (", f"        note('predict')\n        time.sleep({PAUSE})\n        distance = ("
    )
    path.write_text(text, encoding="utf-8")
    return str(path)


def noted(tmp_path: Path) -> Counter[str]:
    """What the adapter has written down."""
    journal = tmp_path / "journal"
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return Counter(line.split()[0] for line in lines)


def grid(tree: Path, adapter: str, output: Path, **options: Any) -> hrbench.Study:
    protocols: list[str | Path | Protocol] = [PROTOCOL]
    return hrbench.run(
        "folder", [adapter], root=tree, output=output, preset="demo", protocols=protocols,
        options={adapter: {"steps": 6, "noise": 0.1}}, **options,
    )  # fmt: skip


def assert_equal(found: hrbench.Study, expected: hrbench.Study) -> None:
    assert [str(failure.error) for failure in found.failures] == []
    assert len(found.runs) == len(expected.runs) > 0
    for own, other in zip(found.runs, expected.runs, strict=True):
        assert own.folder.name == other.folder.name
        assert_same_bits(own.evidence, other.evidence, but=("seconds",))
        pd.testing.assert_frame_equal(own.records, other.records)


def in_time(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("shared", [False, True])
def test_a_grid_on_a_cluster_gives_the_bits_of_this_process(
    cluster: Any, tree: Path, toy: str, tmp_path: Path, shared: bool
) -> None:
    engine = RayEngine(cluster.address, device="cpu", shared_output=shared)
    found = grid(tree, toy, tmp_path / "ray", engine=engine, seeds=[0, 1])
    assert_equal(found, grid(tree, toy, tmp_path / "here", device="cpu", seeds=[0, 1]))
    assert found.plan is not None
    assert found.plan.workers == 2
    assert "Ray at" in found.plan.where
    assert all(job.seconds is not None for job in found.plan.jobs)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not [*(tmp_path / "ray").rglob("*.lease"), *(tmp_path / "ray").rglob("partial")]


@pytest.mark.parametrize("shared", [False, True])
def test_pictures_that_runs_lack_are_drawn_by_the_workers(cluster: Any, toy: str, tmp_path: Path, shared: bool) -> None:
    root = write_tree(tmp_path / "data", train=8, good=9, bad=14, size=(60, 70))
    views = ["tiled:32:8", "whole:32", "tiled:16:4"]
    alone = [run for view in views for run in grid(root, toy, tmp_path / "ray", device="cpu", views=[view]).runs]
    lacked = [len(lacks(run, alone)) for run in alone]
    assert any(lacked)
    engine = RayEngine(cluster.address, device="cpu", shared_output=shared)
    found = grid(root, toy, tmp_path / "ray", engine=engine, views=views)
    here = grid(root, toy, tmp_path / "here", device="cpu", views=views)
    for run, own, count, other in zip(found.runs, alone, lacked, here.runs, strict=True):
        assert len(run.pictures.items) == len(own.pictures.items) + count
        assert run.damaged() == []
        for one, two in zip(run.pictures.items, other.pictures.items, strict=True):
            assert (one.key, one.score, one.kinds) == (two.key, two.score, two.kinds)
            assert one.map.read_bytes() == two.map.read_bytes()
    assert not list((tmp_path / "ray").rglob("*.lease"))


@pytest.mark.parametrize("stage", ["fit", "predict"])
def test_a_grid_survives_a_node(
    cluster: Any, tree: Path, adapter: str, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr("hrbench.grid.study.samples_of", lambda jobs: [])  # no rehearsal in the journal
    nodes = list(cluster.worker_nodes)
    removed: list[float] = []

    def remove() -> None:
        in_time(lambda: noted(tmp_path)[stage] >= (2 if stage == "fit" else 3))
        cluster.remove_node(nodes[-1], allow_graceful=False)
        removed.append(time.monotonic())

    thread = threading.Thread(target=remove)
    thread.start()
    found = grid(tree, adapter, tmp_path / "ray", engine=RayEngine(cluster.address, device="cpu"))
    thread.join()
    assert removed
    fits = noted(tmp_path)["fit"]
    assert fits == 3 if stage == "fit" else fits == 2  # only the one that was cut short
    assert_equal(found, grid(tree, adapter, tmp_path / "here", device="cpu"))


DRIVER = """
import dataclasses, sys
import hrbench
from hrbench import RayEngine, load_protocol
from hrbench.grid import study
from hrbench.protocol import Bootstrap
study.samples_of = lambda jobs: []
tree, adapter, output, address = sys.argv[1:]
protocol = dataclasses.replace(load_protocol("native"), bootstrap=Bootstrap(draws=10))
hrbench.run("folder", [adapter], root=tree, output=output, preset="demo", protocols=[protocol],
            options={adapter: {"steps": 6, "noise": 0.1}}, engine=RayEngine(address, device="cpu"))
"""


def test_a_driver_that_is_killed_is_followed_by_another(
    cluster: Any, tree: Path, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrbench.grid.study.samples_of", lambda jobs: [])
    output = tmp_path / "ray"
    command = [sys.executable, "-c", DRIVER, str(tree), adapter, str(output), cluster.address]
    with subprocess.Popen(command) as driver:
        in_time(lambda: len(list(output.rglob("calibrated.json"))) == 2 or driver.poll() is not None)
        assert driver.poll() is None
        driver.send_signal(signal.SIGKILL)
    assert not list(output.rglob("run.json"))
    found = grid(tree, adapter, output, engine=RayEngine(cluster.address, device="cpu"))
    assert noted(tmp_path)["fit"] == 2
    assert_equal(found, grid(tree, adapter, tmp_path / "here", device="cpu"))


def test_a_grid_on_this_machine_s_devices(tree: Path, toy: str, tmp_path: Path) -> None:
    with RayEngine(device="cpu", cpus_per_job=1) as engine:
        assert engine.workers >= 1
        assert "Ray at" in engine.describe()
    assert not ray.is_initialized()


def test_what_cannot_be_had_is_said(cluster: Any, tree: Path, toy: str, tmp_path: Path) -> None:
    with pytest.raises(hrbench.HrbenchError, match=r"no node has room for a job of 5 CPUs; there are .*1 CPUs"):
        grid(tree, toy, tmp_path, engine=RayEngine(cluster.address, device="cpu", cpus_per_job=5))
    assert not ray.is_initialized()
    assert not list(tmp_path.iterdir())


def test_a_failing_method_fails_its_jobs_only(cluster: Any, tree: Path, toy: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = Path(toy).read_text(encoding="utf-8")
    fit = "    def fit(self, *_):\n        raise KeyError('no')\n\n    def predict("
    broken.write_text(text.replace("    def predict(", fit), encoding="utf-8")
    study = hrbench.run(
        "folder", [str(broken), toy], root=tree, output=tmp_path / "out", preset="demo", protocols=[PROTOCOL],
        engine=RayEngine(cluster.address, device="cpu"),
    )  # fmt: skip
    assert [failure.method for failure in study.failures] == [str(broken)] * 2
    assert all("KeyError('no') (on node" in str(failure.error) for failure in study.failures)
    assert [type(run) for run in study.runs] == [Run, Run]
