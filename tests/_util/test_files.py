"""Files are written whole or not at all, and names become paths that stay in their folder and are nobody else's."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrbench._util import files
from hrbench._util.files import LONGEST, atomic, below, relative_path, safe_name
from hrbench.errors import HrbenchError
from hrbench.runs.store import RunFolder, Shard

CLIMBING = [
    "", ".", "..", "/", "//x", "/etc/passwd", "../../../../victim", "a/../../x", "a//b", "a/", "./a", "a/.", "..\\x",
    "a\\..\\x", "C:", "C:x", "C:\\x", "\\\\host\\x", "\0", "a\0b", "\udcff", "a\ud800",
]  # fmt: skip
HOSTILE = [
    *CLIMBING, "...", "~", "~root", "a\nb", "\x1b[31m", "con", "CON", "nul.txt", "lpt1", "a.", "a ", " a", ".a", "-rf",
    "a b", "a_b", "A_b", "数据集一", "数据集二", "é", "e\u0301", "x" * 201, "x" * 202, "数" * 250, "%2e%2e", "a:b",
]  # fmt: skip
NAMES = st.sampled_from(HOSTILE) | st.text(max_size=20) | st.text("./\\~:abC\0", max_size=12)


@given(NAMES)
def test_a_safe_name_is_one_file_on_every_system(name: str) -> None:
    safe = safe_name(name)
    assert safe.isascii()
    assert len(safe) <= LONGEST + 14
    assert not set(safe) & set('/\\:*?"<>| \0')
    assert safe[0] not in ".~"
    assert safe[-1] != "."
    assert safe.partition(".")[0].casefold() not in ("con", "prn", "aux", "nul", "com1", "lpt1")
    with tempfile.TemporaryDirectory() as folder:
        with atomic(Path(folder) / safe) as path:
            path.write_bytes(b"x")
        assert [item.name for item in Path(folder).iterdir()] == [safe]


@given(NAMES, NAMES)
def test_no_two_names_become_one(one: str, other: str) -> None:
    changed = safe_name(one) != one or safe_name(other) != other
    if one != other and (changed or one.casefold() != other.casefold()):
        assert safe_name(one).casefold() != safe_name(other).casefold()


@pytest.mark.parametrize(
    "name", ["bottle", "metal_nut", "pcb1", "Data.v2", "a+b-c", "console", "native-max-8", "x" * 200]
)
def test_a_name_that_is_a_path_already_stays(name: str) -> None:
    assert safe_name(name) == name


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_nothing_leads_out_of_a_folder(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "deep/root"
        try:
            path = below(root, *names)
        except HrbenchError as error:
            str(error).encode()  # can be printed and recorded
            return
        assert Path(os.path.normpath(path)).relative_to(root).as_posix() == "/".join(names)


@given(NAMES, NAMES, NAMES)
def test_a_run_keeps_all_in_its_folder(dataset: str, category: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.of(Path(folder), dataset, category, "toy-demo-s0-12345678")
        assert run.path.relative_to(folder).parts == ("runs", safe_name(dataset), safe_name(category), run.path.name)
        for place in (run.map_of, run.evidence, run.calibration, Shard(run.path).evidence):
            try:
                path = place(name)
            except HrbenchError:
                continue
            assert Path(os.path.normpath(path)).is_relative_to(run.path)
            path.parent.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("name", CLIMBING)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(HrbenchError, match=r"leaves its folder|not UTF-8"):
        relative_path("a", name)


def test_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    victim, output = tmp_path / "victim", tmp_path / "out"
    run = RunFolder.of(output, "parts", "bolt", "toy")
    run.path.mkdir(parents=True)
    (run.path / "maps").symlink_to(victim)
    with pytest.raises(HrbenchError, match=r"maps/bolt/000.png: leads out of .*toy"):
        run.map_of("bolt/000.png")
    (output / "runs/parts/nut").symlink_to(victim)
    with pytest.raises(HrbenchError, match="leads out of"):
        RunFolder.of(output, "parts", "nut", "toy")
    (output / "runs/parts/loop").symlink_to("loop")
    with pytest.raises(HrbenchError, match="loop"):
        RunFolder.of(output, "parts", "loop", "toy")


def test_the_whole_output_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/runs").symlink_to(tmp_path / "disk")
    assert RunFolder.of(tmp_path / "out", "parts", "bolt", "toy").path == tmp_path / "out/runs/parts/bolt/toy"


def test_long_names_of_maps(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    stems = ["x" * 250, "x" * 251, "y" + "x" * 250, "数" * 84, "短"]
    paths = [run.map_of(f"test/good/{stem}.png") for stem in stems]
    assert [path.stem == stem for path, stem in zip(paths, stems, strict=True)] == [True, False, False, False, True]
    for path in paths:
        with atomic(path) as temporary:
            temporary.write_bytes(b"x")
    assert len(list((tmp_path / "maps/test/good").iterdir())) == len(stems)


NOBODY = 2**22 + 1  # no process has this number


def test_a_file_is_as_readable_as_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    with atomic(folder / "weights.safetensors") as path:
        path.touch(mode=0o600)  # as safetensors does
    assert (folder / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("run.json", "before")]


def leftover(path: Path, *, process: int = NOBODY, host: str | None = None) -> Path:
    """Return a path as :func:`atomic` takes it, in another process."""
    return path.with_name(f".{path.name}.{files._host() if host is None else host}-{process}-0123abcd.tmp")


def test_what_dead_processes_have_left_goes_when_something_is_written_beside_it(tmp_path: Path) -> None:
    file, old = tmp_path / "page.html", tmp_path / ".page.html.4242-0123abcd.tmp"  # as versions before named it
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    link = leftover(tmp_path / "link")
    link.symlink_to(outside)
    folder = leftover(tmp_path / "shard")
    folder.mkdir()
    (folder / "part").touch()
    gone = [link, folder, leftover(file), old, leftover(file, host="ffffff", process=1)]
    kept = [
        leftover(file, process=os.getpid()),
        leftover(file, host="aaaaaa"),
        tmp_path / ".notes.tmp",
        tmp_path / "page.html.4242-0123abcd.tmp",
    ]
    for path in gone[2:] + kept:
        path.touch()
    for path in gone[3:] + kept[2:]:
        os.utime(path, (1, 1))
    with atomic(file) as temporary:
        temporary.touch()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (*kept, file, outside)}
    assert list(outside.iterdir())


def test_who_writes_somewhere_alone_removes_what_is_left_of_all(tmp_path: Path) -> None:
    young = leftover(tmp_path / "map.tiff", host="aaaaaa")
    young.touch()
    (tmp_path / ".notes.tmp").touch()
    files.remove_leftovers(tmp_path)
    assert young.exists()
    files.remove_leftovers(tmp_path, alone=True)
    assert [path.name for path in tmp_path.iterdir()] == [".notes.tmp"]
