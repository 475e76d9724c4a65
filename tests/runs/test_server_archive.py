"""Maps of private test images as the publisher's server takes them, and the reader that says whether an archive is."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import hrbench
from hrbench.cli import main
from hrbench.errors import HrbenchError
from hrbench.runs import server_archive
from hrbench.runs.half_scale import HalfScale
from hrbench.runs.map_files import read_decision, read_map
from hrbench.runs.server_archive import pack_maps
from hrbench.runs.server_archive_check import check_archive
from hrbench.runs.store import Run

DRAWING = str(Path(__file__).parents[1] / "drawing_adapter.py")  # whose predictions are random
SIZE = (40, 44)
NUMBERS = {"can": 3, "vial": 2}


def write_part(path: Path, rng: np.random.Generator, mask: np.ndarray | None = None) -> None:
    pixels = rng.normal(150, 6, (*SIZE, 3))
    if mask is not None:
        pixels[mask] -= 60
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a counterfeit of MVTec AD 2, a descriptor of it, and the masks that its publisher would keep to himself."""
    place, rng = tmp_path_factory.mktemp("ad2"), np.random.default_rng(0)
    counts = "\n".join(f"{name} = {{ private = {number} }}" for name, number in NUMBERS.items())
    (place / "mine.toml").write_text(f'base = "mvtec_ad_2"\n[total]\n[categories]\n{counts}\n')
    for name, number in NUMBERS.items():
        folder = place / "root" / name
        for index in range(7):
            write_part(folder / f"train/good/{index:03d}_regular.png", rng)
        write_part(folder / "validation/good/000_regular.png", rng)
        mask = np.zeros(SIZE, bool)
        mask[5:12, 6:14] = True
        for index in range(2):
            write_part(folder / f"test_public/good/{index:03d}_regular.png", rng)
            write_part(folder / f"test_public/bad/{index:03d}_regular.png", rng, mask)
            target = folder / f"test_public/ground_truth/bad/{index:03d}_regular_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)
        for part, light in (("test_private", "regular"), ("test_private_mixed", "mixed")):
            for index in range(number):
                hidden = np.roll(mask, 9 * index, axis=1) & (index > 0)
                write_part(folder / f"{part}/{index:03d}_{light}.png", rng, hidden)
                kept = place / f"kept/{name}/{part}/{index:03d}_{light}.npy"
                kept.parent.mkdir(parents=True, exist_ok=True)
                np.save(kept, hidden)
    return place


