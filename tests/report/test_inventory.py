"""What lies in a folder of runs, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hrbench.cli import main
from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol, load_protocol
from hrbench.report.inventory import inventory_json, inventory_text, take_inventory
from hrbench.report.terminal import Terminal

from .conftest import CONFIGS, Factory, alter

NATIVE = load_protocol("native")


@pytest.fixture
def folder(make_run: Factory, tmp_path: Path) -> Path:
    """Return a folder of five runs that are done, one that is damaged, one begun and one that has failed."""
    for category in ("bolt", "nut"):
        for config in CONFIGS[:2]:
            make_run(config, "parts", category)
    alter(make_run(CONFIGS[2], "parts", "bolt"), "method.options", {"steps": 40, "width": 8})
    broken = make_run(CONFIGS[3], "parts", "bolt")
    (broken.folder / "run.json").write_text("{", encoding="utf-8")
    place = tmp_path / "runs" / "parts" / "nut"
    (place / "l2bt-native-s0" / "partial").mkdir(parents=True)
    (place / "fastflow-native-s9.failed.json").write_text(
        json.dumps({"job": "x", "host": "b", "error": "no\x1b memory"})
    )
    return tmp_path


def test_all_states_are_told_and_common_settings_once(folder: Path, protocol: Protocol) -> None:
    text = inventory_text(take_inventory([folder], protocol))
    lines = text.splitlines()
    assert lines[0] == "8 runs of 1 dataset, 2 categories, 2 methods: 5 done, 1 begun, 1 failed, 1 damaged"
    assert "preset native" in lines[1]
    assert "seed 0" in lines[1]
    assert text.count("preset") == 1
    heads = lines[5].split()
    assert heads[:3] == ["method", "view", "weights"]
    assert "steps" not in heads  # FastFlow and L2BT have options of their own
    rows = [line.split() for line in lines[7:10]]
    assert [row[0] for row in rows] == ["FastFlow", "FastFlow", "L2BT"]
    assert rows[0][-4:-1] == ["2/2", "2", f"{float(rows[0][-2]):.3f}"]
    assert lines[12] == f"FastFlow · whole:512: {folder / 'runs/parts/bolt/fastflow-native-whole-512-s0'} and 1 more"
    assert "begun: parts/nut/l2bt-native-s0" in lines
    assert "failed: parts/nut/fastflow-native-s9: no memory (on b)" in lines
    assert any(line.startswith("damaged: parts/bolt/nasty-native-whole-512-s0: ") for line in lines)
    assert "\x1b" not in text


@pytest.mark.parametrize("content", ["{}", "[]"])
def test_a_note_without_a_reason_is_named(folder: Path, protocol: Protocol, content: str) -> None:
    note = folder / "runs" / "parts" / "nut" / "fastflow-native-s9.failed.json"
    note.write_text(content, encoding="utf-8")
    (failed,) = take_inventory([folder], protocol).of("failed")
    assert failed.error == f"{note}: does not say why"


def test_options_that_differ_within_a_method_are_told(make_run: Factory, protocol: Protocol, tmp_path: Path) -> None:
    make_run(CONFIGS[2], seed=0)
    alter(make_run(CONFIGS[2], seed=1), "method.options", {"steps": 90, "layers": [1, 2], "note": "L2BT"})
    lines = inventory_text(take_inventory([tmp_path], protocol)).splitlines()
    assert lines[5].split()[:3] == ["method", "seed", "steps"]
    assert {tuple(line.split()[:3]) for line in lines[7:9]} == {("L2BT", "0", "20"), ("L2BT", "1", "90")}


def test_the_numbers_are_those_of_the_records(folder: Path, protocol: Protocol) -> None:
    found = take_inventory([folder], protocol)
    (entry,) = (e for e in found.of("done") if e.category == "nut" and "whole" in e.run)
    records = entry.run_of.run.records  # type: ignore[union-attr]
    chosen = records[(records["metric"] == "aupro") & (records["subset"] == "all") & (records["fpr_limit"] == 0.05)]
    assert entry.numbers["AUPRO@0.05"] == chosen["value"].iloc[0]


def test_json_tells_the_same(folder: Path, protocol: Protocol) -> None:
    table = json.loads(inventory_json(take_inventory([folder, folder / "runs"], protocol)))
    assert table["states"] == {"done": 5, "begun": 1, "failed": 1, "damaged": 1}
    assert table["common"]["preset"] == "native"
    done = [run for run in table["runs"] if run["state"] == "done"]
    assert {(run["category"], run["settings"]["view"]) for run in done} >= {
        ("bolt", "whole:512"),
        ("nut", "tiled:256:64"),
    }
    assert all(run["numbers"]["AUPRO@0.05"] > 0 for run in done)


def test_it_fits_the_terminal_and_takes_labels(folder: Path, protocol: Protocol) -> None:
    found = take_inventory([folder], protocol, {"fastflow": "FF", "tiled:256:64": "tiles"})
    text = inventory_text(found, Terminal(60))
    shown, folders = text.partition("begun:")[0].splitlines(), [f": {entry.folder}" for entry in found.of("done")]
    pasted = [line for line in shown if any(end in line for end in folders)]
    assert len(pasted) == 3
    assert max(len(line) for line in shown if line not in pasted) <= 60  # paths may be longer
    assert "FF" in text
    assert "FastFlow" not in text
    with pytest.raises(HrbenchError, match="unknown name to label 'fastflw'; did you mean 'fastflow'"):
        take_inventory([folder], protocol, {"fastflw": "FF"})


def test_the_command_shows_it_and_names_an_empty_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["show", str(folder), "--label", "FastFlow=FF", "--json"]) == 0
    assert {run.get("title") for run in json.loads(capsys.readouterr().out)["runs"]} == {"FF", "L2BT", None}
    (tmp_path / "empty").mkdir()
    assert main(["show", str(tmp_path / "empty")]) == 2
    assert "no run in this folder" in capsys.readouterr().err
