"""Damage: files of finished runs are changed, cut, deleted, tampered with or linked elsewhere; then the folder is read.

A command may repair what it can from the evidence, or name run or file and remedy and leave the other runs alone.
What it must not do is believe it, fail for all, or delete what is good or the user's.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .verdict import Finding, Outcome, changes, digests, judge_end, judge_success, last_line
from .world import Case, Stage, World, leaderboard_values

NOTE = "notes of the user.txt"
MOST_MIB = 2500  # what a command may take at most, whatever it reads
SECRET = b"the secret of another folder, 0123456789" * 20


def finished(world: World) -> Path:
    """Return a folder with two runs of the toy, of seeds 0 and 1; the first is the one that is damaged."""

    def make() -> Path:
        output = world.finished("two seeds", world.run_toy("--seeds", "0", "1", "--save-maps"))
        (damaged_run(output) / NOTE).write_text("mine")
        (output / NOTE).write_text("mine")
        return output

    made: Path = world.once("damage", make)
    return made


def damaged_run(output: Path) -> Path:
    """Return the folder of the run of seed 0."""
    (folder,) = (path.parent for path in output.rglob("run.json") if "-s0-" in path.parent.name)
    return folder


def run_again(stage: Stage) -> list[str]:
    """Return the command that made the runs."""
    return [*stage.world.run_toy("--seeds", "0", "1", "--save-maps"), "--output", str(stage.out)]


def report(stage: Stage, command: str) -> list[str]:
    """Return a command that reads the runs."""
    if command == "rescore":
        return ["rescore", str(stage.out), "--protocol", stage.world.quick]
    return [command, str(stage.out), "--output", str(stage.report), "--protocol", stage.world.quick]


def _reference(stage: Stage, command: str) -> dict[str, str]:
    """Return the digests of the report of the undamaged runs."""

    def make() -> dict[str, str]:
        target = stage.world.root / f"report of {command}"
        argv = [command, str(finished(stage.world)), "--output", str(target), "--protocol", stage.world.quick]
        stage.world.server.ask(argv=argv, cwd=str(stage.world.root))
        return digests(target)

    found: dict[str, str] = stage.world.once(f"reference {command}", make)
    return found


# -- bytes


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def _truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _delete(path: Path, rng: random.Random) -> None:
    del rng
    path.unlink()


def _empty(path: Path, rng: random.Random) -> None:
    del rng
    path.write_bytes(b"")


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": _flip, "truncate": _truncate, "delete": _delete, "empty": _empty,
}  # fmt: skip
FILES = (
    "run.json", "records.parquet", "components.parquet", "images.parquet", "replicates.parquet", "weights.safetensors",
    "evidence/*/images.parquet", "evidence/*/components.parquet", "evidence/*/calibration.parquet",
    "evidence/*/rims.parquet", "annotation.parquet", "pictures/pictures.json", "pictures/00-*.jpg",
    "maps/bolt/test/dent/004.tiff",
)  # fmt: skip


def bytes_damaged(pattern: str, kind: str, command: str, number: int, seed: int) -> Case:
    """Return a case of a damaged file, and of the command that reads the runs."""

    def play(stage: Stage) -> Iterable[Finding]:
        rng = random.Random(f"{seed} {pattern} {kind} {number}")
        stage.copy(finished(stage.world))
        run = damaged_run(stage.out)
        found = sorted(path for path in run.glob(pattern) if path.is_file())
        if not found:
            return
        path = rng.choice(found)
        before = digests(stage.out)
        KINDS[kind](path, rng)
        yield from _judge_reading(stage, command, path, run, before)

    return Case("damage", "8", f"{command} after {kind} {number} of {pattern}", play)


def _judge_reading(stage: Stage, command: str, path: Path, run: Path, before: dict[str, str]) -> Iterable[Finding]:
    """Run the command, and judge what it says, shows, keeps and repairs."""
    argv = run_again(stage) if command == "run" else report(stage, command)
    outcome = stage.hrbench(*argv, memory_mib=MOST_MIB)
    yield from judge_end(outcome)
    name = str(path.relative_to(stage.out))
    after = digests(stage.out)
    for other in before:
        mine = other.endswith(NOTE) or ("-s1-" in other) or (other.endswith("weights.safetensors") and other != name)
        if mine and other not in after:
            yield Finding("lost", f"{other} is gone")
        elif mine and not other.endswith(NOTE) and command != "rescore" and after[other] != before[other]:
            yield Finding("lost", f"{other} is another")
    told = any(word in outcome.text for word in (run.name, path.name))
    if command in ("leaderboard", "plot"):
        differs = changes(_reference(stage, command), digests(stage.report)) if stage.report.is_dir() else []
        if outcome.code == 0 and differs and not told:
            yield Finding("silent", f"{command}: {differs[0]}, no word")
        if outcome.code and not (stage.report / "leaderboard.csv").is_file() and command == "leaderboard":
            yield Finding("other", f"one damaged run takes all: {last_line(outcome.err)}")
        if outcome.code and not told:
            yield Finding("other", f"neither run nor file is named: {last_line(outcome.err)}")
    elif outcome.code == 0 and after.get(name) != before[name] and not told:
        yield Finding("silent", f"{command}: {name} stays as it is, no word")
    elif outcome.code and not told:
        yield Finding("other", f"neither run nor file is named: {last_line(outcome.err)}")


# -- run.json that is tampered with

ODD: Sequence[Any] = (
    None, True, -1, 0, 1e308, 10**400, float("nan"), float("-inf"), "", "x", "../../../../victim", "\0", "=1+1",
    "<script>alert(1)</script>", [], {}, [[]], [1, "a"], {"a": 1}, "\ud800", "9" * 10000,
)  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*place, key))


def tampered_record(number: int, seed: int) -> Case:
    """Return a case of a run.json in which something is another, or gone, or more."""

    def play(stage: Stage) -> Iterable[Finding]:
        rng = random.Random(f"{seed} record {number}")
        stage.copy(finished(stage.world))
        path = damaged_run(stage.out) / "run.json"
        about = json.loads(path.read_text(encoding="utf-8"))
        place = rng.choice(list(_places(about)))
        inner = about
        for key in place[:-1]:
            inner = inner[key]
        how = rng.random()
        if how < 0.15 and isinstance(inner, dict):
            del inner[place[-1]]
            what = "without"
        else:
            inner[place[-1]] = rng.choice(ODD)
            what = f"{str(inner[place[-1]])[:30]!r} as"
        path.write_text(json.dumps(about), encoding="utf-8")
        yield from _read_all(stage, number, f"{what} {'.'.join(map(str, place))}")

    return Case("damage", "14", f"tampered run.json {number}", play)


def odd_json(name: str, content: bytes) -> Case:
    """Return a case of a run.json that is something else."""

    def play(stage: Stage) -> Iterable[Finding]:
        stage.copy(finished(stage.world))
        (damaged_run(stage.out) / "run.json").write_bytes(content)
        yield from _read_all(stage, 0, name)

    return Case("damage", "14", f"run.json: {name}", play)


def _read_all(stage: Stage, number: int, what: str) -> Iterable[Finding]:
    """Read the runs with one command, by turns, and judge how it ends; values that make sense may be believed."""
    command = "plot" if number % 20 == 19 else ("leaderboard", "leaderboard", "run", "rescore")[number % 4]
    before = {name for name in digests(stage.out) if "-s1-" in name or name.endswith(NOTE)}
    outcome = stage.hrbench(*(run_again(stage) if command == "run" else report(stage, command)), memory_mib=MOST_MIB)
    for finding in judge_end(outcome):
        yield Finding(finding.verdict, f"{command}, {what}: {finding.why}")
    if gone := before - digests(stage.out).keys():
        yield Finding("lost", f"{command}, {what}: {sorted(gone)[0]} is gone")
    if outcome.code and damaged_name(stage) not in outcome.text:
        yield Finding("other", f"{command}, {what}: the run is not named: {last_line(outcome.err)}")
    if outcome.code and command == "leaderboard" and not (stage.report / "leaderboard.csv").is_file():
        yield Finding("other", f"{command}, {what}: one damaged run takes all: {last_line(outcome.err)}")
    page = stage.report / "leaderboard.html"
    if page.is_file() and "<script>alert(1)" in page.read_text(encoding="utf-8", errors="replace"):
        yield Finding("outside", f"{command}, {what}: a script is in the page")


def damaged_name(stage: Stage) -> str:
    """Return the name of the damaged run's folder."""
    (name,) = {path.name for path in stage.out.glob("runs/*/*/*") if "-s0-" in path.name and path.is_dir()}
    return name


