"""What is published can be checked by others, and says nothing of the machine; what is changed in it is found."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hrbench import HrbenchError, Run, load_dataset, load_protocol, read_runs
from hrbench.cli import main
from hrbench.report import summarise, write_leaderboard
from hrbench.report.table import overview_table
from hrbench.runs.job import make_job
from hrbench.runs.publication import publish, without_paths
from hrbench.runs.record import write_record
from hrbench.runs.runner import run_job
from hrbench.runs.store import find_runs
from hrbench.runs.submission import NAME, Submission, read_submission, write_submission
from hrbench.runs.verification import MEANING, verify_runs
from hrbench.runs.verified import origin_of, record_verified

RULES = 'name = "quick"\ntitle = "Few draws"\nversion = 1\n[bootstrap]\ndraws = 4\n'
ME = Submission(author="Ada Lovelace", orcid="0000-0002-1825-0097", url="https://example.org/ada")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "mine.toml"
    path.write_text(RULES)
    return path


@pytest.fixture(scope="module")
def made(tree: Path, toy: str, rules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder of a run; do not write into it."""
    output = tmp_path_factory.mktemp("made") / "out"
    job = make_job(load_dataset("folder", tree, ["nut"]).categories[0], toy, preset="native", options={"steps": 2})
    run_job(job, output, [load_protocol(rules)], device=torch.device("cpu"), save_maps=True)
    return output


