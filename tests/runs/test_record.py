"""The record of a run: read back as written, kept where it is newer, refused where it is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hrbench import HrbenchError
from hrbench.evidence import EvidenceSpec
from hrbench.runs.record import (
    Cost,
    EvidenceRecord,
    MethodRecord,
    ProtocolRecord,
    RunRecord,
    ViewedImages,
    read_record,
    write_record,
)

RECORD = RunRecord(
    dataset=ViewedImages(name="parts", category="bolt", test=8),
    protocols={"native": ProtocolRecord(version=1, sha256="ab")},
    evidence=(EvidenceRecord(name="native-max-8", collection=EvidenceSpec()),),
    method=MethodRecord(name="toy", options={"strides": [4, 8], "weights": None}),
    cost=Cost(ms_median=1.5),
    fusion=({"view": "whole:32", "centre": 0.5, "unit": 1.0},),
)


def changed(path: Path, **changes: Any) -> dict[str, Any]:
    """Write a record with keys added by their dotted path, dropped where the value is ...; return its table."""
    write_record(RECORD, path)
    table = json.loads(path.read_text(encoding="utf-8"))
    for dotted, value in changes.items():
        *sections, key = dotted.split("__")
        part = table
        for section in sections:
            part = part[section]
        part.pop(key, None) if value is ... else part.update({key: value})
    path.write_text(json.dumps(table), encoding="utf-8")
    return dict(table)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    changed(tmp_path / "run.json")
    assert read_record(tmp_path / "run.json") == RECORD


def test_keys_of_a_later_version_are_kept_in_every_section(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    table = changed(path, node="box 3", method__flavour=["sour"], cost__joules=7.5)
    record = read_record(path)
    assert record.unknown == {"node": "box 3"}
    write_record(dataclasses.replace(record, seed=5), path)
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again.pop("sha256") != table.pop("sha256")
    assert again == {**table, "seed": 5}


def test_the_figure_of_memory_of_earlier_runs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    changed(path, device="cpu", cost={"peak_memory_mib": 12.0})
    assert read_record(path).cost == Cost(peak_host_mib=12.0)
    changed(path, device="NVIDIA H100", cost={"peak_memory_mib": 12.0}, precision=..., compiled=...)
    assert read_record(path).cost == Cost(peak_device_mib=12.0)


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("/home/ada/my adapters/mine.py", "mine.py"),
        (r"C:\Users\ada\mine.py", "mine.py"),
        ("mine.py", "mine.py"),
        ("fastflow", "fastflow"),
        ("package.module:Class", "package.module:Class"),
    ],
)
def test_where_the_adapter_of_an_earlier_run_lay_is_forgotten(tmp_path: Path, recorded: str, shown: str) -> None:
    changed(tmp_path / "run.json", method__reference=recorded)
    assert read_record(tmp_path / "run.json").method.reference == shown


def test_the_cost_of_earlier_runs_is_of_one_worker_on_one_device(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    later = {"wall_seconds", "stage_seconds", "workers_on_device", "devices"}
    changed(path, **{f"cost__{name}": ... for name in later})
    cost = read_record(path).cost
    assert cost == Cost(ms_median=1.5)
    assert (cost.wall_seconds, cost.stage_seconds, cost.workers_on_device, cost.devices) == (None, None, 1, 1)
    assert cost.comparable


def test_what_stages_took_is_read_as_it_was_written(tmp_path: Path) -> None:
    path, cost = tmp_path / "run.json", Cost(wall_seconds=60.5, stage_seconds=110.0, workers_on_device=2, devices=3)
    write_record(dataclasses.replace(RECORD, cost=cost), path)
    assert json.loads(path.read_text(encoding="utf-8"))["cost"]["workers_on_device"] == 2
    assert read_record(path).cost == cost


@pytest.mark.parametrize(
    ("workers", "devices", "why"),
    [
        (1, 1, ""),
        (2, 1, "the device was shared by 2 workers"),
        (1, 3, "parts ran on 3 different devices"),
        (2, 2, "the device was shared by 2 workers and parts ran on 2 different devices"),
    ],
)
def test_times_are_comparable_alone_on_one_device(workers: int, devices: int, why: str) -> None:
    cost = Cost(workers_on_device=workers, devices=devices)
    assert cost.why_not_comparable == why
    assert cost.comparable == (not why)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method__name": ...}, "key 'method.name' is missing"),
        ({"dataset": ...}, "key 'dataset' is missing"),
        ({"cost__devices": "two"}, "key 'cost.devices' is 'two', expected int"),
        ({"seed": "zero"}, "key 'seed' is 'zero', expected int"),
        ({"method__options": []}, r"key 'method.options' is \[\], expected a table"),
        ({"protocols__native__version": "1"}, "key 'protocols.native.version' is '1', expected int"),
        ({"evidence": [{"name": "x", "collection": {"side": "far"}}]}, r"key 'evidence\[0\].collection.side' is 'far'"),
        ({"schema": 2}, "schema 2, this version of hrbench reads 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.json"
    changed(path, **changes)
    with pytest.raises(HrbenchError, match=rf"run\.json: {message}"):
        read_record(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 1'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(HrbenchError, match=r"run\.json: "):
        read_record(tmp_path / "run.json")


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    wrong = dataclasses.replace(RECORD, method=MethodRecord(name="toy", weights={"backbone": None}))  # type: ignore[dict-item]
    with pytest.raises(HrbenchError, match=r"cannot be written: method.weights.backbone is None, expected str"):
        write_record(wrong, tmp_path / "run.json")
    assert not list(tmp_path.iterdir())
