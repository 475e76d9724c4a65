"""A new adapter to begin with, and a test of it that passes as written."""

from __future__ import annotations

import keyword
from importlib.resources import files
from pathlib import Path

from hrbench._util.files import atomic
from hrbench.errors import HrbenchError

__all__ = ["KINDS", "write_adapter"]

KINDS = ("trained", "features")
"""What an adapter begins as: it learns by gradients, or it sums up features of a frozen network."""


def write_adapter(name: str, folder: Path, kind: str = "trained") -> tuple[Path, Path]:
    """Write ``NAME.py`` and ``test_NAME.py`` into `folder` and return their paths.

    Parameters
    ----------
    name : str
    folder : Path
    kind : str
        One of :data:`KINDS`.

    Raises
    ------
    HrbenchError
        If the name is no Python identifier, or one of the files exists.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise HrbenchError(f"name {name!r}: expected a Python identifier such as my_method")
    cls = "".join(part.capitalize() for part in name.split("_"))
    fields = {"name": name, "file": f"{name}.py", "cls": cls, "title": name.replace("_", " ").title()}
    adapter, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (adapter, test):
        if path.exists():
            raise HrbenchError(f"{path}: exists already, it was not overwritten")
    for path, template in ((adapter, f"{kind}.txt"), (test, f"test_{kind}.txt")):
        text = (files("hrbench") / "templates" / template).read_text(encoding="utf-8")
        with atomic(path) as temporary:
            temporary.write_text(text.format(**fields), encoding="utf-8")
    return adapter, test
