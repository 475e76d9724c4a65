"""What a method is and takes, in words: read from its class, its docstring and its presets."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Literal, get_args, get_origin

from hrbench.method import Method
from hrbench.registry import all_options, load_method, option_types

__all__ = ["method_card"]

_WIDTH = 100


def method_card(name: str) -> str:
    """Return what a method is, its presets, and its options with types, defaults and meaning.

    Parameters
    ----------
    name : str
        See :func:`hrbench.registry.load_method`.

    Raises
    ------
    HrbenchError
        For an unknown method.
    """
    cls = load_method(name)
    lines = [f"{name}: {cls.title}, {cls.paper}", *_wrapped(_summary(cls), "  ")]
    lines += [*_wrapped(f"licence of weights: {cls.weights_licence}", "  "), "", "presets (--preset NAME)"]
    width = max(map(len, cls.presets))
    for preset, chosen in cls.presets.items():
        lines += [f"  {preset:<{width}}  {chosen.view}"]
        settings = " ".join(f"{key}={_text(value)}" for key, value in chosen.options.items())
        lines += _wrapped(settings, " " * (width + 4))
    lines += ["", "options (--set NAME=VALUE)"]
    types, described = option_types(cls), _described(cls)
    for option, default in all_options(cls, {}).items():
        kind, meaning = described.get(option, ("", ""))
        if choices := _choices(types.get(option)):
            kind = " | ".join(choices)
        lines += [f"  {option} = {_text(default)}" + f"   {kind}" * bool(kind), *_wrapped(meaning, "      ")]
    return "\n".join(lines)


def _text(value: object) -> str:
    """Write a value as ``--set`` takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value)) + "," * (len(value) == 1)
    return str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _choices(kind: object) -> list[str]:
    return [_text(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []


def _summary(cls: type[Method]) -> str:
    return _prose((inspect.getdoc(cls) or "").partition("\n\n")[0])


def _described(cls: type[Method]) -> Mapping[str, tuple[str, str]]:
    """Return type and meaning of each option, as the docstring's section of parameters has them."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n---|\Z)", inspect.getdoc(cls) or "", re.DOTALL | re.MULTILINE)
    found = {}
    for names, kind, meaning in re.findall(
        r"^([\w, ]+) : ([^\n]*)\n((?:[ \t]+[^\n]*\n|\n)*)", f"{section[1]}\n" if section else "", re.MULTILINE
    ):
        for name in re.split(", *", names):
            found[name] = (_prose(kind.removesuffix(", optional")), _prose(meaning))
    return found


def _prose(text: str) -> str:
    """Return a text of a docstring in one line, without its marks of code and references."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
    return re.sub(r"\s+", " ", text.replace("`", "")).strip()