# -- tables that are tampered with

TABLES = ("records", "components", "images", "replicates", "annotation")


def tampered_table(number: int, seed: int) -> Case:
    """Return a case of a table with a column gone, of another type, with odd values, or with rows more or less."""

    def play(stage: Stage) -> Iterable[Finding]:
        rng = random.Random(f"{seed} table {number}")
        stage.copy(finished(stage.world))
        run = damaged_run(stage.out)
        tables = [run / f"{name}.parquet" for name in TABLES] + sorted(run.glob("evidence/*/*.parquet"))
        path = rng.choice([table for table in tables if table.is_file()])
        before = digests(stage.out)
        frame = pd.read_parquet(path)
        column = rng.choice(list(frame.columns))
        how = rng.choice(
            ("gone", "text", "nan", "huge", "lists", "twice", "half", "no rows", "value", "renamed", "bool")
        )
        if how == "gone":
            frame = frame.drop(columns=[column])
        elif how in ("text", "lists", "nan", "huge", "bool"):
            odd: Any = {"text": "x", "nan": np.nan, "huge": 1e308, "bool": True}.get(how)
            frame[column] = [[1.0]] * len(frame) if how == "lists" else odd
        elif how == "twice":
            frame = pd.concat([frame, frame], ignore_index=True)
        elif how == "half":
            frame = frame.iloc[::2]
        elif how == "no rows":
            frame = frame.iloc[:0]
        elif how == "renamed":
            frame = frame.rename(columns={column: "other"})
        else:
            numbers = [name for name in frame.columns if frame[name].dtype.kind == "f"] or [column]
            frame[numbers[-1]] = frame[numbers[-1]].sample(frac=1, random_state=number).to_numpy()
        frame.to_parquet(path, index=False)
        if digests(stage.out) == before:
            return
        command = "plot" if number % 20 == 19 else ("leaderboard", "run")[number % 2]
        yield from (
            Finding(finding.verdict, f"{path.name}, {column} {how}: {finding.why}")
            for finding in _judge_reading(stage, command, path, run, before)
        )

    return Case("damage", "14", f"tampered table {number}", play)


