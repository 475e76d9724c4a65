from __future__ import annotations

from pathlib import Path

import pytest

from hrbench.data import list_datasets, load_descriptor
from hrbench.data.layouts import LAYOUTS
from hrbench.errors import HrbenchError

NAMES = [
    "3cad",
    "autovi",
    "btad",
    "dtd_synthetic",
    "folder",
    "goodsad",
    "kolektorsdd2",
    "kolektorsdd_first35",
    "mpdd",
    "mvtec_3d_ad",
    "mvtec_ad",
    "mvtec_ad_2",
    "mvtec_loco_ad",
    "real_iad",
    "real_iad_1024",
    "viaduct",
    "visa",
]


def test_lists_the_built_in_datasets() -> None:
    assert list_datasets() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_descriptor_is_complete(name: str) -> None:
    descriptor = load_descriptor(name)
    assert descriptor.name == name
    assert descriptor.layout in LAYOUTS
    for text in (descriptor.title, descriptor.licence, descriptor.citation, descriptor.url, descriptor.notes):
        assert text.strip()


@pytest.mark.parametrize(
    ("name", "categories", "totals"),
    [("mvtec_ad", 15, (3629, 467, 1258)), ("visa", 12, (8659, 962, 1200))],
)
def test_categories_add_up_to_the_published_totals(name: str, categories: int, totals: tuple[int, int, int]) -> None:
    descriptor = load_descriptor(name)
    assert len(descriptor.categories) == categories
    counts = descriptor.categories.values()
    parts = ("train", "test_good", "test_defective")
    assert tuple(sum(getattr(count, part) for count in counts) for part in parts) == totals
    assert tuple(getattr(descriptor.total, part) for part in parts) == totals


def test_uncertain_counts_are_left_out() -> None:
    assert load_descriptor("kolektorsdd2").expected("kolektorsdd2").train is None
    assert load_descriptor("folder").expected("anything").test_good is None


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(HrbenchError, match=r"unknown dataset 'mvtec_adx'; did you mean 'mvtec_ad'"):
        load_descriptor("mvtec_adx")


def test_reads_a_descriptor_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    common = 'name = "mine"\ntitle = "Mine"\nlicence = "own"\ncitation = "none"\nurl = "here"\n'
    path.write_text(f'{common}layout = "mvtec"\n[categories]\ngear = {{ train = 7 }}\n')
    assert load_descriptor(path).expected("gear").train == 7

    path.write_text(f'{common}layout = "mvtex"\n')
    with pytest.raises(HrbenchError, match=r"mine\.toml: layout is 'mvtex', expected one of"):
        load_descriptor(path)
    path.write_text(f'{common}layout = "mvtec"\ncategoris = 1\n')
    with pytest.raises(HrbenchError, match=r"mine\.toml: categoris is an unknown key"):
        load_descriptor(path)
    path.write_text(f'{common}layout = "mvtec"\n')
    with pytest.raises(HrbenchError, match=r"mine\.toml: no \[categories\]"):
        load_descriptor(path)
    with pytest.raises(HrbenchError, match=r"gone\.toml: no such file"):
        load_descriptor(tmp_path / "gone.toml")


def test_a_descriptor_holds_only_what_differs_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "real_iad_1024"\nname = "mine"\nsplits = "realiad_jsons_sv"\n')
    mine, base = load_descriptor(path), load_descriptor("real_iad")
    assert (mine.name, mine.images, mine.splits) == ("mine", "realiad_1024", "realiad_jsons_sv")
    assert (mine.layout, mine.group, mine.categories) == (base.layout, base.group, base.categories)
    path.write_text('base = "real_iadd"\nname = "mine"\n')
    with pytest.raises(HrbenchError, match=r"mine\.toml: base: unknown dataset 'real_iadd'; did you mean 'real_iad'"):
        load_descriptor(path)
    path.write_text('base = "real_iad"\nname = "mine"\nimages = "../elsewhere"\n')
    with pytest.raises(HrbenchError, match=r"mine\.toml: '\.\./elsewhere': a path that leaves its folder"):
        load_descriptor(path)
    path.write_text("base = 3\n")
    with pytest.raises(HrbenchError, match=r"mine\.toml: base is 3, expected str"):
        load_descriptor(path)


def test_what_becomes_of_unusable_masks_is_one_of_two_things(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "btad"\n[mask]\nunusable = "skip"\n')
    with pytest.raises(HrbenchError, match=r"mask\.unusable is 'skip', expected one of 'error', 'leave_out'"):
        load_descriptor(path)