@pytest.fixture(scope="module")
def published(made: Path, rules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a published folder; do not write into it."""
    target = tmp_path_factory.mktemp("community") / "ada"
    written, found = publish(made, target, ME, protocols=[rules])
    assert written is not None
    assert [result.problems for result in found] == [()]
    return target


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "community" / "ada"))


def changed(run: Run, **fields: object) -> None:
    write_record(dataclasses.replace(run.about, **fields), run.files.record)


def test_what_is_published_is_enough_and_no_more(published: Path, made: Path) -> None:
    (run,), (before,) = find_runs(published), find_runs(made)
    assert {path.name for path in published.iterdir()} == {NAME, "protocols", "runs"}
    files = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    evidence = {f"evidence/native-max-8/{name}.parquet" for name in ("images", "components", "calibration", "rims")}
    tables = {f"{name}.parquet" for name in ("records", "components", "images", "replicates", "annotation")}
    assert files == {"run.json"} | evidence | tables
    assert run.records.equals(before.records)
    assert run.evidence.images.equals(before.evidence.images)
    smaller = (run.files.evidence("native-max-8") / "images.parquet").stat().st_size
    assert smaller < 0.8 * (before.files.evidence("native-max-8") / "images.parquet").stat().st_size
    said = read_submission(published)
    assert (said.author, said.orcid, said.url, said.runs) == (ME.author, ME.orcid, ME.url, 1)
    sizes = {path: path.stat().st_size for path in published.rglob("*") if path.is_file() and path.name != NAME}
    assert said.bytes == sum(sizes.values())
    assert said.evidence_bytes == sum(size for path, size in sizes.items() if "evidence" in path.parts)
    (found,) = verify_runs(published)  # without the file of the protocol: it is there
    assert found.problems == ()


def test_no_path_no_user_and_no_host_is_published(made: Path, rules: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "secret place" / "out"))
    (run,) = find_runs(out)
    weights = {"features": f"resnet18 file:{tmp_path}/secret place/m.pth sha256:1f"}
    changed(
        run,
        method=dataclasses.replace(run.about.method, weights=weights, unknown={"host": socket.gethostname()}),
        environment={**run.about.environment, "platform": "Linux-6.1-box-of-ada-x86_64"},
        unknown={"folder": str(tmp_path)},
    )
    publish(out, tmp_path / "ada", ME, protocols=[rules])
    (again,) = find_runs(tmp_path / "ada")
    assert again.about.method.weights == {"features": "resnet18 file:m.pth sha256:1f"}
    assert again.about.environment["platform"] == "Linux"
    private = [str(tmp_path), "secret place", "box-of-ada", str(Path.home())]
    private += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 5]
    for path in (tmp_path / "ada").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [name for name in private if name.encode() in content], path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resnet18 file:/home/a b/m.pth sha256:1f", "resnet18 file:m.pth sha256:1f"),
        (r"C:\Users\ada\m.pth", "m.pth"),
        (r"\\server\share\m.pth", "m.pth"),
        ("~/models/m.pth", "m.pth"),
        ("file:///home/ada/m.pth", "m.pth"),
        ("~ada/m.pth and /tmp/x/y.bin", "m.pth and y.bin"),
        ("https://arxiv.org/abs/1, 3/4 px and timm/resnet18.a1_in1k", None),
        ("tiled:256:64", None),
        ("AMD EPYC (1 thread), 2 GB/s", None),
    ],
)
def test_paths_lose_their_folders(text: str, expected: str | None) -> None:
    assert without_paths({"a": [text]}) == {"a": [text if expected is None else expected]}


def test_an_option_that_names_a_path_is_refused(made: Path, rules: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (run,) = find_runs(out)
    changed(run, method=dataclasses.replace(run.about.method, options={"cache": "/home/ada/cache"}))
    with pytest.raises(HrbenchError, match="option cache is '/home/ada/cache', which names a path"):
        publish(out, tmp_path / "ada", ME, protocols=[rules])
    assert not (tmp_path / "ada").exists()


def test_a_host_that_is_named_is_refused(
    made: Path, rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ada-box")
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (run,) = find_runs(out)
    changed(run, device="CPU of ada-box")
    with pytest.raises(HrbenchError, match=r"run\.json: device names 'ada-box'"):
        publish(out, tmp_path / "ada", ME, protocols=[rules])


def test_only_what_is_verified_is_published(
    made: Path, rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    (run,) = find_runs(out)
    command = ["publish", str(out), "--to", str(tmp_path / "ada"), "--author", "Ada", "--protocol", str(rules)]
    changed(run, seed=5)
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "NOT VERIFIED" in printed.out
    assert f"nothing written to {tmp_path / 'ada'}" in printed.err
    assert not (tmp_path / "ada").exists()
    changed(run, seed=0)
    assert main(command) == 0
    assert re.search(r"1 run by Ada, \S+ \S+, \S+ \S+ of it evidence", capsys.readouterr().out)
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command[:3], str(tmp_path / "a b"), *command[4:]]) == 2
    assert "expected a name of letters" in capsys.readouterr().err


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        path = next(folder.rglob(name))
        path.write_text(change(path.read_text()))

    return tamper


more_draws = edit("quick.toml", lambda text: text.replace("draws = 4", "draws = 5"))


def other_author(folder: Path) -> None:
    table = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**table, "author": "Somebody Else"}))


def resealed(folder: Path) -> None:
    """Change a run with its seal, and leave the submission as it was."""
    changed(find_runs(folder)[0], device="H100")


def wrong_file(folder: Path) -> None:
    said = read_submission(folder)
    write_submission(
        dataclasses.replace(said, files={**said.files, "../../x": next(iter(said.files.values()))}), folder
    )


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (other_author, "submission.json: was edited after it was written"),
        (resealed, "run.json: is not as submission.json says"),
        (more_draws, "quick.toml: is not as submission.json"),
        (more_draws, "the rules given by this name have sha256"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "notes.txt: submission.json does not name it"),
        (lambda folder: next(folder.rglob("replicates.parquet")).unlink(), "replicates.parquet: is missing"),
        (lambda folder: (folder / "runs" / "link").symlink_to("/etc"), "runs/link: submission.json does not name it"),
        (lambda folder: (folder / NAME).write_text('{"schema": 2}'), "not a submission of schema 1"),
        (wrong_file, "../../x: is missing"),
    ],
)  # fmt: skip
def test_what_is_changed_in_a_submission_is_found(copy: Path, tamper: Callable[[Path], None], expected: str) -> None:
    tamper(copy)
    (found,) = verify_runs(copy.parent)
    assert any(expected in problem for problem in found.problems), found.problems


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"author": " "}, "author is ' ', expected a name in one line"),
        ({"author": "a\nb"}, "expected a name in one line"),
        ({"author": "a", "orcid": "0000-0002-1825-0098"}, "expected an ORCID iD"),
        ({"author": "a", "url": "javascript:alert(1)"}, "begins with https://"),
        ({"author": "a", "published": "today"}, "expected a time such as"),
    ],
)
def test_who_publishes_is_checked(fields: dict[str, str], expected: str) -> None:
    with pytest.raises(HrbenchError, match=re.escape(expected)):
        Submission(**fields)
    assert Submission(author="a", orcid="0000-0002-1694-233X").orcid.endswith("X")


def test_a_record_of_what_was_verified_holds_until_a_run_changes(copy: Path, tmp_path: Path) -> None:
    (run,), record = find_runs(copy), copy.parent / "verified.json"
    assert origin_of(run.folder).text.startswith("Ada Lovelace, 20")
    assert origin_of(run.folder).text.endswith(", not verified")
    record_verified(verify_runs(copy), record)
    assert origin_of(run.folder).verified
    assert re.fullmatch(r"Ada Lovelace, 20..-..-.., verified 20..-..-..", origin_of(run.folder).text)
    changed(run, device="H100")
    assert origin_of(run.folder).verified is None
    record_verified(verify_runs(copy), record)
    assert "NOT verified" in origin_of(run.folder).text
    (found,) = verify_runs(copy)
    shutil.rmtree(copy / "runs")
    record_verified([], record)
    assert json.loads(record.read_text())["runs"] == {}
    with pytest.raises(HrbenchError, match="does not lie below its folder"):
        record_verified([found], tmp_path / "elsewhere" / "verified.json")


@pytest.mark.parametrize("deeper", ["", "a", "a/b/c/d/e/f/g"])
def test_who_publishes_cannot_say_that_it_is_verified(copy: Path, deeper: str) -> None:
    (copy / "runs" / deeper).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(copy / "runs", copy / "moved")
    shutil.move(copy / "moved", copy / "runs" / deeper)
    (run,) = find_runs(copy)
    for above in run.folder.parents:
        record_verified(verify_runs(copy), above / "verified.json")
        assert origin_of(run.folder).verified is None
        if above == copy:
            break
    record_verified(verify_runs(copy), copy.parent / "verified.json")
    assert origin_of(run.folder).verified is not None


def test_a_pipe_holds_nothing_up(copy: Path) -> None:
    path = copy / "protocols" / "quick.toml"
    path.unlink()
    os.mkfifo(path)
    (found,) = verify_runs(copy)
    assert "protocols/quick.toml: is not as submission.json says" in found.problems


def test_the_leaderboard_says_who_when_and_whether_it_is_verified(
    copy: Path, rules: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = load_protocol(rules)
    record_verified(verify_runs(copy), copy.parent / "verified.json")
    (board,) = summarise(read_runs(copy), protocol).leaderboards
    said = r"Toy.*: Ada Lovelace, 20.*, verified 20.* \(ORCID 0000-0002-1825-0097, https://example.org/ada\)\."
    assert [note for note in board.notes if re.fullmatch(said, note)]
    assert board.notes[-1] == MEANING
    written = write_leaderboard(read_runs(copy), tmp_path / "report", protocol)
    table = overview_table(board)
    cell = table.cells[0][[column.key for column in table.columns].index("published")]
    assert (cell.text, cell.small[1]) == ("Ada Lovelace", "verified")
    for suffix in ("md", "html", "csv"):
        assert "Ada Lovelace, 20" in written[suffix].read_text(encoding="utf-8"), suffix
    (copy / NAME).write_text("{}")
    (row,) = summarise(read_runs(copy), protocol).leaderboards[0].rows
    assert row.runs[0].origin.submission is None
    assert "submission.json: not a submission" in caplog.text