def many_rows(name: str, command: str) -> Case:
    """Return a case of a small Parquet file of sixty million rows."""

    def play(stage: Stage) -> Iterable[Finding]:
        stage.copy(finished(stage.world))
        run = damaged_run(stage.out)
        path = next(iter(sorted(run.glob(name))), None)
        if path is None:
            return
        table = pq.read_table(path)
        row = table.slice(0, 1)
        million = pa.concat_tables([row] * 1000).combine_chunks()
        million = pa.concat_tables([million] * 1000).combine_chunks()
        with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
            for _ in range(60):
                writer.write_table(million)
        argv = run_again(stage) if command == "run" else report(stage, command)
        outcome = stage.hrbench(*argv, memory_mib=MOST_MIB, timeout=120)
        yield from judge_end(outcome)
        if outcome.code == 0 and run.name not in outcome.text:
            yield Finding("silent", f"{command}: sixty million rows believed")

    return Case("damage", "14", f"{command} of {name} of 60 million rows", play)


# -- links, and files that are missing


def linked(what: str, command: str) -> Case:
    """Return a case of a link out of a run: nothing of where it leads may be shown, or written."""

    def play(stage: Stage) -> Iterable[Finding]:
        world = stage.world
        stage.copy(finished(world))
        run = damaged_run(stage.out)
        secret = Path(stage.file("secret/any.txt", SECRET))
        picture = secret.with_name("secret.jpg")
        pixels = np.random.default_rng(3).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(picture, quality=95)
        if what in ("text", "picture"):
            place = next(run.glob("pictures/00-*.jpg"))
            place.unlink()
            place.symlink_to(secret if what == "text" else picture)
        elif what == "named":
            index = run / "pictures/pictures.json"
            items = json.loads(index.read_text(encoding="utf-8"))
            items["items"][0]["photo"] = str(picture)
            index.write_text(json.dumps(items), encoding="utf-8")
        else:
            place = next(path for path in run.glob(what))
            target = secret.with_name(place.name)
            shutil.move(place, target)
            place.symlink_to(target)
        stage.set()
        outcome = stage.hrbench(*(run_again(stage) if command == "run" else report(stage, command)))
        yield from judge_end(outcome)
        shown = b"".join(path.read_bytes() for path in stage.report.rglob("*") if path.is_file())
        for content in (SECRET, picture.read_bytes()):
            if base64.b64encode(content)[:200] in shown or content[:200] in shown:
                yield Finding("outside", "a file outside the runs folder is in the page")
        believed = what not in ("text", "picture", "named", "maps", "weights.safetensors")
        if outcome.code == 0 and believed and run.name not in outcome.text and command == "leaderboard":
            yield Finding("silent", "a link out of the run is followed, no word")

    return Case("damage", "14", f"{command}: link {what}", play)


