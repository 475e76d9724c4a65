"""Names of methods, and what the source of built-in ones says of them: nothing is imported, for torch takes seconds."""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from pathlib import Path

from hrbench._util.resources import methods_package
from hrbench.errors import HrbenchError, unknown_name

__all__ = [
    "Listed",
    "check_method",
    "check_path",
    "family_of",
    "installed_method",
    "is_built_in",
    "list_methods",
    "read_method",
]


@dataclass(frozen=True)
class Listed:
    """What is to be read of a method without running its module.

    Attributes
    ----------
    title, paper : str
    presets : mapping of str to str
        The view of each.
    options : tuple of str
    """

    title: str
    paper: str
    presets: Mapping[str, str]
    options: tuple[str, ...]


def list_methods() -> list[str]:
    """Return the names of all built-in and installed (entry point ``hrbench.methods``) methods.

    An entry point with an extra, ``"package.module:Class [extra]"``, counts where what the extra needs is installed.
    That is looked up; nothing is imported.
    """
    points = entry_points(group="hrbench.methods")
    lacking = {extras: _lacking(*extras) for extras in {_extras(point) for point in points}}
    installed = {point.name for point in points if not lacking[_extras(point)]}
    return sorted(name for name in _built_in() | installed if not name.startswith("_"))


def is_built_in(reference: str) -> bool:
    """Tell whether this is the name of a method of ``methods/``."""
    return not reference.startswith("_") and reference in _built_in()


def installed_method(reference: str) -> EntryPoint | None:
    """Return the entry point of a method, if it has one.

    Raises
    ------
    HrbenchError
        If what its extra needs is not installed.
    """
    for point in entry_points(group="hrbench.methods", name=reference):
        package_name, extras = _extras(point)
        if lacking := _lacking(package_name, extras):
            remedy = f"pip install '{package_name}[{','.join(extras)}]'"
            raise HrbenchError(f"method {reference!r} needs {', '.join(lacking)}, which is not installed: {remedy}")
        return point
    return None


def family_of(reference: str) -> list[EntryPoint]:
    """Return the entry points of the methods ``FAMILY.OTHER`` beside ``FAMILY.NAME``."""
    family = reference.rpartition(".")[0]
    points = entry_points(group="hrbench.methods") if family else ()
    return [point for point in points if point.name.rpartition(".")[0] == family]


def check_method(reference: str, preset: str | None = None, options: Iterable[str] = ()) -> None:
    """Raise the error of what is wrong with a method's name, preset or options, as far as that can be read.

    Parameters
    ----------
    reference : str
        See :func:`hrbench.registry.load_method`, which finds the rest.
    preset : str, optional
    options : iterable of str
        Their names.

    Raises
    ------
    HrbenchError
        For an adapter that is not there; an unknown name; and of a built-in method an unknown preset or option.
    """
    if reference.endswith(".py"):
        check_path(Path(reference))
    elif ":" in reference or (not is_built_in(reference) and (installed_method(reference) or family_of(reference))):
        return
    elif (said := read_method(reference)) is not None:
        if preset is not None and preset not in said.presets:
            raise unknown_name(f"preset of {reference}", preset, said.presets)
        for option in options:
            if option not in said.options:
                raise unknown_name(f"option of {reference}", option, said.options)
    elif not is_built_in(reference):
        raise unknown_name("method", reference, list_methods())


def check_path(path: Path) -> None:
    """Raise an error if an adapter is not there."""
    if not path.is_file():
        raise HrbenchError(f"method {str(path)!r}: no such file")


def read_method(name: str) -> Listed | None:
    """Read what the source of a built-in method says; None of another, and where it does not say it in plain words."""
    if not is_built_in(name):
        return None
    (folder,) = methods_package().__path__
    tree = ast.parse((Path(folder) / f"{name}.py").read_bytes())
    found = [said for node in tree.body if isinstance(node, ast.ClassDef) and (said := _read_class(node))]
    return found[0] if len(found) == 1 else None


def _read_class(node: ast.ClassDef) -> Listed | None:
    """Read a class that has a title, a paper, presets and a constructor without ``**``."""
    values: dict[str, ast.expr] = {}
    options: tuple[str, ...] | None = None
    for item in node.body:
        match item:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                values[name] = value
            case ast.FunctionDef(name="__init__", args=ast.arguments(kwarg=None, vararg=None) as taken):
                options = tuple(argument.arg for argument in [*taken.args[1:], *taken.kwonlyargs])
    match values:
        case {
            "title": ast.Constant(value=str(title)),
            "paper": ast.Constant(value=str(paper)),
            "presets": ast.Dict(keys=keys, values=chosen),
        } if options is not None:
            presets = {_text(key): _view(preset) for key, preset in zip(keys, chosen, strict=True)}
            if all(presets) and all(presets.values()):
                return Listed(title, paper, presets, options)
    return None


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _view(node: ast.expr) -> str:
    """Return the view of ``Preset("view", ...)``."""
    match node:
        case ast.Call(func=ast.Name(id="Preset"), args=[view, *_]):
            return _text(view)
    return ""


def _built_in() -> set[str]:
    return {info.name for info in pkgutil.iter_modules(methods_package().__path__)}


def _extras(point: EntryPoint) -> tuple[str, tuple[str, ...]]:
    """Return the distribution that an entry point belongs to, and the extras of it that it needs."""
    return (point.dist.name if point.dist else "", tuple(point.extras))


def _lacking(package: str, extras: Sequence[str]) -> list[str]:
    """Return the distributions of some extras of a distribution that are not installed."""
    lacking = []
    for requirement in (distribution(package).requires or []) if package and extras else []:
        needed, _, marker = requirement.partition(";")
        name = re.match(r"[\w.-]+", needed)
        if name and any(re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", marker) for extra in extras):
            try:
                distribution(name[0])
            except PackageNotFoundError:
                lacking.append(name[0])
    return lacking
