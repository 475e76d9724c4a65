"""Execute the notebooks of `examples/` in place: ``python tools/run_notebooks.py [NOTEBOOK ...]``.

Times and versions are left out of what is written, and progress that went to the error stream, so that a change
of a notebook shows only what changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def executed(path: Path) -> Any:
    """Return the notebook as it is after all cells ran, without their progress; a cell that fails is an error."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, nargs="*", default=sorted(EXAMPLES.glob("*.ipynb")))
    for path in parser.parse_args().notebook:
        nbformat.write(executed(path), path)
        print(path)


if __name__ == "__main__":
    main()
