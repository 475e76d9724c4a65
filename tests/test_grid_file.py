"""A grid in a file is the same as on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hrbench
from hrbench import cli
from hrbench.grid.study import Study
from hrbench.grid_file import OPTIONS, OptionValue, read_grid

Said = Callable[..., dict[str, Any]]
FILE = """
dataset = "visa"
root = "data/visa"
categories = ["candle", "fryum"]
methods = ["fastflow", "my/adapter.py"]
preset = "paper"
view = ["whole:256", "tiled:256:64"]
seeds = [1, 2]
weights = "bundled"
device = "cpu"
batch_size = 4
precision = "float32"
held_out = 0
compile = true
protocol = ["native", "lowres256"]
output = "out"
save_maps = true
engine = "ray:auto"
gpus_per_job = 0.5
cpus_per_job = 2
shared_output = true
check = false
dry_run = true

[set]
steps = 20
layers = [1, 2]
note = "3"

[set."my/adapter.py"]
steps = 30
weights = "random"
"""
WORDS = [
    *("--dataset", "visa", "--root", "data/visa", "--categories", "candle", "fryum"),
    *("--methods", "fastflow", "my/adapter.py", "--preset", "paper", "--view", "whole:256", "tiled:256:64"),
    *("--seeds", "1", "2", "--weights", "bundled", "--device", "cpu", "--batch-size", "4", "--precision", "float32"),
    *("--held-out", "0"),
    *("--compile", "--protocol", "native", "lowres256", "--output", "out", "--save-maps"),
    *("--engine", "ray:auto", "--gpus-per-job", "0.5", "--cpus-per-job", "2", "--shared-output"),
    *("--no-check", "--dry-run"),
    *("--set", "steps=20", "layers=[1,2]", "note='3'", "my/adapter.py.steps=30", "my/adapter.py.weights=random"),
]


def write(folder: Path, text: str) -> str:
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """Return a function that gives what `hrbench run` with these words hands to :func:`hrbench.run`."""

    def call(*words: str) -> dict[str, Any]:
        calls: list[dict[str, Any]] = []

        def run(dataset: str, methods: list[str], **others: Any) -> Study:
            calls.append({"dataset": dataset, "methods": methods, **others})
            return Study((), ())

        monkeypatch.setattr(hrbench, "run", run)
        monkeypatch.setattr("hrbench.commands.check_names", lambda *_: None)  # they are made up
        assert cli.main(["run", *words]) == 0
        calls[0].pop("stop")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in calls[0].items()}

    return call


def test_a_file_says_what_the_options_say(said: Said, tmp_path: Path) -> None:
    assert said(write(tmp_path, FILE)) == said(*WORDS)


def test_a_batch_size_may_be_left_to_be_found(said: Said, tmp_path: Path) -> None:
    assert said(write(tmp_path, FILE.replace("batch_size = 4", 'batch_size = "auto"')))["batch_size"] == "auto"
    assert said(*WORDS, "--batch-size", "auto")["batch_size"] == "auto"


def test_a_file_of_every_option_leaves_none_to_its_default(said: Said, tmp_path: Path) -> None:
    plain = said("--root", "data", "--methods", "l2bt")
    assert [name for name, value in said(write(tmp_path, FILE)).items() if value == plain[name]] == []


def test_every_option_of_run_is_a_key() -> None:
    parsed = cli._parser().parse_args(["run"])
    assert set(vars(parsed)) - {"function", "grid", "settings", "defaults"} == set(OPTIONS)


def test_options_beside_the_file_win(said: Said, tmp_path: Path) -> None:
    grid = write(tmp_path, FILE)
    words = ["--seeds", "7", "--methods", "fastflow", "--output", "other", "--no-compile", "--batch-size", "8"]
    asked = said(grid, *words)
    assert asked == said(*words, grid, *words)  # wherever the file stands
    changes = {"seeds": [7], "methods": ["fastflow"], "output": Path("other"), "compiled": False, "batch_size": 8}
    options = {"fastflow": {"weights": "bundled", "steps": 20, "layers": [1, 2], "note": "3"}}
    assert asked == {**said(grid), **changes, "options": options}


def test_set_adds_to_the_file_and_wins_option_by_option(said: Said, tmp_path: Path) -> None:
    grid = write(tmp_path, FILE)
    options = said(grid, "--set", "fastflow.steps=5", "weights=pretrained", "--weights", "x.pth")["options"]
    assert options["fastflow"] == {"weights": "pretrained", "steps": 5, "layers": [1, 2], "note": "3"}
    assert options["my/adapter.py"] == {"weights": "pretrained", "steps": 30, "layers": [1, 2], "note": "3"}
    assert said(grid, "--weights", "x.pth")["options"]["my/adapter.py"]["weights"] == "x.pth"
    assert said(grid, "--set", "steps=5")["options"]["my/adapter.py"]["steps"] == 5


def test_root_and_methods_may_come_from_either(said: Said, tmp_path: Path) -> None:
    asked = said(write(tmp_path, "methods = ['l2bt']\n[set.uflow]\nsteps = 3\n"), "--root", "r", "--methods", "uflow")
    assert (asked["methods"], asked["root"], asked["options"]) == (["uflow"], Path("r"), {"uflow": {"steps": 3}})
    asked = said(write(tmp_path, "root = 'r'\n[set.uflow]\nsteps = 3\n"), "--methods", "uflow")
    assert (asked["methods"], asked["root"], asked["options"]) == (["uflow"], Path("r"), {"uflow": {"steps": 3}})


def test_home_is_expanded_as_a_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = "root = '~/data'\nmethods = ['~/a.py']\nprotocol = ['a~', '~nobody-here/p.toml']\n[set.'~/a.py']\nw = '~'\n"
    assert read_grid(Path(write(tmp_path, text))) == {
        "root": "/home/me/data",
        "methods": ("/home/me/a.py",),
        "protocol": ("a~", "~nobody-here/p.toml"),
        "settings": [OptionValue("/home/me/a.py", "w", "/home/me")],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch-size = 4", "batch-size is an unknown key; known: dataset, root"),
        ("batch-size = 4", "did you mean 'batch_size'?"),
        ("views = ['whole:32']", "did you mean 'view'?"),
        ("batch_size = '4'", "batch_size is '4', expected int or one of 'auto'"),
        ("seeds = [0, '1']", "seeds[1] is '1', expected int"),
        ("methods = 'l2bt'", "methods is 'l2bt', expected a list"),
        ("compile = 1", "compile is 1, expected bool"),
        ("set = 3", "set is 3, expected a table"),
        ("methods = ['l2bt']\n[set.l2b]\nsteps = 2", "set.l2b: unknown method 'l2b'; did you mean 'l2bt'?"),
        ("methods = [", "not a valid TOML file"),
    ],
)
def test_mistakes_name_file_and_key(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write(tmp_path, text)
    assert cli.main(["run", grid]) == 2
    error = capsys.readouterr().err
    assert f"{grid}: " in error
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing root and methods: expected --root and --methods, or root and methods in a grid file"),
        (["--methods", "l2bt"], "missing root: expected --root, or root in a grid file (hrbench run GRID.toml)"),
        (["{grid}"], "missing methods: expected --methods, or methods in {grid}"),
        (["nowhere.toml"], "nowhere.toml: no such file"),
        (["l2bt"], "l2bt: expected a .toml file"),
        (["--methods", "l2bt", "g.toml"], "'g.toml' is a grid file, expected before the options: hrbench run g.toml"),
        (["{grid}", "--set", "a=1", "b.toml"], "--set: 'b.toml' is a grid file, expected before the options"),
    ],
)
def test_what_is_missing_is_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write(tmp_path, "root = 'r'")
    assert cli.main(["run", *(word.format(grid=grid) for word in words)]) == 2
    assert message.format(grid=grid) in capsys.readouterr().err


def test_a_grid_from_a_file_runs(tree: Path, toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(tree)
    lines = ["root = 'data'", "categories = ['nut']", f"methods = ['{toy}']", "output = 'out'", f"[set.'{toy}']"]
    assert cli.main(["run", write(tmp_path, "\n".join([*lines, "steps = 2"]))]) == 0
    (run,) = hrbench.read_runs(tmp_path / "out")
    assert (run.about.method.options["steps"], run.about.dataset.category) == (2, "nut")
