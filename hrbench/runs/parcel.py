"""What a stage has left in a job's folder as bytes, to be sent to where there is no such folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from hrbench._util.files import atomic
from hrbench.errors import HrbenchError

__all__ = ["Parcel", "packed", "unpack"]

Parcel = Mapping[str, bytes]
"""The content of files by their path below a folder, with forward slashes."""


def packed(root: Path, paths: Iterable[Path]) -> dict[str, bytes]:
    """Return the files, and all files of the folders, among `paths` below `root`, in order."""
    parcel = {}
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        parcel.update({file.relative_to(root).as_posix(): file.read_bytes() for file in files if file.is_file()})
    return parcel


def unpack(parcel: Parcel, root: Path) -> None:
    """Write the files below `root`, each whole or not at all, in order.

    Raises
    ------
    HrbenchError
        For a path that leaves `root`.
    """
    for name, content in parcel.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or os.sep not in "/\\" or "\\" in name:
            raise HrbenchError(f"{name!r}: a path that leaves its folder, expected one below {root}")
        with atomic(root / path) as temporary:
            temporary.write_bytes(content)
