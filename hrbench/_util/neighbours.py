"""Defects that lie beside a far larger one: what lights up that one may light them up too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["NEAR", "TIMES", "larger_neighbours"]

TIMES = 10  # as large
NEAR = 10  # pixels between the boxes, at most

Ints = npt.NDArray[np.int64]


def larger_neighbours(images: Sequence[Hashable], boxes: npt.ArrayLike, areas: npt.ArrayLike) -> Ints:
    """Return for each defect the number of the largest that lies beside it and is far larger; -1 without any.

    That is one of the same image with at least :data:`TIMES` its area, whose box is at most :data:`NEAR` pixels away:
    masks themselves may be somewhat further apart.

    Parameters
    ----------
    images : sequence, (K,)
        Whose defects they are.
    boxes : array-like of int, (K, 4)
        Top, left, bottom, right; the last two exclusive.
    areas : array-like of int, (K,)
        In pixels.

    Examples
    --------
    >>> larger_neighbours(["a", "a", "b"], [[0, 0, 2, 2], [0, 5, 9, 9], [0, 5, 9, 9]], [3, 30, 30]).tolist()
    [1, -1, -1]
    """
    corners, sizes = np.asarray(boxes, np.int64).reshape(-1, 4), np.asarray(areas, np.int64)
    found = np.full(sizes.size, -1, np.int64)
    of_image: dict[Hashable, list[int]] = {}
    for number, image in enumerate(images):
        of_image.setdefault(image, []).append(number)
    for numbers in of_image.values():
        members = np.array(numbers)
        members = members[np.argsort(-sizes[members], kind="stable")]
        largest = sizes[members[0]]
        for number in members[sizes[members] * TIMES <= largest]:
            larger = corners[members[sizes[members] >= TIMES * sizes[number]]]
            gaps = np.maximum(corners[number, :2] - larger[:, 2:], larger[:, :2] - corners[number, 2:])
            beside = np.flatnonzero((gaps <= NEAR).all(axis=1))
            if beside.size:
                found[number] = members[beside[0]]
    return found
