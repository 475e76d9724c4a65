"""The wheel, installed into a clean environment, carries methods and protocols and nothing else."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEPENDENCIES = [path for path in sys.path if Path(path).name == "site-packages"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return (python, site-packages) of an environment that has only the wheel; dependencies come by a path."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "hrbench", "methods", "protocols", "results"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        packages,
        wheel,
    ]
    subprocess.run(install, check=True)
    # Path lines bring the dependencies but not the editable hrbench: its hook is not read from there.
    (packages / "dependencies.pth").write_text("\n".join(DEPENDENCIES) + "\n")
    return python, packages


def test_only_hrbench_is_added(site):
    _, packages = site
    names = {path.name for path in packages.iterdir()} - {"dependencies.pth", "bin"}
    assert names == {"hrbench", "hrbench-0.1.0.dist-info"}
    for inside in ("methods/fastflow.py", "methods/l2bt.py", "protocols/native.toml", "protocols/datasets/visa.toml",
                   "templates/trained.txt", "report/page.html", "published/flows.csv", "py.typed",
                   "weights/resnet18.safetensors", "weights/vit_tiny_patch16_224.safetensors"):  # fmt: skip
        assert (packages / "hrbench" / inside).is_file(), inside


def test_the_installed_command_finds_methods_and_protocols(site, tmp_path):
    python, packages = site
    code = (
        "import hrbench, hrbench.methods, sys\n"
        f"assert hrbench.__file__.startswith({str(packages)!r}), hrbench.__file__\n"
        f"assert hrbench.methods.__path__[0].startswith({str(packages)!r})\n"
        "import hrbench.cli\n"
        "sys.exit(hrbench.cli.main(['list']))"
    )
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("fastflow", "l2bt", "native", "mvtec_ad"):
        assert name in done.stdout
    new = subprocess.run(
        [python, "-I", "-m", "hrbench", "new-method", "mine"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert new.returncode == 0, new.stderr
    assert (tmp_path / "mine.py").is_file()


def test_a_bare_checkout_works_without_installation(tmp_path):
    code = (
        f"import sys; sys.path += {[str(ROOT), *DEPENDENCIES]!r}\n"
        "import hrbench; print(hrbench.list_methods(), hrbench.load_protocol('native').version)"
    )
    bare = [sys.executable, "-S", "-I", "-c", code]  # no site-packages, hence no editable hook
    done = subprocess.run(bare, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "fastflow" in done.stdout
