"""What the Ray engine decides by itself, without Ray."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from hrbench import HrbenchError, RayEngine
from hrbench.grid.on_ray import _reason, _Rehearsals, _Worker
from hrbench.grid.worker import Facts, Failed
from hrbench.runs.stages import Setting


def engine_with(*facts: Facts) -> RayEngine:
    engine = RayEngine()
    engine._workers = [_Worker(None, f"id-{item.node}", item) for item in facts]
    return engine


def facts(node: str, auto: str = "float32", torch: str = "2.6", identity: str = "cpu") -> Facts:
    precisions = {"auto": auto, "float32": "float32", "bfloat16": "bfloat16"}
    return Facts(node, "a device", identity, precisions, {"torch": torch})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_job": -0.5}, "gpus per job is -0.5, expected at least 0"),
        ({"cpus_per_job": 0}, "cpus per job is 0, expected at least 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        RayEngine(**options)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HrbenchError, match=r"Ray is not installed; pip install 'hrbench\[ray\]'"), RayEngine():
        pass


def test_a_precision_is_what_all_workers_mean() -> None:
    assert engine_with(facts("a"), facts("b")).precision("auto") == "float32"
    assert engine_with(facts("a"), facts("b", "bfloat16")).precision("float32") == "float32"
    assert engine_with(facts("a")).precision("half") == "half"  # the job says what is wrong with it


def test_mixed_precision_is_refused_with_the_nodes() -> None:
    engine = engine_with(facts("a"), facts("b", "bfloat16"), facts("c"), facts("c"))
    with pytest.raises(HrbenchError, match=r"precision 'auto' would be bfloat16 on b; float32 on a, c: "):
        engine.precision("auto")


def test_mixed_versions_are_refused_with_the_nodes() -> None:
    engine = engine_with(facts("a"), facts("b", torch="2.7"))
    with pytest.raises(HrbenchError, match=r"nodes differ: a has torch 2\.6; b has torch 2\.7"):
        engine.precision("float32")


def test_workers_are_counted_once_they_have_spoken() -> None:
    engine = engine_with(facts("a"))
    engine._workers.append(_Worker(None, "0123456789abc"))
    assert engine.workers == 1
    assert engine._workers[1].name == "01234567"


def test_workers_share_a_device_of_their_host_only() -> None:
    first, same, other, elsewhere = (
        _Worker(None, "node", facts(node, identity=identity))
        for node, identity in (("a", "gpu-1"), ("a", "gpu-1"), ("a", "gpu-2"), ("b", "gpu-1"))
    )
    assert first.place == same.place
    assert len({first.place, other.place, elsewhere.place}) == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The node died.\nMore about it.", "The node died."),
        ("", "RuntimeError"),
        ("it died\n  Traceback (most recent call last):\n  File x\nImportError: no torch\n", "ImportError: no torch"),
    ],
)
def test_why_a_worker_died_is_one_line(text: str, reason: str) -> None:
    assert _reason(RuntimeError(text)) == reason


def test_rehearsals_end_whatever_becomes_of_them() -> None:
    jobs: list[Any] = ["job a", "job b"]
    hands = _Rehearsals(jobs, Setting(()))
    calls = [hands.next(worker, 3, 1) for worker in (1, 2, 3)]
    assert [call.arguments[0] if call else None for call in calls] == ["job a", "job b", None]
    assert hands.left == 2
    hands.lost(2, "its node is gone")
    hands.received(1, Failed("a", "no", ""))
    assert list(hands.found()) == [("job b", "its node is gone"), ("job a", "no")]
    assert hands.left == 0


@pytest.mark.parametrize(
    ("options", "nodes", "each", "rooms"),
    [
        ({}, [{"CPU": 6}, {"CPU": 2}], (0.0, 1), [6, 2]),
        ({}, [{"CPU": 64, "GPU": 8}, {"CPU": 16}], (1.0, 4), [8, 0]),
        ({}, [{"CPU": 4, "GPU": 2}], (1.0, 2), [2]),
        ({"gpus_per_job": 0.5}, [{"CPU": 16, "GPU": 2}], (0.5, 4), [4]),
        ({"device": "cpu", "cpus_per_job": 3}, [{"CPU": 7, "GPU": 1}], (0.0, 3), [2]),
    ],
)
def test_what_each_worker_gets(
    options: dict[str, Any], nodes: list[dict[str, float]], each: tuple[float, int], rooms: list[int]
) -> None:
    engine = RayEngine(**options)
    alive = [{"Alive": True, "NodeID": str(at), "Resources": node} for at, node in enumerate(nodes)]
    engine._ray = SimpleNamespace(nodes=lambda: [*alive, {"Alive": False, "NodeID": "x", "Resources": {}}])
    engine._settle_resources()
    assert (engine._gpus_each, engine._cpus_each) == each
    assert list(engine._rooms().values()) == rooms