def lost_record(more: str) -> Case:
    """Return a case of a run without run.json that is run again: good weights and the user's notes stay."""

    def play(stage: Stage) -> Iterable[Finding]:
        stage.copy(finished(stage.world))
        run = damaged_run(stage.out)
        before = digests(stage.out)
        (run / "run.json").unlink()
        if more == "with partial":
            (run / "partial").mkdir()
        outcome = stage.hrbench(*run_again(stage))
        yield from judge_success(outcome)
        after = digests(stage.out)
        if str((run / NOTE).relative_to(stage.out)) not in after:
            yield Finding("lost", "the user's note in the run's folder is gone")
        if stage.fits() and run.name not in outcome.err:
            yield Finding("lost", "good weights are thrown away without a word: the method was fitted again")
        for name in before:
            if name not in after:
                yield Finding("lost", f"{name} is gone")

    return Case("damage", "8", f"lost run.json {more}", play)


def missing(pattern: str) -> Case:
    """Return a case of something missing that `run` repairs, or says that it cannot."""

    def play(stage: Stage) -> Iterable[Finding]:
        stage.copy(finished(stage.world))
        run = damaged_run(stage.out)
        before = digests(stage.out)
        for path in sorted(run.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        outcome: Outcome = stage.hrbench(*run_again(stage))
        yield from judge_end(outcome)
        gone = before.keys() - digests(stage.out).keys()
        if gone and run.name not in outcome.text:
            yield Finding("silent", f"run: {sorted(gone)[0]} is missing and never repaired, no word")
        elif outcome.code and run.name not in outcome.text:
            yield Finding("other", f"the run is not named: {last_line(outcome.err)}")

    return Case("damage", "8", f"run without {pattern}", play)


def strange_folder(name: str, make: Callable[[Path], Any]) -> Case:
    """Return a case of a runs folder with something strange in it: the runs are shown all the same."""

    def play(stage: Stage) -> Iterable[Finding]:
        stage.copy(finished(stage.world))
        make(stage.out)
        stage.set()
        outcome = stage.hrbench(*report(stage, "leaderboard"), timeout=30)
        yield from judge_end(outcome)
        table = stage.report / "leaderboard.csv"
        if not table.is_file() or "toy" not in set(leaderboard_values(stage.report)["method"]):
            yield Finding("other", f"the good runs are not shown: {last_line(outcome.err)}")

    return Case("damage", "14", f"a runs folder with {name}", play)


def _loop(output: Path) -> None:
    (output / "runs/loop").symlink_to(output)


def _folder_record(output: Path) -> None:
    (output / "runs/tree/bolt/x-s0-00000000/run.json").mkdir(parents=True)


def _fifo(output: Path) -> None:
    import os

    place = output / "runs/tree/bolt/x-s0-00000000"
    place.mkdir(parents=True)
    os.mkfifo(place / "run.json")


def _dangling(output: Path) -> None:
    place = output / "runs/tree/bolt/x-s0-00000000"
    place.mkdir(parents=True)
    (place / "run.json").symlink_to("/nowhere")


def _big(output: Path) -> None:
    place = output / "runs/tree/bolt/x-s0-00000000"
    place.mkdir(parents=True)
    with (place / "run.json").open("wb") as file:
        file.truncate(8 << 30)


ODD_JSON = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "not UTF-8": b"\xff\xfe{}",
    "NUL": b"\0" * 100,
    "nested": b"[" * 100000,
    "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "twice": b"{}{}",
    "only a brace": b"{",
    "a huge number": b'{"schema": ' + b"9" * 5000 + b"}",
    "another schema": b'{"schema": 99}',
}


