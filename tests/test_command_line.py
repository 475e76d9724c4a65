"""The command that repeats a failed job: what is printed must work when it is pasted."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import write_tree

import hrbench
from hrbench import HrbenchError, cli
from hrbench.command_line import options_by_method, parse_settings, setting_texts, write_command
from hrbench.grid.study import Failure, Study

DEFAULTS = cli._parser().parse_args(["run"]).defaults
NASTY = 'it\'s "a" $HOME `b` \\ *;\n#ö'


def parse(command: str) -> dict[str, Any]:
    """Return the options that a pasted command has."""
    program, *words = shlex.split(command)
    assert program == "hrbench"
    values = vars(cli._parser().parse_args(words))
    return {name: values[name] for name in DEFAULTS}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"root": Path("data"), "methods": ["l2bt"], "seeds": [3]},
        {"root": Path(NASTY), "output": Path("-o"), "methods": ["-my.py"], "categories": ["-1"], "dataset": NASTY},
        {"view": ["whole:32", "tiled:32:8+tiled:32:8@0.5"], "protocol": ["native", "my rules.toml"], "set": [NASTY]},
        {"compile": True, "save_maps": True, "check": False, "batch_size": 3, "weights": "x y.pth", "device": "cuda:1"},
        {"preset": "demo", "precision": "bfloat16"},
    ],
)
def test_a_written_command_is_read_as_it_was_meant(changes: dict[str, Any]) -> None:
    command = write_command({**DEFAULTS, **changes}, DEFAULTS)
    assert parse(command) == {**DEFAULTS, **changes}
    assert command.count(" --") == len(changes)  # nothing that is the default


def test_a_written_command_takes_back_what_is_the_default_elsewhere() -> None:
    assert write_command({"compile": False}, {"compile": True}) == "hrbench run --no-compile"


@pytest.mark.parametrize(
    "value",
    ["resnet18", "20", "None", "[1", "a=b", " 1", "", NASTY, 20, -1.5e-7, True, None, [1, "2"], (1,), {"a": [None]}],
)
def test_a_setting_is_read_as_it_was_written(value: object) -> None:
    (setting,) = parse_settings(setting_texts({"option": value}), [])
    assert setting == (None, "option", value)
    assert type(setting.value) is type(value)


def test_settings_are_of_one_method_or_of_all() -> None:
    methods = ["l2bt", "my.adapter.py"]
    settings = parse_settings(["my.adapter.py.steps=1", "steps=2", "l2bt.note=x=y"], methods)
    assert options_by_method(settings, methods) == {
        "l2bt": {"steps": 2, "note": "x=y"},
        "my.adapter.py": {"steps": 2},
    }
    assert options_by_method(settings, ["my.adapter.py"]) == {"my.adapter.py": {"steps": 2}}
    with pytest.raises(HrbenchError, match=r"--set 'uflow.steps=2': expected .* of l2bt, my.adapter.py"):
        parse_settings(["uflow.steps=2"], methods)


def test_failures_stand_at_the_end_with_what_repeats_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = (
        Failure("of l2bt", HrbenchError("a.png: no image"), "nut", "l2bt", "whole:32", 1),
        Failure("of mine", RuntimeError("two\n\nlines"), "-bolt 2", "my 1.py", "tiled:32:8", 0),
        Failure("of all", KeyError(), "nut", "l2bt", "whole:32", 2),
    )
    monkeypatch.setattr(hrbench, "run", lambda *_, **__: Study((), failures))
    monkeypatch.setattr("hrbench.commands.check_names", lambda *_: None)  # they are made up
    grid = tmp_path / "grid.toml"
    grid.write_text(
        "root = 'my data'\nweights = 'bundled'\nseeds = [0, 1, 2]\n[set.l2bt]\nsteps = 3\nlayers = [1, 2]\n"
    )
    words = [
        "--methods",
        "l2bt",
        "my 1.py",
        "--save-maps",
        "--set",
        "my 1.py.note=a b",
        "--protocol",
        "native",
        "mvtec",
    ]
    assert cli.main(["run", str(grid), *words]) == 2
    summary, *lines = capsys.readouterr().err.splitlines()
    assert summary == "hrbench: 3 of 3 jobs failed; what was finished is kept"
    said, commands = lines[::2], [line.strip() for line in lines[1::2]]
    assert said == [
        "hrbench: of l2bt: a.png: no image",
        "hrbench: of mine: RuntimeError: two; lines",
        "hrbench: of all: KeyError",
    ]
    asked = {**DEFAULTS, "root": Path("my data"), "save_maps": True, "protocol": ["native", "mvtec"]}
    l2bt = {"methods": ["l2bt"], "categories": ["nut"], "view": ["whole:32"], "seeds": [1]}
    assert parse(commands[0]) == {**asked, **l2bt, "set": ["weights=bundled", "steps=3", "layers=[1, 2]"]}
    mine = {"methods": ["my 1.py"], "categories": ["-bolt 2"], "view": ["tiled:32:8"], "seeds": [0]}
    assert parse(commands[1]) == {**asked, **mine, "set": ["weights=bundled", "note=a b"]}
    assert "steps" not in commands[1]
    assert "note" not in commands[2]


def test_the_printed_command_runs_only_the_job_that_failed(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_tree(tmp_path / "my data", categories=("bolt", "nut m6"))
    shutil.copy(toy, "other's.py")
    image = root / "nut m6" / "test" / "dent" / "002.png"
    whole = image.read_bytes()
    image.write_bytes(b"not an image")
    Path("grid.toml").write_text(
        "root = 'my data'\nview = ['whole:32', 'tiled:32:8']\nprotocol = ['native', 'mvtec']\ncheck = false\n"
        f"methods = ['{toy}', \"other's.py\"]\n[set]\nsteps = 2\n[set.\"other's.py\"]\nnoise = 0.5\n"
    )
    assert cli.main(["run", "grid.toml", "--output", "my runs"]) == 2
    commands = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  hrbench run")]
    assert len(commands) == 4
    assert len(hrbench.read_runs("my runs")) == 4

    image.write_bytes(whole)
    for number, command in enumerate(commands, start=1):
        assert cli.main(shlex.split(command)[1:]) == 0
        assert len(hrbench.read_runs("my runs")) == 4 + number
    assert cli.main(["run", "grid.toml", "--output", "my runs"]) == 0  # all of them are its jobs
    runs = hrbench.read_runs("my runs")
    assert len(runs) == 8
    assert all(list(run.about.protocols) == ["native", "mvtec"] for run in runs)
    assert {(run.about.method.name, run.about.method.options["noise"]) for run in runs} == {
        ("toy_adapter", 0.0),
        ("other's", 0.5),
    }
