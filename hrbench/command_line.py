"""The words of ``hrbench run``, read and written: ``--set`` into options of methods, and a grid back into a command."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hrbench.errors import HrbenchError
from hrbench.grid_file import OPTIONS, OptionValue

__all__ = ["options_by_method", "parse_settings", "setting_texts", "write_command"]


def parse_settings(texts: Iterable[str], methods: Sequence[str]) -> list[OptionValue]:
    """Parse ``[METHOD.]OPTION=VALUE``, without methods only ``OPTION=VALUE``; values are Python literals, else text.

    Raises
    ------
    HrbenchError
        For another form, or a method that is not among `methods`.

    Examples
    --------
    >>> parse_settings(["l2bt.steps=20"], ["l2bt"])
    [OptionValue(method='l2bt', option='steps', value=20)]
    """
    settings = []
    for text in texts:
        target, equals, value = text.partition("=")
        method, dot, option = target.rpartition(".")
        if not equals or not option.isidentifier() or (dot and method not in methods):
            form = f"[METHOD.]OPTION=VALUE with a method of {', '.join(methods)}" if methods else "OPTION=VALUE"
            raise HrbenchError(f"--set {text!r}: expected {form}")
        settings.append(OptionValue(method if dot else None, option, _value(value)))
    return settings


def setting_texts(options: Mapping[str, Any]) -> list[str]:
    """Return the options of one method as :func:`parse_settings` reads them.

    Examples
    --------
    >>> setting_texts({"steps": 20, "backbone": "resnet18", "note": "20"})
    ['steps=20', 'backbone=resnet18', "note='20'"]
    """
    return [f"{option}={_text(value)}" for option, value in options.items()]


def options_by_method(settings: Iterable[OptionValue], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options of each method: a later setting wins over earlier ones, one of another method says nothing."""
    result: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for method, option, value in settings:
        for name in methods if method is None else {method} & result.keys():
            result[name][option] = value
    return result


def write_command(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the ``hrbench run`` that has these values, ready to be pasted into a shell.

    Parameters
    ----------
    values, defaults : mapping of str to object
        By option. Only values that are not the default are written.

    Examples
    --------
    >>> write_command({"methods": ["my adapter.py"], "batch_size": 4, "seeds": (0,)}, {"seeds": [0]})
    "hrbench run --methods 'my adapter.py' --batch-size 4"
    """
    words = ["hrbench", "run"]
    for name in OPTIONS:
        value, default = (_plain(mapping.get(name)) for mapping in (values, defaults))
        if value not in (None, [], default):
            words += _option(name.replace("_", "-"), value)
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    texts = [str(item) for item in (value if isinstance(value, list) else [value])]
    if len(texts) == 1 and texts[0].startswith("-"):  # a word of its own would be taken for an option
        return [f"--{name}={texts[0]}"]
    return [f"--{name}", *texts]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _text(value: Any) -> str:
    """Return the text of which :func:`_value` makes `value`: plain where that is not read as something else."""
    return value if isinstance(value, str) and _value(value) == value else repr(value)
