"""What the page's script filters, ranks and compares, against Python: one process of node for all."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import hrbench.report
from hrbench.protocol import Protocol
from hrbench.report.columns import metric_facts, number_text
from hrbench.report.explorer import board_data, json_text, page_rows
from hrbench.report.summary import summarise
from hrbench.runs.store import Run

from .conftest import board_of

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
FOLDER = Path(hrbench.report.__file__).parent


def node(code: str, given: Any) -> Any:
    """Run JavaScript that turns `given` into an answer."""
    script = (
        f"const e = require({json.dumps(str(FOLDER / 'explorer.js'))}),"
        f" a = require({json.dumps(str(FOLDER / 'address.js'))});"
        'const given = JSON.parse(require("fs").readFileSync(0, "utf8"));'
        f"process.stdout.write(JSON.stringify((() => {{ {code} }})()));"
    )
    assert NODE is not None
    done = subprocess.run([NODE, "-e", script], input=json.dumps(given), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_addresses_can_be_read_and_come_back() -> None:
    cases = [
        {"anchor": "", "chosen": {}},
        {"anchor": "screw", "chosen": {"alarms": "5"}},
        {"anchor": "weave-grain~1", "chosen": {"q": "k-nn ü & = + %", "view": "tiled-512-64,whole-1036"}},
        {"anchor": "", "chosen": {"rank": "aupro@0.05_d<8"}},
    ]
    written = node("return given.map(a.write);", cases)
    assert written[1] == "#screw&alarms=5"
    assert written[2].endswith("&view=tiled-512-64,whole-1036")
    assert written[3] == "#rank=aupro@0.05_d%3C8"
    assert node("return given.map((one) => a.parse(one));", written) == cases
    assert node("return a.parse(given);", "#alarms=%zz")["chosen"] == {"alarms": "%zz"}


ROWS = [
    {"number": 0, "chips": {"method": "fastflow", "view": "whole"}, "text": "fastflow whole mobilenet"},
    {"number": 1, "chips": {"method": "fastflow", "view": "tiled"}, "text": "fastflow tiled mobilenet"},
    {"number": 2, "chips": {"method": "knn", "view": "tiled"}, "text": "k-nn tiled resnet"},
]
PARTS = [
    {"kind": "dataset", "id": "d0", "name": "bsdata", "slug": "bsdata", "rows": [0, 1]},
    {"kind": "category", "id": "d0-a", "name": "Screw"},
    {"kind": "category", "id": "d0-b", "name": "tiled floor"},
    {"kind": "dataset", "id": "d1", "name": "weave", "slug": "weave", "rows": [0, 1, 2]},
]


@pytest.mark.parametrize(
    ("chosen", "rows", "parts"),
    [
        ({}, [], []),
        ({"method": "fastflow"}, [2], []),
        ({"method": "fastflow,knn", "view": "tiled"}, [0], []),
        ({"q": "FAST tiled"}, [0, 2], []),
        ({"q": "screw"}, [], ["d0-b"]),
        ({"q": "screw resnet"}, [0, 1], ["d0", "d0-b"]),
        ({"q": "nowhere"}, [0, 1, 2], ["d0", "d1"]),
        ({"method": "knn"}, [0, 1], ["d0"]),
        ({"dataset": "weave"}, [], ["d0"]),
        ({"alarms": "5", "weights": "", "rank": "x"}, [], []),
    ],
)
def test_filter(chosen: dict[str, str], rows: list[int], parts: list[str]) -> None:
    found = node("return e.filter(...given);", [ROWS, PARTS, chosen])
    assert found == {"rows": rows, "parts": parts}


def test_numbers_are_written_as_in_python() -> None:
    metrics = ("aupro", "fpr", "megapixels_per_second")
    values = [0.0, 0.8125, 0.0005, 0.4625, 1.0, 0.0123456, 0.000123, 2.5e-05, 1e-5, 123.456]
    forms = {"aupro": ".3f", "fpr": ".2g", "megapixels_per_second": "cost"}
    cases = [[value, forms[metric]] for metric in metrics for value in values if metric != "fpr" or value <= 1]
    expected = [metric_facts(m).write(v) for m in metrics for v in values if m != "fpr" or v <= 1]
    assert node("return given.map((one) => e.number(...one));", cases) == expected


def test_ranks_are_those_of_the_leaderboard(runs: list[Run], protocol: Protocol) -> None:
    board = board_of(runs, protocol, "weave & grain")
    data = json.loads(json_text(board_data(board, None)))
    lines = node("return e.ranking(given, given.start, e.choice(given, given.start).metric);", data)
    assert [line["number"] for line in lines] == [row.configuration.number for row in board.rows]
    assert [line["rank"] for line in lines] == [None if row.missing else row.rank for row in board.rows]
    assert [line["text"] for line in lines] == [number_text("aupro", row.headline) for row in board.rows]
    others = node('return e.ranking(given, "iou", e.choice(given, "iou").metric);', data)
    lacking = [line for line in others if line["value"] is None]  # one method has no threshold
    assert lacking == others[-1:]
    assert all(line["rank"] is None for line in lacking)
    assert node('return [e.choice(given, "nothing").key, e.choice(given, "aupro@0.01_tiny").size];', data) == [
        "aupro@0.05",
        "_tiny",
    ]


def test_rows_and_boards_agree_on_numbers(runs: list[Run], protocol: Protocol) -> None:
    summary = summarise(runs, protocol)
    known = {row["number"] for row in page_rows(summary)}
    assert all(row.configuration.number in known for board in summary.leaderboards for row in board.rows)


def test_two_rows_compare_either_way() -> None:
    metric = {
        "key": "aupro", "name": "AUPRO", "title": "", "least": False, "form": ".3f", "limits": [["@0.05", "FPR 0.05"]],
        "sizes": [["", "all", ""], ["_tiny", "tiny", ""]],
    }  # fmt: skip
    data = {
        "start": "aupro@0.05", "categories": [{"name": "a"}], "metrics": [metric],
        "rows": [{"number": n, "ranked": True} for n in (7, 3, 5)],
        "values": {
            "aupro@0.05": {"mean": [0.9, 0.6, 0.8], "each": [[0.9], [0.6], [0.8]]},
            "aupro@0.05_tiny": {"mean": [0.9, 0.6, None], "each": [[0.9], [0.6], [None]]},
        },
        "pairs": {"rows": [7, 5], "lines": [["aupro@0.05", "AUPRO"], ["aupro@0.05_tiny", "tiny"]],
                  "units": [30, 8], "fewest": 10, "difference": [[-0.1, None]], "low": [[-0.2, None]],
                  "high": [[-0.05, None]], "share": [[0.01, None]]},
    }  # fmt: skip
    code = "return given.two.map(([i, j]) => { const lines = e.compare(given.data, i, j);"
    code += " return [lines, e.sentence('A', 'B', lines[0]), lines.map(e.range)]; });"
    (forth, said, why), (back, same, _), (none, plain, silent) = node(
        code, {"data": data, "two": [[7, 5], [5, 7], [7, 3]]}
    )
    assert [line["name"] for line in forth] == ["AUPRO, FPR 0.05, all defects", "AUPRO, FPR 0.05, tiny defects"]
    assert [forth[0][k] for k in ("value", "low", "high", "share")] == [0.1, 0.05, 0.2, 0.99]
    assert [back[0][k] for k in ("value", "low", "high", "share")] == [-0.1, -0.2, -0.05, 0.01]
    assert forth[1]["value"] is None
    assert why == ["+0.050 to +0.200", "too few: 8"]
    assert silent == ["no draws", "no draws"]
    assert "A is better than B" in said
    assert "B is better than A" in same
    assert none[0]["low"] is None
    assert none[0]["value"] == pytest.approx(0.3)
    assert plain.endswith("A minus B is +0.300; which is better cannot be told (no draws).")