@pytest.fixture(scope="module")
def runs(place: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    output = tmp_path_factory.mktemp("runs")
    return hrbench.run(place / "mine.toml", [DRAWING], root=place / "root", output=output, protocols=["native@1"],
                       device="cpu", check=False, rehearse=False).runs  # fmt: skip


@pytest.fixture(scope="module")
def archive(place: Path, runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("archive") / "maps.tar.gz"
    pack(place, runs, target)
    return target


def pack(place: Path, runs: list[Run], target: Path, root: Path | None = None) -> list[server_archive.Packed]:
    return pack_maps([run.folder for run in runs], root or place / "root", target, dataset=place / "mine.toml",
                     method=DRAWING, device="cpu")  # fmt: skip


def test_maps_and_decisions_lie_as_the_server_wants_them(place: Path, runs: list[Run], archive: Path) -> None:
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
    expected = {
        f"submission/anomaly_images{kind}/{name}/{folder}/{index:03d}_{light}.{end}"
        for kind, end in (("", "tiff"), ("_thresholded", "png"))
        for name, number in NUMBERS.items()
        for folder, light in (("test_private", "regular"), ("test_private_mixed", "mixed"))
        for index in range(number)
    }
    assert {member.name for member in members} == expected
    assert len(members) == len(expected)
    assert all(member.isreg() for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }
    parts, findings = check_archive(archive, place / "root", dataset=place / "mine.toml")
    assert findings == []
    assert [(part.category, part.folder, len(part.maps), len(part.decisions)) for part in parts] == [
        (name, folder, number, number)
        for name, number in NUMBERS.items()
        for folder in ("test_private", "test_private_mixed")
    ]


def test_what_is_read_back_is_what_the_run_says_but_for_ties(
    place: Path, runs: list[Run], archive: Path, tmp_path: Path
) -> None:
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    said = json.loads(Path(f"{archive}.json").read_text())["objects"]
    for run in runs:
        name, about = run.about.dataset.category, said[run.about.dataset.category]
        images = [path for folder in ("test_private", "test_private_mixed")
                  for path in sorted((place / "root" / name / folder).iterdir())]  # fmt: skip
        detector = run.detector(device="cpu", method=DRAWING)
        native, halves, masks = [], [], []
        for image, verdict in zip(images, detector.predict(images), strict=True):
            there = tmp_path / "submission/anomaly_images" / name / image.parent.name / f"{image.stem}.tiff"
            native.append(verdict.anomaly_map)
            halves.append(tifffile.imread(there))
            assert halves[-1].dtype == np.float16
            np.testing.assert_array_equal(
                halves[-1], HalfScale(about["float16"]["centre"], about["float16"]["exponent"])(native[-1])
            )
            decided = read_decision(
                Path(str(there).replace("_images", "_images_thresholded")).with_suffix(".png"), SIZE
            )
            np.testing.assert_array_equal(decided, native[-1] >= np.float32(about["threshold"]))
            np.testing.assert_array_equal(read_map(there, SIZE), halves[-1])
            masks.append(np.load(place / "kept" / name / image.parent.name / f"{image.stem}.npy"))
        assert about["threshold"] == run.about.threshold.value
        assert 0 < about["called"] < 1
        assert about["float16"]["pixels"] == len(images) * 40 * 44
        assert 0 < about["float16"]["pixels_tied"] < about["float16"]["pixels"]
        for limit in (0.05, 0.30):
            before, after = (
                hrbench.evaluate([x.astype(np.float32) for x in maps], masks, exact=True).value("aupro", "all", limit)
                for maps in (native, halves)
            )
            assert abs(before - after) <= about["float16"]["aupro_moves_at_most"][f"{limit:g}"] < 0.05


def test_equal_runs_give_equal_bytes_whatever_the_files_name(
    place: Path, runs: list[Run], archive: Path, tmp_path: Path
) -> None:
    pack(place, runs[::-1], tmp_path / "another.tar.gz")
    assert (tmp_path / "another.tar.gz").read_bytes() == archive.read_bytes()
    assert (tmp_path / "another.tar.gz.json").read_bytes() == Path(f"{archive}.json").read_bytes()


def test_from_the_command_line(place: Path, runs: list[Run], tmp_path: Path, capsys) -> None:
    target = tmp_path / "can.tar.gz"
    common = ["--root", str(place / "root"), "--dataset", str(place / "mine.toml")]
    command = ["submission", "make", str(runs[0].folder), "--to", str(target), "--method", DRAWING, *common]
    assert main([*command, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert re.search(r"can: 6 images, \d+\.\d\d% of the pixels called at [\d.]+; in float16 [\d,]+ scores", said.out)
    assert "the server takes all objects at once; missing: vial" in said.err
    assert main([*command, "--device", "cpu"]) == 2
    assert "can.tar.gz: exists already" in capsys.readouterr().err
    assert main(["submission", "check", str(target), *common]) == 1
    said = capsys.readouterr()
    assert "anomaly_images/vial/test_private: 000_regular, 001_regular missing, expected 2 .tiff" in said.out
    assert re.search(r"can +test_private_mixed +3 +3 ", said.out)
    assert "can.tar.gz: 4 findings" in said.out


def test_without_the_images_nothing_is_predicted_and_all_that_is_wrong_is_named(
    place: Path, runs: list[Run], tmp_path: Path, monkeypatch
) -> None:
    root = Path(shutil.copytree(place / "root", tmp_path / "root"))
    (root / "can/test_private/001_regular.png").unlink()
    (root / "can/test_private_mixed/002_mixed.png").rename(root / "can/test_private_mixed/003_mixed.png")
    path = root / "vial/test_private/000_regular.png"
    path.write_bytes(path.read_bytes()[:300])
    monkeypatch.setattr(server_archive, "Detector", None)
    with pytest.raises(HrbenchError) as error:
        pack(place, runs, tmp_path / "out/maps.tar.gz", root)
    lines = str(error.value).splitlines()
    assert lines[0] == "cannot be submitted, nothing is written:"
    assert lines[1:4] == [
        f"  {root}/can/test_private: no image 001_regular.png, expected 3",
        f"  {root}/can/test_private_mixed: no image 002_mixed.png, expected 3",
        f"  {root}/can/test_private_mixed/003_mixed: no image of the 3 that the server knows",
    ]
    assert lines[4].startswith(f"  {path}: damaged or truncated")
    assert len(lines) == 5
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_predicted_are_all_named(place: Path, runs: list[Run], tmp_path: Path) -> None:
    root = Path(shutil.copytree(place / "root", tmp_path / "root"))
    victims = [root / "can/test_private/001_regular.png", root / "vial/test_private_mixed/001_mixed.png"]
    for path in victims:  # in the midst: only decoding tells
        data = bytearray(path.read_bytes())
        data[300:400] = bytes(100)
        path.write_bytes(data)
    with pytest.raises(HrbenchError, match="2 images could not be predicted, nothing is written") as error:
        pack(place, runs, tmp_path / "out/maps.tar.gz", root)
    assert all(f"\n  {path}: damaged" in str(error.value) for path in victims)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interruption_leaves_no_half_archive(place: Path, runs: list[Run], tmp_path: Path, monkeypatch) -> None:
    real, added = server_archive._add, []

    def add(*args) -> None:
        added.append(args)
        if len(added) == 5:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(server_archive, "_add", add)
    with pytest.raises(KeyboardInterrupt):
        pack(place, runs, tmp_path / "out/maps.tar.gz")
    assert list((tmp_path / "out").iterdir()) == []


def test_runs_that_cannot_be_submitted_are_refused(place: Path, runs: list[Run], tree: Path, toy: str, tmp_path: Path):
    with pytest.raises(HrbenchError, match=r"a run of can, as is .*; expected one of them"):
        pack(place, [runs[0], runs[0]], tmp_path / "maps.tar.gz")
    other = hrbench.run("folder", [toy], root=tree, categories=["nut"], output=tmp_path / "runs", preset="demo",
                        protocols=["native"], device="cpu", rehearse=False).runs  # fmt: skip
    with pytest.raises(HrbenchError, match="a run of dataset 'parts', expected one of 'mvtec_ad_2'"):
        pack(place, other, tmp_path / "maps.tar.gz")
    few = hrbench.run(place / "mine.toml", [toy], root=place / "root", categories=["can"], output=tmp_path / "runs",
                      preset="demo", protocols=["native"], device="cpu", check=False, rehearse=False).runs  # fmt: skip
    with pytest.raises(HrbenchError, match=r"has no threshold \(normal images held out: \d\), and a submission needs"):
        pack(place, few, tmp_path / "maps.tar.gz")
    with pytest.raises(HrbenchError, match=r"maps\.zip: expected a name that ends in \.tar\.gz"):
        pack(place, runs, tmp_path / "maps.zip")
    with pytest.raises(HrbenchError, match="dataset 'folder': has no private test images, expected mvtec_ad_2"):
        pack_maps([runs[0].folder], place / "root", tmp_path / "maps.tar.gz", dataset="folder")


Files = dict[str, bytes]
Change = Callable[[Files], object]
MAP = "anomaly_images/can/test_private/001_regular.tiff"
DECISION = "anomaly_images_thresholded/vial/test_private/001_regular.png"


def tiff(array: np.ndarray, **options: str) -> bytes:
    tifffile.imwrite(written := io.BytesIO(), array, **options)
    return written.getvalue()


def png(array: np.ndarray) -> bytes:
    Image.fromarray(array).save(written := io.BytesIO(), format="PNG")
    return written.getvalue()


def half(value: float = 0.5) -> np.ndarray:
    array = np.linspace(0, 1, 1760).reshape(SIZE).astype(np.float16)
    array[3, 4] = value
    return array


def put(name: str, content: bytes) -> Change:
    return lambda files: files.update({name: content})


SPOILT: dict[str, tuple[Change, str]] = {
    "missing": (lambda files: files.pop(MAP), r"^anomaly_images/can/test_private: 001_regular missing, expected 3 \.t"),
    "too many": (
        put(MAP.replace("001", "003"), tiff(half())),
        "^anomaly_images/can/test_private: 003_regular too",
    ),
    "outside": (put("../evil.png", b""), r"evil\.png: is none of the files that the server knows"),
    "another object": (
        put(MAP.replace("can", "cup"), b""),
        r"cup/test_private/001_regular\.tiff: is none of the",
    ),
    "another ending": (put(MAP.replace(".tiff", ".png"), b""), r"can/test_private/001_regular\.png: is none of the"),
    "float32": (put(MAP, tiff(half().astype(np.float32))), r"001_regular\.tiff: is float32 of shape"),
    "colours": (put(MAP, tiff(np.stack([half()] * 3, 2), photometric="rgb")), r"is float16 of shape \(40, 44, 3\)"),
    "infinite": (put(MAP, tiff(half(np.inf))), r"001_regular\.tiff: 1 NaN or infinite pixels"),
    "NaN": (put(MAP, tiff(half(np.nan))), r"001_regular\.tiff: 1 NaN or infinite pixels"),
    "constant": (put(MAP, tiff(half() * 0 + 1)), r"001_regular\.tiff: all scores are 1: nothing is told apart"),
    "vanished": (put(MAP, tiff(half() * np.float16(0))), "all scores are below 6e-08, where float16 ends"),
    "small": (
        put(MAP, tiff(half()[:20])),
        r"can/test_private/001_regular\.tiff: is 20 x 44 .*, expected 40 x 44 as its",
    ),
    "grey": (put(DECISION, png(np.full(SIZE, 7, np.uint8))), r"001_regular\.png: values 7, expected 0 and 255 alone"),
    "one": (put(DECISION, png(np.eye(*SIZE, dtype=np.uint8))), r"001_regular\.png: values 1, expected 0 and 255"),
    "RGB": (put(DECISION, png(np.zeros((*SIZE, 3), np.uint8))), r"is uint8 of shape \(40, 44, 3\), expected uint8"),
    "damaged": (put(MAP, tiff(half())[:1000]), r"can/test_private/001_regular\.tiff: .*damaged"),
    "empty": (put(DECISION, b""), r"vial/test_private/001_regular\.png: the file is empty"),
}


def rewritten(archive: Path, target: Path, change: Change, top: str = "") -> Path:
    """Write the archive's files anew, changed."""
    with tarfile.open(archive) as opened:
        files = {member.name.removeprefix("submission/"): opened.extractfile(member).read() for member in opened}
    change(files)
    with tarfile.open(target, "w:gz") as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{top}{name}")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return target


@pytest.mark.parametrize("kind", SPOILT)
def test_the_reader_finds_what_the_server_would_refuse(kind: str, place: Path, archive: Path, tmp_path: Path) -> None:
    change, expected = SPOILT[kind]
    spoilt = rewritten(archive, tmp_path / "spoilt.tar.gz", change)
    _, findings = check_archive(spoilt, place / "root", dataset=place / "mine.toml")
    assert re.search(expected, findings[0]), findings
    assert len(findings) <= 2, findings
    assert str(tmp_path) not in findings[0]


@pytest.mark.parametrize("top", ["", "./", "my_method/"])
def test_an_archive_may_have_a_folder_about_all(top: str, place: Path, archive: Path, tmp_path: Path) -> None:
    packed = rewritten(archive, tmp_path / "packed.tar.gz", lambda files: None, top)
    assert check_archive(packed, place / "root", dataset=place / "mine.toml")[1] == []
    assert check_archive(packed, dataset=place / "mine.toml")[1] == []


def test_links_twins_and_ends_are_found(place: Path, archive: Path, tmp_path: Path) -> None:
    odd = rewritten(archive, tmp_path / "odd.tar.gz", lambda files: None)
    with tarfile.open(odd) as opened:
        files = [(member, opened.extractfile(member).read()) for member in opened]
    with tarfile.open(odd, "w:gz") as opened:
        for member, content in [*files, files[0]]:
            opened.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("anomaly_images/link.tiff")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    _, findings = check_archive(odd, place / "root", dataset=place / "mine.toml")
    assert findings == [
        f"{files[0][0].name}: is there twice",
        "anomaly_images/link.tiff: is no file, expected maps and decisions alone",
    ]
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive.read_bytes()[:20_000])
    _, findings = check_archive(cut, dataset=place / "mine.toml")
    assert "cut.tar.gz: ends early, or is damaged" in findings[0] or "damaged" in findings[1]
    assert "missing" in findings[-1]
    (tmp_path / "no.tar.gz").write_bytes(b"nothing of the kind")
    with pytest.raises(HrbenchError, match=r"no\.tar\.gz: not a \.tar\.gz"):
        check_archive(tmp_path / "no.tar.gz", dataset=place / "mine.toml")
    with pytest.raises(HrbenchError, match=r"none\.tar\.gz: no such file"):
        check_archive(tmp_path / "none.tar.gz", dataset=place / "mine.toml")
