"""A runs folder from anywhere: whatever stands in its files is one error that names the file, or a page."""

from __future__ import annotations

import base64
import copy
import dataclasses
import io
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hrbench import HrbenchError, Run, load_dataset, load_protocol, read_runs, rescore
from hrbench._util import tables
from hrbench.report import page, write_leaderboard
from hrbench.report.pictures import Album
from hrbench.runs import picture_files
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job
from hrbench.runs.store import find_runs

_NATIVE = load_protocol("native")
QUICK = dataclasses.replace(_NATIVE, bootstrap=dataclasses.replace(_NATIVE.bootstrap, draws=2))
EVIDENCE = [f"evidence/native-max-8/{name}.parquet" for name in ("images", "components", "calibration", "rims")]
TABLES = [f"{name}.parquet" for name in ("records", "components", "images", "replicates", "annotation")]
VALUES: list[Any] = [None, True, -1, 0, 7, 0.5, 1e308, -1e300, math.nan, math.inf, 2**70, "", "x", "../../../etc",
                     "\ud800", "<b>\x1b[31m", "9" * 5000, [], [[]], {}, {"a": [1]}, [None] * 3]  # fmt: skip


@pytest.fixture(scope="module")
def made(tree: Path, toy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder of one run without digests, as who tampers leaves it; do not write into it."""
    output = tmp_path_factory.mktemp("tampered") / "out"
    category = load_dataset("folder", tree).categories[0]
    job = make_job(category, toy, preset="native", options={"steps": 2, "decide": True})
    run = run_job(job, output, [QUICK], device=torch.device("cpu"))
    table = json.loads(run.files.record.read_text(encoding="utf-8"))
    table.pop("files")
    run.files.record.write_text(json.dumps(table), encoding="utf-8")
    return output


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """Return a copy of that run."""
    shutil.copytree(made, tmp_path / "out")
    return find_runs(tmp_path / "out")[0]


def in_json(value: Any, rng: random.Random) -> Any:
    """Change, drop or add something anywhere in a JSON value."""
    parts = [value]
    for part in parts:
        items = part.values() if isinstance(part, dict) else part
        parts += [item for item in items if isinstance(item, dict | list)]
    part = rng.choice([part for part in parts if part])
    key = rng.choice(list(part)) if isinstance(part, dict) else rng.randrange(len(part))
    if rng.random() < 0.15:
        del part[key]
    else:
        part[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def in_table(table: pa.Table, rng: random.Random) -> pa.Table:
    """Change a column, or rows, of a table."""
    name = rng.choice(table.column_names)
    place, column = table.column_names.index(name), table[name]
    kind = column.type
    rows = np.arange(len(table))

    def other(change: Callable[[list[Any]], list[Any]]) -> pa.Table:
        values = change(column.to_pylist())
        try:
            return table.set_column(place, name, pa.array(values, kind))
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            return table.set_column(place, name, pa.array([None if v is None else repr(v) for v in values]))

    def cell(values: list[Any]) -> list[Any]:
        row = rng.randrange(len(values))
        old = values[row]
        if isinstance(old, list) and old and rng.random() < 0.8:
            values[row] = [*old[:-1], rng.choice([None, 0, -1, 1e300, math.nan, old[0]])]
        else:
            values[row] = rng.choice([*VALUES, [], [0.5], 1e9, 3])
        return values

    choices: list[Callable[[], pa.Table]] = [
        lambda: table.drop_columns([name]),
        lambda: table.set_column(place, name, pa.array([str(v) for v in column.to_pylist()])),
        lambda: table.set_column(place, name, pa.array([[v] for v in range(len(table))])),
        lambda: table.set_column(place, name, pa.nulls(len(table))),
        lambda: other(lambda values: [values[0]] * len(values)),
        lambda: other(lambda values: [rng.choice([math.nan, math.inf, -1, 1e300, 0, 2**40])] * len(values)),
        lambda: other(lambda values: values[::-1]),
        lambda: table.take(np.append(rows, rows[:1])),
        lambda: table.slice(0, len(table) // 2),
        lambda: table.slice(0, 0),
        lambda: table.take(rows[::-1]),
        lambda: table.rename_columns([f"{n}2" if n == name else n for n in table.column_names]),
        lambda: table.append_column("more", column),
        lambda: table.replace_schema_metadata({"hrbench": json.dumps(rng.choice(VALUES[:12]))}),
        *[lambda: other(cell)] * 8,
    ]
    return rng.choice(choices)()


def in_facts(table: pa.Table, rng: random.Random) -> pa.Table:
    """Change what a file of evidence says beside its rows."""
    facts = in_json(json.loads(table.schema.metadata[b"hrbench"]), rng)
    return table.replace_schema_metadata({"hrbench": json.dumps(facts)})


def tamper(run: Run, rng: random.Random) -> str:
    """Change something in one file of a run; return which."""
    name = rng.choice(["run.json"] * 3 + ["pictures/pictures.json"] + TABLES * 2 + EVIDENCE * 2)
    path = run.folder / name
    if rng.random() < 0.05:
        path.write_bytes(rng.choice([b"", b"PAR1PAR1", b"[" * 100_000, b"\xff\xfe", b"null", path.read_bytes()[:-9]]))
    elif name.endswith(".json"):
        path.write_text(json.dumps(in_json(json.loads(path.read_text(encoding="utf-8")), rng)), encoding="utf-8")
    else:
        table = pq.read_table(path)
        change = in_facts if name.startswith("evidence") and rng.random() < 0.3 else in_table
        pq.write_table(change(table, rng), path)
    return name


def leaderboard(output: Path) -> None:
    write_leaderboard(read_runs(output), output / "report", QUICK)


def score_anew(output: Path) -> None:
    rescore(find_runs(output)[0], [QUICK], anew=True)


@pytest.mark.parametrize("part", range(4))
def test_whatever_stands_in_a_run_is_one_error_or_a_page(
    made: Path, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "figures", lambda *_, **__: {})  # of numbers that the tables have shown
    refused: list[str] = []
    for seed in range(12 * part, 12 * part + 12):
        output = tmp_path / str(seed)
        shutil.copytree(made, output)
        name = tamper(find_runs(output)[0], random.Random(seed))
        for step in (leaderboard, score_anew) if seed % 4 == 0 else (leaderboard,):
            try:
                step(output)
            except HrbenchError as error:
                refused.append(str(error))
            except BaseException as error:
                raise AssertionError(f"{seed}, {name}") from error
    assert refused
    named = (str(tmp_path), "no run holds records of protocol")
    assert not [error for error in refused if not any(part in error for part in named)]


@pytest.mark.parametrize("name", ["run.json", "records.parquet", "pictures", "pictures/00-photo.jpg", "evidence"])
def test_no_link_leads_out_of_a_run(run: Run, name: str, tmp_path: Path) -> None:
    path, secret = run.folder / name, tmp_path / "secret"
    shutil.move(path, secret)  # what it leads to would be good
    path.symlink_to(secret)
    with pytest.raises(HrbenchError, match="leads out of"):
        _ = Run(run.folder).records, Run(run.folder).pictures, Run(run.folder).evidence


def test_a_run_may_be_linked_as_a_whole(run: Run, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "run").symlink_to(run.folder)
    (linked,) = read_runs(tmp_path / "linked" / "run")
    assert linked.records.equals(run.records)
    assert len(linked.evidence.images) == 8


@pytest.mark.parametrize("name", ["../../..", "native-max-8/../../../x"])
def test_names_in_a_record_lead_nowhere(run: Run, name: str) -> None:
    table = json.loads(run.files.record.read_text(encoding="utf-8"))
    table["evidence"][0]["name"] = name
    table["files"] = {"../../../notes": {"bytes": 1, "sha256": ""}}
    run.files.record.write_text(json.dumps(table), encoding="utf-8")
    again = Run(run.folder)
    with pytest.raises(HrbenchError, match="leaves its folder"):
        _ = again.evidence
    with pytest.raises(HrbenchError, match="leads out of"):
        again.damaged()


@pytest.mark.parametrize("name", ["records", "images"])
def test_a_small_file_of_many_rows_is_refused_unread(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.files.table(name)
    pq.write_table(pa.table({"protocol": np.zeros(6_000_000, np.int8)}), path)
    assert path.stat().st_size < 1e6
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(HrbenchError, match=rf"{name}\.parquet: 6000000 rows, expected at most"):
        run.table(name)


def test_what_a_small_file_repeats_in_lists_or_as_text_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_SMALL", 1 << 20)
    replicates, records = run.files.table("replicates"), run.files.table("records")
    table = pq.read_table(replicates).slice(0, 1)
    values = pa.LargeListArray.from_arrays([0, 10**6], pa.array(np.zeros(10**6)))
    pq.write_table(table.set_column(table.column_names.index("values"), "values", values), replicates)
    with pytest.raises(HrbenchError, match=r"replicates\.parquet: \d+ bytes when it is decoded"):
        run.table("replicates")
    table = pq.read_table(records)
    pq.write_table(table.set_column(0, "run", pa.array(["x" * 5000] * len(table))), records)
    with pytest.raises(HrbenchError, match=r"records\.parquet: column 'run': a text of 5000 bytes"):
        run.table("records")
    columns = {name: pa.array(["x" * 4000] * len(table)) for name in ("run", "method", "view")}
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, records)
    with pytest.raises(HrbenchError, match=r"records\.parquet: \d+ bytes when it is decoded"):
        run.table("records")


def test_only_pictures_get_into_a_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = run.pictures.items[0]
    path = picture.photo
    Image.new("RGB", (40, 30), "red").save(path, "JPEG", comment=b"secret")
    path.write_bytes(path.read_bytes() + b"more secret")
    address = Album().address(picture.read_photo(), "jpeg")
    kept = base64.b64decode(address.partition(",")[2])
    assert b"secret" not in kept
    with Image.open(io.BytesIO(kept)) as image:
        assert image.size == (40, 30)
    monkeypatch.setattr(picture_files, "_PIXELS", 40 * 30)
    wide = io.BytesIO()
    Image.new("1", (50, 30)).save(wide, "JPEG")
    for content in (b"root:x:0:0", wide.getvalue()[:500], wide.getvalue(), b"", kept[:300]):
        path.write_bytes(content)
        with pytest.raises(HrbenchError, match=r"00-photo\.jpg: "):
            picture.read_photo()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(HrbenchError, match=r"00-photo\.jpg: "):
        picture.read_photo()


@pytest.mark.parametrize("name", ["run.json", "records.parquet", "pictures/pictures.json"])
def test_a_pipe_in_a_run_holds_nothing_up(run: Run, name: str) -> None:
    (run.folder / name).unlink()
    os.mkfifo(run.folder / name)
    with pytest.raises(HrbenchError, match=f"{name}: no such file"):
        _ = Run(run.folder).records, Run(run.folder).pictures


def test_an_unreadable_picture_leaves_out_its_line_only(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "figures", lambda *_, **__: {})
    (run.files.pictures / "00-photo.jpg").write_bytes(b"root:x:0:0")
    text = write_leaderboard([run], run.folder.parents[3] / "report", QUICK)["html"].read_text(encoding="utf-8")
    assert "00-photo.jpg: not readable as a JPEG" in caplog.text
    assert "1 line of pictures left out: files of the run are damaged." in text
    assert "data:image/jpeg" in text
