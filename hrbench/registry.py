"""How methods are found by name, and their presets and options checked."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from hrbench._util.guard import generators_kept, guarded
from hrbench._util.resources import methods_package
from hrbench._util.types import Mismatch, conform
from hrbench.contract import breach, check_class, import_error, make
from hrbench.errors import HrbenchError, unknown_name
from hrbench.method import BY_CONTENT, Method, Preset
from hrbench.method_names import check_path, family_of, installed_method, is_built_in, list_methods

__all__ = [
    "all_options",
    "check_options",
    "create_method",
    "find_preset",
    "list_methods",
    "load_method",
    "option_types",
    "source_digest",
    "weights_options",
]


def load_method(reference: str) -> type[Method]:
    """Find a method's class.

    Parameters
    ----------
    reference : str
        A name (:func:`list_methods`), a path to an adapter (``my/adapter.py``), or ``package.module:Class``.

    Raises
    ------
    HrbenchError
        For an unknown name, whatever the import of an adapter raises, a module without exactly one :class:`Method` of
        its own, and presets that are none.
    """
    with generators_kept(), guarded(f"the import of method {reference!r}"):
        cls = _found(reference)
    check_class(cls)
    return cls


def _found(reference: str) -> type[Method]:
    what = f"method {reference!r}"
    if reference.endswith(".py"):
        return _only_method(_import_path(Path(reference)), what)
    if ":" in reference:
        module_name, _, class_name = reference.partition(":")
        if not (module_name and class_name) or module_name.startswith("."):
            raise HrbenchError(f"{what}: expected a name, a path of an adapter.py, or package.module:Class")
        with _importing(what):
            cls = getattr(importlib.import_module(module_name), class_name)
        return _checked(cls, what)
    if is_built_in(reference):
        return _only_method(importlib.import_module(f"{methods_package().__name__}.{reference}"), what)
    if (point := installed_method(reference)) is not None:
        what += f" (entry point {point.value})"
        with _importing(what):
            loaded = point.load()
        return _only_method(loaded, what) if isinstance(loaded, ModuleType) else _checked(loaded, what)
    if refused := _refused(reference):
        raise HrbenchError(f"{what} cannot be run: {refused}")
    raise unknown_name("method", reference, list_methods())


def _refused(reference: str) -> str:
    """Return why ``FAMILY.NAME`` is no method, where the module of an installed ``FAMILY.OTHER`` says it in REFUSED."""
    for point in family_of(reference)[:1]:
        with _importing(f"method {point.name!r}"):
            refused: Mapping[str, str] = getattr(importlib.import_module(point.module), "REFUSED", {})
        return refused.get(reference, "")
    return ""


def create_method(name: str, **options: Any) -> Method:
    """Make a method by name.

    Parameters
    ----------
    name : str
        See :func:`load_method`.
    **options
        ``preset`` takes the options of one of the method's presets; every other keyword is an option of
        its constructor and wins over the preset.

    Examples
    --------
    >>> import hrbench
    >>> method = hrbench.create_method("fastflow", preset="demo", weights="random")
    """
    cls = load_method(name)
    preset = options.pop("preset", None)
    preset_options = dict(find_preset(cls, name, preset).options) if preset is not None else {}
    checked = check_options(cls, name, {**preset_options, **options})
    all_options(cls, checked)
    with guarded(f"{name}: {cls.__name__}()"):
        return make(cls, checked)


def find_preset(cls: type[Method], name: str, preset: str) -> Preset:
    """Return a preset of a method; an unknown one is an error that lists the known."""
    if preset not in cls.presets:
        raise unknown_name(f"preset of {name}", preset, cls.presets)
    return cls.presets[preset]


def check_options(cls: type[Method], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` as a dict; one that the constructor does not take, or of another type or range, is an error."""
    parameters = _parameters(cls)
    hints = _hints(cls)
    for key, value in options.items():
        if key not in parameters:
            raise unknown_name(f"option of {name}", key, parameters)
        try:
            conform(value, hints.get(key, Any))
        except Mismatch as mismatch:
            raise HrbenchError(f"option {key}{mismatch.path} of {name} {mismatch.problem}") from None
    package = methods_package().__name__
    if cls.__module__.rpartition(".")[0] == package:
        importlib.import_module(f"{package}._ranges").check_ranges(name, options)
    return dict(options)


