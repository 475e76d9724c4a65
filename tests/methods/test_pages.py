"""The pages of methods: what they say of the `paper` presets beside the reference is what those presets do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

import hrbench
from hrbench.registry import all_options, load_method

HEADING = "## Against the reference\n"
METHODS = Path(__file__).resolve().parents[2] / "methods"
PAGES = [path for path in sorted(METHODS.glob("*.md")) if HEADING in path.read_text(encoding="utf-8")]


def rows_of(page: str, presets: list[str]) -> Iterator[tuple[list[str], str, str]]:
    """Yield presets, option and value "here" of every row that an option opens.

    A table is about the presets that the ``###`` heading above it names, without one about all of the paper's.
    """
    section = page.partition(HEADING)[2]
    about = presets
    for line in re.split(r"\n## ", section)[0].splitlines():
        if line.startswith("### "):
            about = re.findall(r"`([^`]+)`", line)
        elif option := re.match(r"\| `(\w+)` \| ([^|]+) \|", line):
            yield about, option[1], option[2].strip()


def says(cell: str, value: object) -> bool:
    """Tell if a cell gives a value: in code, or as its first word."""
    readings = [*re.findall(r"`([^`]+)`", cell), re.split(r"[,;:]? ", cell)[0]]
    return any(_same(_read(text), value) for text in readings)


def _read(text: str) -> object:
    try:
        return float(Fraction(text)) if "/" in text else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _same(found: object, value: object) -> bool:
    return (list(found) if isinstance(found, tuple) else found) == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_table_against_the_reference_holds(path: Path) -> None:
    cls = load_method(path.stem)
    presets = [name for name in cls.presets if name.startswith("paper")]
    named: dict[str, set[str]] = {name: set() for name in presets}
    for about, option, cell in rows_of(path.read_text(encoding="utf-8"), presets):
        for name in about:
            preset = cls.presets[name]
            value = {"view": preset.view, **all_options(cls, preset.options)}[option]
            assert says(cell, value), f"{name}: {option} is {value!r}, the page says {cell!r}"
            named[name].add(option)
    for name in presets:
        own = {"view", *(option for option, value in cls.presets[name].options.items() if value is not None)}
        assert own <= named[name], f"{name}: no row for {sorted(own - named[name])}"


def test_every_built_in_method_has_such_a_table() -> None:
    built_in = {path.stem for path in METHODS.glob("[a-z]*.py")}
    assert {path.stem for path in PAGES} == built_in <= set(hrbench.list_methods())


def test_a_wrong_table_is_noticed() -> None:
    lines = [
        "| `a` | 1 |",
        HEADING,
        "| `a` | `(3, 1)`; in turn | x |",
        "| b | 2 | x |",
        "### `q`",
        "| `c` | 1e-4, d | x |",
    ]
    assert list(rows_of("\n".join([*lines, "", "## Next", "| `d` | 1 | x |"]), ["p", "q"])) == [
        (["p", "q"], "a", "`(3, 1)`; in turn"),
        (["q"], "c", "1e-4, d"),
    ]
    assert says("`(3, 1)`; in turn", (3, 1))
    assert says("1e-4, constant", 0.0001)
    assert says("`None`: the paper's, 7", None)
    assert not says("1e-3, constant", 0.0001)
    assert not says("`(3,)`", (3, 1))
