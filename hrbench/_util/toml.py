"""TOML tables into frozen dataclasses, with errors that name the dotted path of the wrong key."""

from __future__ import annotations

import tomllib
import typing
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

from hrbench._util.types import Mismatch, conform
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

    Raises
    ------
    HrbenchError
        For an unknown key, a missing one, or a value of another type.
    """
    try:
        return typing.cast(T, conform(table, cls))
    except Mismatch as mismatch:
        raise HrbenchError(f"{where}: {mismatch.path} {mismatch.problem}") from None
