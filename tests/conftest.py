"""Settings for all tests: no network, one thread, one hypothesis profile, and a small dataset in MVTec layout."""

import gc
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before timm is imported: a test must never wait for a model hub
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the tests themselves run side by side
sys.path.insert(0, str(Path(__file__).parent))  # helpers such as metrics.oracle
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import pytest
from helpers import write_tree
from hypothesis import settings

settings.register_profile("hrbench", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("hrbench")


def pytest_collection_finish() -> None:
    """Exempt what imports made from garbage collection: a run collects twice, half a million objects otherwise."""
    gc.freeze()


TOY = str(Path(__file__).parent / "toy_adapter.py")


@pytest.fixture(scope="session")
def toy() -> str:
    """Path of the toy adapter."""
    return TOY


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """Return a dataset of two categories; do not write into it."""
    return write_tree(tmp_path_factory.mktemp("data") / "parts", categories=("bolt", "nut"))
