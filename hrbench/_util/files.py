"""Writing files whole or not at all, and names that stay inside their folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic", "safe_name"]


def safe_name(text: str) -> str:
    """Turn a name from a file or an option into one path component that cannot leave its folder."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).lstrip(".") or "_"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, for a file or a folder; move it there if the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hosts that share a folder may share process ids, and threads of a process always do.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if temporary.is_file():  # safetensors makes files that only their owner can read
            temporary.chmod(path.parent.stat().st_mode & 0o666)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
