"""The notebooks of `examples/` run, and show what they gave."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(scope="module")
def nbformat():
    return pytest.importorskip("nbformat")


def kinds_of(cells):
    """Return what each cell shows, by kind; progress is no part of it."""
    return [[output.output_type for output in cell.outputs if output.get("name") != "stderr"] for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")  # the client's own
def test_a_notebook_runs_and_shows_what_it_gave(path, nbformat, monkeypatch):
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.chdir(path.parent)
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = kinds_of(cells)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run tools/run_notebooks.py"
    assert not any("error" in kinds for kinds in shown)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert kinds_of(cells) == shown


def test_there_are_notebooks():
    assert NOTEBOOKS
