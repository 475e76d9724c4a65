"""What a stage has left in a job's folder as bytes, to be sent to where there is no such folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hrbench._util.files import atomic, below

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
        with atomic(below(root, name)) as temporary:
            temporary.write_bytes(content)
