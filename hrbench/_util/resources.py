"""Where methods, protocols and published figures lie: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType

__all__ = ["methods_package", "protocols_root", "published_root"]

_CHECKOUT = Path(__file__).resolve().parents[2]


def protocols_root() -> Traversable:
    """Return the folder of protocol files: ``hrbench/protocols`` in a wheel, ``protocols`` in a checkout."""
    installed = files("hrbench") / "protocols"
    return installed if installed.is_dir() else _CHECKOUT / "protocols"


def published_root() -> Traversable:
    """Return the folder of published figures: ``hrbench/published`` in a wheel, ``results/published`` in a checkout."""
    installed = files("hrbench") / "published"
    return installed if installed.is_dir() else _CHECKOUT / "results" / "published"


def methods_package() -> ModuleType:
    """Import ``hrbench.methods``, from the checkout's ``methods/`` when it is not installed under that name."""
    name = "hrbench.methods"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    folder = _CHECKOUT / "methods"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no {name}: neither installed nor at {folder}", name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
