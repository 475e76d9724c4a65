"""The rooms of the package, and which of them may know which: read from the imports, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hrbench

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "hrbench").rglob("*.py"))
} | {f"hrbench.methods.{path.stem}": path for path in sorted((ROOT / "methods").glob("*.py"))}

BASE = {"errors", "_util"}
MAY_IMPORT = {
    "__init__": {"data", "errors", "evaluation", "grid", "method", "method_names", "protocol", "registry", "runs"},
    "__main__": {"cli"},
    "cli": {*BASE, "__init__", "commands", "grid_file"},
    "demo": {*BASE, "__init__", "data", "grid", "metrics", "protocol", "report"},
    "commands": {*BASE, "__init__", "command_line", "data", "demo", "grid", "method_card", "method_names", "protocol",
                 "registry", "report", "runs", "scaffold"},
    "method_card": {"method", "registry"},
    "grid": {*BASE, "contract", "data", "engine", "precision", "protocol", "registry", "runs"},
    "report": {*BASE, "metrics", "protocol", "runs"},
    "runs": {*BASE, "backbones", "contract", "data", "engine", "evidence", "imaging", "method", "metrics", "precision",
             "protocol", "registry"},
    "command_line": {*BASE, "grid_file"},
    "grid_file": BASE,
    "scaffold": BASE,
    "evaluation": {*BASE, "evidence", "imaging", "metrics", "protocol", "report"},
    "testing": {*BASE, "contract", "engine", "method", "precision", "registry"},
    "metrics": {*BASE, "evidence", "protocol"},
    "evidence": {*BASE, "imaging", "protocol"},
    "engine": {*BASE, "contract", "data", "imaging", "method", "precision"},
    "registry": {*BASE, "contract", "method", "method_names"},
    "method_names": BASE,
    "contract": {"errors", "method"},
    "data": {*BASE, "imaging"},
    "backbones": BASE,
    "imaging": BASE,
    "protocol": BASE,
    "precision": BASE,
    "method": set(),
    "methods": {"backbones", "errors", "method", "precision"},
    "_util": {"errors"},
    "errors": set(),
}  # fmt: skip
TORCH_FREE = ("commands", "data", "evidence", "evaluation", "imaging", "method_names", "metrics", "protocol")


def room_of(module: str) -> str:
    """Return the room of ``hrbench.room.module``."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(module: str, *, when_imported: bool = False) -> Iterator[str]:
    """Yield the modules that a module imports; with `when_imported` only those that its own import brings in."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if when_imported and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if when_imported and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = f"{module.rpartition('.')[0]}." if node.level else ""  # siblings only: methods/ has no folders
            for alias in node.names:
                deeper = f"{package}{node.module}.{alias.name}"
                yield deeper if deeper in FILES else f"{package}{node.module}"


def wrong_arrows(module: str, imported: Iterator[str]) -> list[str]:
    """Return the arrows from a module to rooms that it must not know; a room may know itself."""
    own = room_of(module)
    wrong = []
    for other in imported:
        room = room_of(other)
        sibling = room == own and (own != "methods" or other.rpartition(".")[2].startswith("_"))
        if other.partition(".")[0] == "hrbench" and not sibling and room not in MAY_IMPORT[own]:
            wrong.append(f"{module} -> {other}")
    return wrong


@pytest.mark.parametrize("module", FILES)
def test_arrows_between_rooms_point_one_way(module: str) -> None:
    assert not wrong_arrows(module, imports_of(module))


def test_a_wrong_arrow_is_found() -> None:
    assert wrong_arrows("hrbench.metrics.sizes", iter(["numpy", "hrbench.runs.store"]))
    assert wrong_arrows("hrbench.engine.views", iter(["hrbench.evidence"]))
    assert wrong_arrows("hrbench.methods.l2bt", iter(["hrbench.methods.fastflow"]))
    assert wrong_arrows("hrbench.methods.l2bt", iter(["hrbench.engine.training"]))
    assert not wrong_arrows("hrbench.methods.l2bt", iter(["hrbench.methods._flow", "hrbench.method"]))


def test_rooms_lie_in_floors() -> None:
    floors: list[set[str]] = []
    left = dict(MAY_IMPORT)
    while left:
        floor = {room for room, others in left.items() if not others & left.keys() - {room}}
        assert floor, f"a circle among {sorted(left)}"
        floors.append(floor)
        left = {room: others for room, others in left.items() if room not in floor}


def test_every_permission_is_used() -> None:
    used = {(room_of(module), room_of(other)) for module in FILES for other in imports_of(module) if other in FILES}
    unused = {(room, other) for room, others in MAY_IMPORT.items() for other in others} - used
    assert not {(room, other) for room, other in unused if other not in BASE}


@pytest.mark.parametrize("room", TORCH_FREE)
def test_scoring_needs_no_torch(room: str) -> None:
    waiting = [module for module in FILES if room_of(module) == room] + ["hrbench.runs.external_maps"]
    seen: dict[str, str] = dict.fromkeys(waiting, "")
    while waiting:
        module = waiting.pop()
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        for other in [*parents, *imports_of(module, when_imported=True)]:
            assert other.partition(".")[0] not in ("torch", "timm"), f"{module}{seen[module]} imports {other}"
            if other in FILES and other not in seen:
                seen[other] = f" <- {module}{seen[module]}"
                waiting.append(other)


def test_no_module_is_named_like_what_its_package_exports() -> None:
    exported = {f"hrbench.{name}" for name in hrbench.__all__}
    for package in (module for module, path in FILES.items() if path.name == "__init__.py"):
        tree = ast.parse(FILES[package].read_text(encoding="utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
        exported |= {f"{package}.{name}" for name in names}
    assert not exported & FILES.keys()
