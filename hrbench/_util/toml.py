"""TOML tables into frozen dataclasses, with errors that name the dotted path of the wrong key."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

from hrbench.errors import HrbenchError

__all__ = ["build", "read_toml"]

T = TypeVar("T")


def read_toml(path: Traversable) -> dict[str, Any]:
    """Read a TOML file; a missing or malformed one is a :class:`HrbenchError` that names it."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HrbenchError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HrbenchError(f"{path}: not a valid TOML file: {error}") from None


def build(cls: type[T], table: dict[str, Any], where: str) -> T:
    """Make the dataclass `cls` from `table`; `where` names the file in errors.

    Understands str, bool, int, float (an integer will do), Literal, ``X | None``, homogeneous tuples,
    ``dict[str, X]`` and nested dataclasses.

    Raises
    ------
    HrbenchError
        For an unknown key, a missing one, or a value of another type.
    """
    return typing.cast(T, _build(cls, table, where, ""))


def _build(cls: Any, table: Any, where: str, path: str) -> Any:
    if not isinstance(table, dict):
        raise _wrong(where, path, table, "a table")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            raise HrbenchError(f"{where}: unknown key {_dot(path, key)!r}; known: {', '.join(fields)}")
    values = {key: _value(hints[key], item, where, _dot(path, key)) for key, item in table.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise HrbenchError(f"{where}: key {_dot(path, name)!r} is missing")
    return cls(**values)


def _value(hint: Any, item: Any, where: str, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, item, where, path)
    if origin is typing.Literal:
        if item not in arguments:
            raise _wrong(where, path, item, "one of " + ", ".join(map(repr, arguments)))
        return item
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _value(inner, item, where, path)
    if origin is tuple:
        if not isinstance(item, list):
            raise _wrong(where, path, item, "a list")
        return tuple(_value(arguments[0], x, where, f"{path}[{i}]") for i, x in enumerate(item))
    if origin is dict:
        if not isinstance(item, dict):
            raise _wrong(where, path, item, "a table")
        return {key: _value(arguments[1], x, where, _dot(path, key)) for key, x in item.items()}
    if hint is float and type(item) is int:
        return float(item)
    if type(item) is not hint:
        raise _wrong(where, path, item, hint.__name__)
    return item


def _dot(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _wrong(where: str, path: str, item: Any, expected: str) -> HrbenchError:
    return HrbenchError(f"{where}: {path or 'the file'} is {item!r}, expected {expected}")
