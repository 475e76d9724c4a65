"""``hrbench run grid.toml``: the options of a grid of jobs, kept in a file.

Keys are the names of the options with ``_`` for ``-``; ``[set]`` holds options of all methods, ``[set.NAME]`` those of
one ::

    dataset = "mvtec_ad"
    root = "/data/mvtec_ad"
    methods = ["fastflow", "my/adapter.py"]
    seeds = [0, 1, 2]
    batch_size = 4

    [set]
    weights = "bundled"

    [set."my/adapter.py"]
    steps = 2000
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hrbench._util.toml import build, read_toml
from hrbench.errors import HrbenchError, unknown_name

__all__ = ["OPTIONS", "GridFile", "OptionValue", "read_grid"]


class OptionValue(NamedTuple):
    """A value for an option of a method; of all methods where `method` is None."""

    method: str | None
    option: str
    value: Any


@dataclasses.dataclass(frozen=True)
class GridFile:
    """What a grid file may say: an option of ``hrbench run`` is a line here. None: it does not say."""

    dataset: str | None = None
    root: str | None = None
    categories: Sequence[str] | None = None
    methods: Sequence[str] | None = None
    preset: str | None = None
    view: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    set: dict[str, Any] | None = None
    weights: str | None = None
    device: str | None = None
    batch_size: int | Literal["auto"] | None = None
    precision: str | None = None
    held_out: float | None = None
    compile: bool | None = None
    protocol: Sequence[str] | None = None
    output: str | None = None
    save_maps: bool | None = None
    engine: str | None = None
    gpus_per_job: float | None = None
    cpus_per_job: int | None = None
    shared_output: bool | None = None
    only: str | None = None
    check: bool | None = None
    dry_run: bool | None = None


OPTIONS = tuple(field.name for field in dataclasses.fields(GridFile))


def read_grid(path: Path, methods: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a grid file says, by option.

    Paths mean what they would mean on the command line: relative ones start from the current folder, ``~`` is home.

    Parameters
    ----------
    path : Path
    methods : sequence of str
        Methods that the command line names: the file may have options for them, and for its own.

    Returns
    -------
    dict
        Of `OPTIONS` those that the file has. In the place of ``set`` and ``weights`` stands ``settings``, a list of
        :class:`OptionValue` of which a later one wins.

    Raises
    ------
    HrbenchError
        For an unknown key, a value of another type, or options of a method that nobody asks for.
    """
    if path.suffix != ".toml":
        raise HrbenchError(f"{path}: expected a .toml file with the options of `hrbench run`")
    grid = build(GridFile, _as_typed(read_toml(path)), str(path))
    said = {name: getattr(grid, name) for name in OPTIONS if getattr(grid, name) is not None}
    settings = [OptionValue(None, "weights", said.pop("weights"))] if "weights" in said else []
    settings += _settings(said.pop("set", {}), [*said.get("methods", ()), *methods], str(path))
    return {**said, "settings": settings}


def _settings(table: Mapping[str, Any], methods: Sequence[str], where: str) -> Iterator[OptionValue]:
    """Yield the options of all methods, then those of one, which win."""
    for option, value in table.items():
        if not isinstance(value, dict):
            yield OptionValue(None, option, value)
    for method, options in table.items():
        if isinstance(options, dict):
            if method not in methods:
                raise HrbenchError(f"{where}: set.{method}: {unknown_name('method', method, methods)}")
            yield from (OptionValue(method, option, value) for option, value in options.items())


def _as_typed(value: Any) -> Any:
    """Return a value of the file with each leading ``~`` expanded, as a shell does before it passes a word on."""
    if isinstance(value, dict):
        return {_as_typed(key): _as_typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_typed(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 - Path fails for unknown users
