"""Files that others may have made or damaged: no link out of their folder, nothing without bounds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hrbench.errors import HrbenchError

__all__ = ["file_digest", "inside", "read_json"]

_LARGEST_INTEGER = 1 << 63


def inside(root: Path, path: Path) -> Path:
    """Return a path below `root` as it is; an error if it leads out of it, by links or by its name.

    `root` itself may be a link.
    """
    try:
        place = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, or a name that can be no file's
        raise HrbenchError(f"{path}: {error}, expected a file") from None
    if not place.is_relative_to(root.resolve()):
        raise HrbenchError(f"{path}: leads out of {root}, to {place}; expected a file in that folder and no link")
    return path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content; an error if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HrbenchError(f"{path}: {error.strerror or error}") from None


def read_json(path: Path, most: int) -> Any:
    """Read a JSON file of at most so many bytes.

    Raises
    ------
    HrbenchError
        If it is no regular file, larger, not valid JSON, or holds an integer or a character that cannot be written.
    """
    if not path.is_file():
        raise HrbenchError(f"{path}: no such file, expected JSON")
    if (size := path.stat().st_size) > most:
        raise HrbenchError(f"{path}: {size} bytes, expected at most {most}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_int=_integer)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise HrbenchError(f"{path}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # of text that is not UTF-8 too
        raise HrbenchError(f"{path}: not valid JSON: {error}") from None
    return value


def _integer(text: str) -> int:
    value = int(text)
    if abs(value) >= _LARGEST_INTEGER:
        raise ValueError(f"integer of {len(text)} digits, expected 64 bits")
    return value