def cases(args: argparse.Namespace) -> Iterable[Case]:
    """Yield all cases of the family."""
    of: dict[str, Sequence[str]] = {
        "records.parquet": ("leaderboard", "run", "plot"),
    }
    for pattern in FILES:
        for kind in KINDS:
            rest = ("leaderboard", "run") if kind in ("flip", "delete") else ("run",)
            if (pattern, kind) == ("run.json", "delete"):
                continue  # the run is not done, see lost_record
            if (pattern.partition("/")[0], kind) == ("maps", "flip"):
                continue  # maps are known by their sizes: no result depends on them
            for command in of.get(pattern, rest):
                for number in range(3 if kind == "flip" and command == "run" else 1):
                    yield bytes_damaged(pattern, kind, command, number, args.seed)
    for pattern in ("records.parquet", "evidence/*/components.parquet", "evidence/*/calibration.parquet"):
        yield bytes_damaged(pattern, "flip", "rescore", 0, args.seed)
        yield bytes_damaged(pattern, "flip", "plot", 1, args.seed)
    for more in ("", "with partial"):
        yield lost_record(more)
    for pattern in (
        "weights.safetensors",
        "evidence",
        "pictures",
        "pictures/*.jpg",
        "maps",
        "records.parquet",
        "*.parquet",
    ):
        yield missing(pattern)
    for number in range(50):
        yield tampered_record(number, args.seed)
    for name, content in ODD_JSON.items():
        yield odd_json(name, content)
    for number in range(40):
        yield tampered_table(number, args.seed)
    for name, command in (
        ("records.parquet", "leaderboard"), ("images.parquet", "leaderboard"), ("replicates.parquet", "plot"),
        ("components.parquet", "plot"), ("evidence/*/components.parquet", "rescore"),
    ):  # fmt: skip
        yield many_rows(name, command)
    for what in ("text", "picture", "named", "records.parquet", "evidence", "pictures", "run.json", "maps"):
        yield linked(what, "leaderboard")
    for what in ("weights.safetensors", "records.parquet", "maps"):
        yield linked(what, "run")
    makers: dict[str, Callable[[Path], Any]] = {
        "a link to itself": _loop, "a folder called run.json": _folder_record, "a FIFO called run.json": _fifo,
        "a dangling run.json": _dangling, "a run.json of 8 GiB": _big,
    }  # fmt: skip
    for name, make in makers.items():
        yield strange_folder(name, partial(make))
