"""Values against annotations: what passes, what it becomes, and what an error says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from hrbench._util.types import Mismatch, conform


@dataclasses.dataclass(frozen=True)
class Inner:
    share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    limits: tuple[float, ...] = ()
    each: dict[str, Inner] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, 3.0),
        (None, int | None, None),
        (3, int | None, 3),
        ("a", int | str, "a"),
        ([1, 2], Sequence[int], (1, 2)),
        ((1, 2), tuple[float, ...], (1.0, 2.0)),
        (8, Literal[4, 8], 8),
        ({"x"}, Any, {"x"}),
        ({"name": "n", "limits": [1]}, Outer, Outer("n", Inner(), (1.0,))),
        ({"name": "n", "each": {"a": {"share": 1}}}, Outer, Outer("n", each={"a": Inner(1.0)})),
    ],
)
def test_what_fits_is_returned_as_annotated(value: object, hint: object, expected: object) -> None:
    result = conform(value, hint)
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "hint", "path", "problem"),
    [
        (True, int, "", "is True, expected int"),
        (1, bool, "", "is 1, expected bool"),
        ("1", float, "", "is '1', expected float"),
        (None, int, "", "is None, expected int"),
        ("x", int | None, "", "is 'x', expected int"),
        ("x", int | Literal["auto"], "", "is 'x', expected int or one of 'auto'"),
        (2, Literal["2"], "", "is 2, expected one of '2'"),
        ("abc", Sequence[str], "", "is 'abc', expected a list"),
        ([1, "x"], Sequence[int] | None, "[1]", "is 'x', expected int"),
        ("meen", Literal["max", "mean"], "", "is 'meen', expected one of 'max', 'mean'; did you mean 'mean'?"),
        (True, Literal[1, 2], "", "is True, expected one of 1, 2"),
        (6, Literal[4, 8], "", "is 6, expected one of 4, 8"),
        ({"nam": "n"}, Outer, "nam", "is an unknown key; known: name, inner, limits, each; did you mean 'name'?"),
        ({"name": "n", "?": 1}, Outer, "?", "is an unknown key; known: name, inner, limits, each"),
        ({}, Outer, "name", "is missing"),
        ({"name": "n", "inner": 3}, Outer, "inner", "is 3, expected a table"),
        ({"name": "n", "each": {"a": {"share": "x"}}}, Outer, "each.a.share", "is 'x', expected float"),
        ({"name": "n", "limits": [0.1, "x"]}, Outer, "limits[1]", "is 'x', expected float"),
    ],
)
def test_what_does_not_fit_is_named(value: object, hint: object, path: str, problem: str) -> None:
    with pytest.raises(Mismatch) as raised:
        conform(value, hint)
    assert (raised.value.path, raised.value.problem) == (path, problem)
