"""Values from outside, such as options and TOML tables, against the annotations of what takes them."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Mismatch", "conform"]


@dataclasses.dataclass
class Mismatch(Exception):  # noqa: N818 - who knows where the value comes from makes it a HrbenchError
    """A value is not of its type.

    Attributes
    ----------
    path : str
        From the value to the part that is wrong: ``threshold.rule`` or ``[2]``; empty for all of it.
    problem : str
        What was found and what was expected, to be read after the part's name.
    """

    path: str
    problem: str


def conform(value: Any, hint: Any, path: str = "") -> Any:
    """Return a value as its annotation wants it: floats for integers, tuples for lists, dataclasses for tables.

    Understands str, bool, int, float, ``X | Y``, Literal, homogeneous sequences, ``dict[str, X]`` and dataclasses;
    values of any other annotation pass as they are. A dataclass with a field `unknown` keeps unknown keys there.

    Raises
    ------
    Mismatch
        For a value of another type, and for a table with an unknown key or without a required one.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _table(value, hint, path)
    if origin is typing.Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise Mismatch(
                path, f"is {value!r}, expected one of {', '.join(map(repr, arguments))}{_near(value, arguments)}"
            )
        return value
    if origin in (typing.Union, types.UnionType):
        return _member(value, arguments, path)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise Mismatch(path, f"is {value!r}, expected a list")
        return tuple(conform(item, arguments[0], f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise Mismatch(path, f"is {value!r}, expected a table")
        return {key: conform(item, arguments[1], _dot(path, key)) for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if hint in (str, bool, int, float) and (not isinstance(value, hint) or (type(value) is bool) != (hint is bool)):
        raise Mismatch(path, f"is {value!r}, expected {hint.__name__}")
    return value


def _table(value: Any, cls: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise Mismatch(path, f"is {value!r}, expected a table")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    unknown = {key: item for key, item in value.items() if key not in fields}
    if "unknown" in fields:
        value = {key: item for key, item in value.items() if key in fields} | {"unknown": unknown}
    elif unknown:
        wrong = next(iter(unknown))
        raise Mismatch(_dot(path, wrong), f"is an unknown key; known: {', '.join(fields)}{_near(wrong, fields)}")
    items = {key: conform(item, hints[key], _dot(path, key)) for key, item in value.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in items:
            raise Mismatch(_dot(path, name), "is missing")
    return cls(**items)


def _member(value: Any, members: Sequence[Any], path: str) -> Any:
    """Return the value as the first member of a union that takes it."""
    if value is None and types.NoneType in members:
        return None
    mismatches = []
    for member in members:
        try:
            if member is not types.NoneType:
                return conform(value, member, path)
        except Mismatch as mismatch:
            mismatches.append(mismatch)
    inside = [mismatch for mismatch in mismatches if mismatch.path != path]
    if inside or len(mismatches) == 1:  # of a part, or of the only member beside None
        raise (inside or mismatches)[0]
    expected = " or ".join(mismatch.problem.partition("expected ")[2] for mismatch in mismatches)
    raise Mismatch(path, f"is {value!r}, expected {expected}")


def _near(value: Any, known: Iterable[Any]) -> str:
    """Return the question after the nearest of what is known, nothing where none is near."""
    near = difflib.get_close_matches(value, map(str, known), n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _dot(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
