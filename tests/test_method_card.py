"""Methods in words: all options with what their docstrings say, as ``hrbench list METHOD`` prints them."""

from __future__ import annotations

import re

import pytest

import hrbench
from hrbench.cli import main
from hrbench.command_line import parse_settings
from hrbench.method_card import method_card
from hrbench.registry import all_options, check_options, load_method


@pytest.mark.parametrize("name", hrbench.list_methods())
def test_every_option_has_its_default_and_meaning(name: str) -> None:
    card = method_card(name)
    found = dict(re.findall(r"^  (\w+) = .*\n      (\S.*)", card, re.MULTILINE))
    assert found.keys() == all_options(load_method(name), {}).keys()
    for preset, chosen in load_method(name).presets.items():
        assert re.search(rf"^  {preset} +{re.escape(chosen.view)}$", card, re.MULTILINE)


@pytest.mark.parametrize("name", ["knn", "uflow", "rstpm"])
def test_set_takes_the_values_that_are_shown(name: str) -> None:
    """What a preset is shown to set is what ``--set`` makes of that text."""
    cls = load_method(name)
    for preset, chosen in cls.presets.items():
        shown = re.search(
            rf"^  {preset} +{re.escape(chosen.view)}\n((?: {{6,}}.*\n)*)", method_card(name), re.MULTILINE
        )
        assert shown
        found = {setting.option: setting.value for setting in parse_settings(shown[1].split(), [name])}
        assert check_options(cls, name, found) == {
            key: tuple(value) if isinstance(value, list) else value for key, value in chosen.options.items()
        }


def test_choices_and_lists_are_written_as_set_takes_them() -> None:
    card = method_card("knn")
    assert "strides = 4,8   sequence of int" in card
    assert "padding = replicate   zeros | reflect | replicate" in card
    assert "normalise = True   bool" in card
    assert "candidates=None bank=None" in card
    assert "`" not in card


def test_list_describes_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "gaussian", "knn"]) == 0
    assert re.findall(r"^(\w+): ", capsys.readouterr().out, re.MULTILINE) == ["gaussian", "knn"]
    assert main(["list", "gausian"]) == 2
    assert "gaussian" in capsys.readouterr().err


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert "COMMAND" in capsys.readouterr().out
