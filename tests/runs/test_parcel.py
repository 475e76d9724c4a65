"""Parcels: files as bytes and back, and never out of their folder."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrbench import HrbenchError
from hrbench.runs.parcel import packed, unpack

NAMES = st.text(string.ascii_letters + string.digits + "._- é", min_size=1, max_size=8).filter(
    lambda name: name.strip(".") != ""
)


@given(st.dictionaries(st.tuples(NAMES, NAMES, NAMES), st.binary(max_size=50), max_size=4))
def test_what_is_packed_is_what_is_unpacked(content: dict[tuple[str, str, str], bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, copy = Path(name) / "root", Path(name) / "copy"
        for parts, data in content.items():
            path = root.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        root.mkdir(exist_ok=True)
        parcel = packed(root, [root])
        assert parcel == {"/".join(parts): data for parts, data in content.items()}
        unpack(parcel, copy)
        assert packed(copy, [copy] if content else []) == parcel


def test_files_keep_their_order_for_the_last_says_that_all_are_there(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    for name in ("z/2", "z/1", "a"):
        (tmp_path / name).write_bytes(name.encode())
    assert list(packed(tmp_path, [tmp_path / "z", tmp_path / "a"])) == ["z/1", "z/2", "a"]


PARTS = st.lists(st.sampled_from(["a", ".", "b.c"]), max_size=3)


@given(before=PARTS, after=PARTS)
def test_a_path_that_climbs_is_refused_and_nothing_is_written(before: list[str], after: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        with pytest.raises(HrbenchError, match="leaves its folder"):
            unpack({"/".join([*before, "..", *after]): b"x"}, Path(name) / "root")
        assert list(Path(name).iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/x", "//x", "..", "a/../../x", "..\\x", "a\\..\\x", "C:\\x"])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(HrbenchError, match="leaves its folder"):
        unpack({name: b"x"}, tmp_path / "root")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_name_with_dots_inside_is_a_name(tmp_path: Path) -> None:
    unpack({"a..b/..c": b"x"}, tmp_path)
    assert (tmp_path / "a..b" / "..c").read_bytes() == b"x"
