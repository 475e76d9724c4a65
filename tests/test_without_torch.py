"""What comes before torch is imported: lists, checks, reports, and what is wrong with a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import BUILT_IN, write_tree
from PIL import Image

from hrbench import method_names
from hrbench.errors import HrbenchError
from hrbench.method_names import Listed, check_method, is_built_in, read_method
from hrbench.registry import load_method, option_types

MAIN = """
import contextlib, io, json, sys
from hrbench.cli import main
for words in json.loads(sys.stdin.read()):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
    brought = sorted({"torch", "torchvision", "timm"} & sys.modules.keys())
    print(json.dumps([words, status, out.getvalue(), err.getvalue(), brought]))
"""


def test_lists_checks_reports_and_mistakes_need_no_torch(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "parts", bad=4)
    for path in root.glob("bolt/test/*/*.png"):
        target = (tmp_path / "maps" / path.relative_to(root)).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, 255 - np.asarray(Image.open(path).convert("L"), np.float32))
    out, new = str(tmp_path / "out"), str(tmp_path / "new")
    data = ["--root", str(root)]
    expected: list[tuple[list[str], int, str]] = [
        (["--help"], 0, "leaderboard"),
        (["list"], 0, "gaussian"),
        (["list", "gausian"], 2, "did you mean 'gaussian'"),
        (["data", "check", *data], 0, "as expected"),
        (["data", "stats", *data], 0, "bolt"),
        (["evaluate", *data, "--maps", str(tmp_path / "maps"), "--output", out], 0, "bolt"),
        (["show", out], 0, "1 run"),
        (["leaderboard", out, "--table", "average"], 0, "maps"),
        (["verify", out], 0, "verified"),
        (["comapre", "a", "b"], 2, "did you mean 'compare'"),
        (["run", *data, "--methods", "gausian"], 2, "did you mean 'gaussian'"),
        (["run", *data, "--methods", "no/adapter.py"], 2, "no/adapter.py': no such file"),
        (["run", *data, "--methods", "knn", "--preset", "papr"], 2, "did you mean 'paper'"),
        (["run", *data, "--methods", "knn", "--set", "neighbors=3"], 2, "did you mean 'neighbours'"),
        (["run", *data, "--methods", "knn", "--categories", "blot"], 2, "did you mean 'bolt'"),
        (["run", *data, "--methods", "knn", "--protocol", "natve"], 2, "did you mean 'native'"),
        (["run", "--root", new, "--methods", "knn"], 2, f"{new}: no such folder"),
        (["fit", "gausian", "--images", str(root), "--output", new], 2, "did you mean 'gaussian'"),
        (["fit", "gaussian", "--images", new, "--output", f"{new}/a"], 2, f"{new}: no such file or folder"),
        (["predict", out, "--images", new, "--output", f"{new}.found"], 2, f"{new}: no such file or folder"),
        (["predict", new, "--images", str(root), "--output", f"{new}/a"], 2, new),
        (["export", new, "--images", str(root), "--output", f"{new}.onnx"], 2, new),
    ]
    asked = json.dumps([words for words, _, _ in expected])
    done = subprocess.run([sys.executable, "-c", MAIN], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(expected)
    for (words, status, said), (_, came, shown, error, brought) in zip(expected, found, strict=True):
        assert (came, brought) == (status, []), (words, shown, error)
        assert said in (error if status else shown), (words, shown, error)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_read_of_a_method_is_what_it_says(name: str) -> None:
    said, cls = read_method(name), load_method(name)
    assert said is not None
    assert (said.title, said.paper) == (cls.title, cls.paper)
    assert said.presets == {preset: chosen.view for preset, chosen in cls.presets.items()}
    assert said.options == tuple(option_types(cls))
    for preset, chosen in cls.presets.items():
        check_method(name, preset, chosen.options)


@pytest.mark.parametrize("name", ["_flow", "__init__", "_anomalib", "math:pi", "x.py"])
def test_nothing_is_read_of_what_is_no_built_in_method(name: str) -> None:
    assert not is_built_in(name)
    assert read_method(name) is None


@pytest.mark.parametrize("reference", ["_flow", "gaussian.py", "flow", "other.padim", ""])
def test_what_is_refused_by_name_is_refused_in_the_same_words_later(reference: str) -> None:
    with pytest.raises(HrbenchError) as early:
        check_method(reference)
    with pytest.raises(HrbenchError) as late:
        load_method(reference)
    assert str(early.value) == str(late.value)


PLAIN = """
class Plain(Method):
    title = "a"
    paper = "b"
    presets: ClassVar = {"native": Preset("whole:8", {**OPTIONS})}

    def __init__(self, one: int = 1, *, two: int = 2) -> None: ...
"""


@pytest.mark.parametrize(
    ("plain", "other"),
    [
        ("", ""),
        ('"b"', "PAPER"),
        ('"whole:8"', "VIEW"),
        ('{"native"', '{**OTHERS, "native"'),
        ("*, two: int = 2", "**two"),
        ("__init__", "__new__"),
        ("Preset(", "native("),
    ],
)
def test_what_is_not_said_in_plain_words_is_left_to_the_import(
    plain: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain.py").write_text(PLAIN.replace(plain, other))
    monkeypatch.setattr(method_names, "methods_package", lambda: SimpleNamespace(__path__=[str(tmp_path)]))
    expected = None if plain else Listed("a", "b", {"native": "whole:8"}, ("one", "two"))
    assert read_method("plain") == expected
    if expected is None:
        check_method("plain", "any", ["any"])
