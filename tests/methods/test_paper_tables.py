"""The pages' tables of a `paper` preset against its reference: what they say of the preset is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from hrbench.registry import load_method

METHODS = Path(__file__).resolve().parents[2] / "methods"


@pytest.mark.parametrize("name", ["isstad", "l2bt"])
def test_the_table_of_the_paper_preset_says_what_it_is(name: str) -> None:
    cls = load_method(name)
    preset = cls.presets["paper"]
    expected = {option: given.default for option, given in inspect.signature(cls).parameters.items()} | preset.options
    page = (METHODS / f"{name}.md").read_text(encoding="utf-8")
    table = page.partition("## The `paper` preset against its reference")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)`", table, flags=re.MULTILINE)
    said = dict(rows)
    assert len(said) == len(rows)
    assert said.pop("view") == preset.view
    assert {option: eval(text) for option, text in said.items()} == expected