def source_digest(cls: type[Method]) -> str:
    """Return the SHA-256 of the source that a method is made of: its module and those beside it that it imports.

    Raises
    ------
    HrbenchError
        For a module among them that is not valid Python.
    """
    module, package = Path(inspect.getfile(cls)), cls.__module__.rpartition(".")[0]
    paths, state = [module], hashlib.sha256()
    if package and (face := module.with_name("__init__.py")).is_file():
        paths.append(face)
    for path in paths:  # grows: what is imported may import others
        paths += [sibling for sibling in _imported_siblings(path, package) if sibling not in paths]
    for path in [module, *sorted(paths[1:])]:
        state.update(path.read_bytes())
    return state.hexdigest()


def _imported_siblings(path: Path, package: str) -> Iterator[Path]:
    """Yield the modules of the same folder, which is that of `package` ("" for none), that a module imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise HrbenchError(f"{path}: not valid Python: {error}") from None
    inside = f"{package}." if package else ""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (inside if node.level == 1 else "") + (node.module or "")
            names.update([base, *(f"{base.rstrip('.')}.{alias.name}" for alias in node.names)])
    for name in sorted({name.removeprefix(inside) for name in names if name.startswith(inside)}):
        if "." not in name and (sibling := path.with_name(f"{name}.py")).is_file():
            yield sibling


def weights_options(cls: type[Method]) -> list[str]:
    """Return the names of the options that are annotated as :data:`hrbench.method.Weights`, or as that or None."""

    def by_content(hint: Any) -> bool:
        return any(part is BY_CONTENT or by_content(part) for part in get_args(hint))

    return [key for key, hint in _hints(cls, include_extras=True).items() if by_content(hint)]


def all_options(cls: type[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complete configuration: `options` over the constructor's defaults; one without either is an error."""
    complete = {key: options.get(key, default) for key, default in _parameters(cls).items()}
    if missing := [key for key, value in complete.items() if value is inspect.Parameter.empty]:
        found = f"has no default of option {missing[0]}, and no value is given"
        raise breach(cls.__init__, found, "a default, as every option has")
    return complete


def option_types(cls: type[Method]) -> dict[str, Any]:
    """Return the types of the options, by the constructor's annotations."""
    hints = _hints(cls)
    return {key: hints.get(key, Any) for key in _parameters(cls)}


def _parameters(cls: type[Method]) -> dict[str, Any]:
    """Return the constructor's keyword arguments with their defaults."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {key: item.default for key, item in inspect.signature(cls).parameters.items() if item.kind not in several}


def _hints(cls: type[Method], *, include_extras: bool = False) -> dict[str, Any]:
    try:
        return get_type_hints(cls.__init__, include_extras=include_extras)
    except Exception as error:  # whatever evaluating them raises
        found = f"has annotations that cannot be read ({error})"
        raise breach(cls.__init__, found, "types that its module imports") from None


@contextmanager
def _importing(what: str) -> Iterator[None]:
    """Let whatever an adapter raises when it is imported be an error that names it, an end of the process too."""
    try:
        yield
    except HrbenchError:
        raise
    except (Exception, SystemExit) as error:
        raise import_error(what, error) from error


def _import_path(path: Path) -> Any:
    check_path(path)
    name = f"hrbench_adapter_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HrbenchError(f"method {str(path)!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _importing(f"method {str(path)!r}"):
        spec.loader.exec_module(module)
    return module


def _checked(cls: Any, what: str) -> type[Method]:
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise HrbenchError(f"{what}: not a subclass of hrbench.Method")
    return cls


def _only_method(module: Any, what: str) -> type[Method]:
    classes = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise HrbenchError(f"{what}: the module has {len(classes)} Method classes, expected one")
    return classes[0]
