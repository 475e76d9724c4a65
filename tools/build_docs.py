"""Write the API reference: one HTML page per public module, made by pdoc from the docstrings.

``python tools/build_docs.py [FOLDER]``, ``make docs`` for short.
"""

from __future__ import annotations

import argparse
import pkgutil
from pathlib import Path

import pdoc

import hrbench
import hrbench.methods


def public_modules() -> list[str]:
    """Return hrbench, its public modules and every method; `methods/` lies elsewhere in a checkout."""
    names = {"hrbench", "hrbench.methods"}
    for package in (hrbench, hrbench.methods):
        names |= {module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    return sorted(name for name in names if not any(part.startswith("_") for part in name.split(".")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/docs"))
    folder = parser.parse_args().folder
    for name in hrbench.__all__:
        setattr(hrbench, name, getattr(hrbench, name))  # imported on demand, and pdoc demands nothing
    pdoc.render.configure(docformat="numpy")
    pdoc.pdoc(*public_modules(), output_directory=folder)


if __name__ == "__main__":
    main()
