"""Time the tree NFA of U-Flow's test, beside a plain implementation of the same procedure and the tree alone.

    python tools/bench_tree_nfa.py [--runs 15] [--channels 84]

Per grid, in milliseconds of one processor: ``methods/_nfa.py`` on arrays; the same procedure on linked nodes, the way
it reads in the paper; and scikit-image's max_tree alone, which is the floor. Runs of all three alternate; medians.
Energies are drawn from their law under noise, with one strong blob. The results are compared, too.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from skimage.morphology import max_tree

from hrbench._util.resources import methods_package

methods_package()
from hrbench.methods import _nfa  # noqa: E402

SIDES = (28, 64, 128)


@dataclass(eq=False)
class Node:
    """A component of an upper level set: linked to its parent and children, and to those it had at first."""

    level: float
    parent: Node | None
    cells: list[int] = field(default_factory=list)
    area: int = 0
    cost: float = 0.0
    children: set[Node] = field(default_factory=set)
    enclosed: list[Node] = field(default_factory=list)


def plain(energy: np.ndarray, channels: int) -> np.ndarray:
    """Return log10 P per cell by prune and merge on linked nodes, repeated until nothing changes."""
    parents, order = max_tree(energy, connectivity=1)
    flat, up = energy.ravel().tolist(), parents.ravel().tolist()
    owner: dict[int, Node] = {}
    for cell in order.tolist():
        above = owner.get(up[cell])
        if above is None or flat[up[cell]] != flat[cell]:
            node = owner[cell] = Node(flat[cell], above)
            if above is not None:
                above.children.add(node)
                above.enclosed.append(node)
        else:
            owner[cell] = above
        owner[cell].cells.append(cell)
    nodes = dict.fromkeys(owner.values())
    for node in reversed(nodes):
        node.area = len(node.cells) + sum(child.area for child in node.enclosed)
        rate = node.level - 1 - math.log(node.level) if node.level > 1 else 0.0
        node.cost = -node.area * channels / 2 * rate / math.log(10)
    prune(nodes)
    while merge(nodes):
        prune(nodes)
    result = np.zeros(energy.size)
    for leaf in [node for node in nodes if not node.children]:
        inside = [leaf]
        while inside:
            node = inside.pop()
            result[node.cells] = leaf.cost
            inside += node.enclosed
    return result.reshape(energy.shape)


def prune(nodes: dict[Node, None]) -> None:
    for leaf in [node for node in nodes if not node.children]:
        branch = [leaf]
        while branch[-1].parent is not None and len(branch[-1].parent.children) == 1:
            branch.append(branch[-1].parent)
        best = min(branch, key=lambda node: node.cost)
        for node in branch:
            if node is not best:
                delete(node, nodes)


def merge(nodes: dict[Node, None]) -> bool:
    changed = False
    for node in list(nodes):
        leaves = len(node.children) > 1 and not any(child.children for child in node.children)
        if leaves and node.cost <= min(child.cost for child in node.children):
            for child in list(node.children):
                delete(child, nodes)
            changed = True
    return changed


def delete(node: Node, nodes: dict[Node, None]) -> None:
    for child in node.children:
        child.parent = node.parent
    if node.parent is not None:
        node.parent.children.remove(node)
        node.parent.children |= node.children
    del nodes[node]


def seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--channels", type=int, default=84)
    arguments = parser.parse_args()
    channels = arguments.channels
    rng = np.random.default_rng(0)
    print(f"{'grid':>9} {'tree NFA':>10} {'plain':>10} {'max_tree':>10} {'plain / ours':>13}   (ms, C = {channels})")
    for side in SIDES:
        energy = rng.chisquare(channels, (side, side)) / channels
        energy[side // 2 : side // 2 + 4, side // 3 : side // 3 + 4] *= 3

        def ours(energy: np.ndarray = energy) -> np.ndarray:
            return _nfa.tree_map(energy, channels, lambda areas: np.zeros(len(areas)))

        np.testing.assert_allclose(ours(), plain(energy, channels), rtol=1e-9, atol=1e-9)
        ways = (ours, lambda e=energy: plain(e, channels), lambda e=energy: max_tree(e, connectivity=1))
        times = [[seconds(way) for way in ways] for _ in range(arguments.runs)]
        a, b, c = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        print(f"{side:>5}x{side:<3} {a:>10.1f} {b:>10.1f} {c:>10.1f} {b / a:>13.0f}")


if __name__ == "__main__":
    main()
