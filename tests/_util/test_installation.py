"""What the command says where torch, torchvision or timm cannot be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hrbench._util.installation import broken_installation

NMS = 'raise RuntimeError("operator torchvision::nms\\n does not exist")'
LIBRARY = 'raise OSError("libcudart.so.12: cannot open shared object file: No such file or directory")'
MISSING = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"


def broken(folder: Path, package: str, number: str, source: str) -> None:
    """Put a package before the one that is installed, that fails when it is imported."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(source)
    about = folder / f"{package}-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n")


@pytest.mark.parametrize(
    ("package", "number", "source", "words", "said", "remedy"),
    [
        (
            "torchvision",
            "0.28.0",
            NMS,
            ["list", "gaussian"],
            "RuntimeError: operator torchvision::nms does not exist",
            None,
        ),
        (
            "torchvision",
            "0.28.0",
            NMS,
            ["list", "ADAPTER"],
            "RuntimeError: operator torchvision::nms does not exist",
            None,
        ),
        ("torch", "2.13.0+cpu", LIBRARY, ["list", "knn"], "OSError: libcudart.so.12: cannot open", "/whl/cpu"),
        ("torch", "2.13.0", MISSING, ["list", "knn"], "hrbench: torch is not installed (", "torch torchvision\n"),
    ],
)
def test_a_broken_installation_is_one_line(
    tmp_path: Path, package: str, number: str, source: str, words: list[str], said: str, remedy: str | None
) -> None:
    broken(tmp_path, package, number, source)
    (adapter := tmp_path / "adapter.py").write_text("import torchvision\n")
    words = [str(adapter) if word == "ADAPTER" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "hrbench", *words],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"hrbench: [^\n]*\n", done.stderr), done.stderr
    assert said in done.stderr
    assert f"{package} {number}" in done.stderr
    assert f"timm {version('timm')})" in done.stderr
    assert "pip install --force-reinstall torch torchvision" in done.stderr
    if remedy is not None:
        assert done.stderr.rstrip().endswith(remedy.rstrip())


def test_other_errors_are_left_alone() -> None:
    for error in (ModuleNotFoundError("No module named 'x'", name="x"), RuntimeError("cuda"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            raise error
        assert broken_installation(raised.value) == ""
