"""An installation of torch, torchvision and timm that cannot be imported, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

__all__ = ["broken_installation"]

_PACKAGES = ("torch", "torchvision", "timm")


def broken_installation(error: BaseException) -> str:
    """Return what is wrong with the installation where an error came from importing one of its packages; else "".

    Parameters
    ----------
    error : BaseException
        With its traceback. Wheels of torch and torchvision that were not built for each other fail when they are
        imported, in ways of their own.

    Returns
    -------
    str
        One line with the versions that are installed and the command that mends it: torch and torchvision of one index.
    """
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        problem = f"{error.name} is not installed"
    elif isinstance(error, Exception) and any(map(_is_import, _frames(error))):
        said = " ".join(str(error).split())
        problem = f"what is installed of torch cannot be imported: {type(error).__name__}: {said}"
    else:
        return ""
    found = {name: _version(name) for name in _PACKAGES}
    listed = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    return f"{problem} ({listed}); install them from one index: {_remedy(found['torch'])}"


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield what was at work when an error came, and those that it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        trace = seen.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next
        seen = seen.__cause__ or seen.__context__


def _is_import(frame: FrameType) -> bool:
    """Tell whether this is a module of the packages that is being imported."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return frame.f_code.co_name == "<module>" and package in _PACKAGES


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _remedy(torch: str) -> str:
    """Return the command for the index that torch is from: its versions end with that name, those of PyPI do not."""
    index = torch.partition("+")[2]
    where = f" --index-url https://download.pytorch.org/whl/{index}" if index else ""
    return f"pip install --force-reinstall torch torchvision{where}"
