from __future__ import annotations

from pathlib import Path

import pytest

from hrbench.data import Sample, check_dataset, dataset_stats, load_dataset, load_descriptor
from hrbench.errors import HrbenchError


def write_descriptor(path: Path, group: str) -> Path:
    common = 'name = "mvtec_anomaly_detection"\ntitle = "Mine"\nlicence = "own"\ncitation = "none"\nurl = "here"\n'
    path.write_text(f"{common}layout = \"folder\"\ngroup = '{group}'\n")
    return path


@pytest.mark.parametrize(
    ("group", "good", "crack"),
    [
        (r"good/(\d+)", "bottle/000", ""),  # what does not match stands on its own
        (r"\w+/\d+", "bottle/good/000", "bottle/crack/000"),  # no group in it: all of the match
        (r"000|(001)", "", ""),  # it matches, its first group does not
        ("", "", ""),
    ],
)
def test_groups_by_what_the_name_says(mvtec_ad: Path, tmp_path: Path, group: str, good: str, crack: str) -> None:
    dataset = load_dataset(write_descriptor(tmp_path / "mine.toml", group), mvtec_ad)
    groups = {sample.id: sample.group for category in dataset.categories for sample in category.test}
    assert groups["bottle/test/good/000.png"] == good
    assert groups["bottle/test/crack/000.png"] == crack
    assert groups["cable/test/good/000.png"] == good.replace("bottle", "cable")  # one for each category


def test_groups_leave_digests_as_they_are(mvtec_ad: Path, tmp_path: Path) -> None:
    grouped = load_dataset(write_descriptor(tmp_path / "mine.toml", r"\d"), mvtec_ad).categories
    plain = load_dataset("folder", mvtec_ad).categories
    for with_groups, without in zip(grouped, plain, strict=True):
        assert all(sample.group for sample in with_groups.train + with_groups.test)
        assert (with_groups.digest, with_groups.names_digest) == (without.digest, without.names_digest)


def test_mvtec_ad_2_groups_the_lights_of_a_part(mvtec_ad_2: Path) -> None:
    (can,) = load_dataset("mvtec_ad_2", mvtec_ad_2).categories
    groups: dict[str, list[Sample]] = {}
    for sample in can.test:
        groups.setdefault(sample.group, []).append(sample)
    assert {name: len(members) for name, members in groups.items()} == {
        "can/test_public/bad/000": 2,
        "can/test_public/good/000": 2,
    }
    assert len({sample.group for sample in can.train}) == 4  # validation has numbers of its own
    group_of = load_descriptor("mvtec_ad_2").group_of
    lights = ("regular", "overexposed", "underexposed", "shift_1", "shift_2", "shift_3")
    assert {group_of("can", f"can/test_public/bad/012_{light}.png") for light in lights} == {"can/test_public/bad/012"}


def test_mvtec_ad_2_names_the_light_of_an_image(mvtec_ad_2: Path) -> None:
    (can,) = load_dataset("mvtec_ad_2", mvtec_ad_2).categories
    assert {sample.id.rsplit("/", 1)[1]: sample.condition for sample in can.test} == {
        "000_regular.png": "regular",
        "000_overexposed.png": "overexposed",
    }
    assert {sample.condition for sample in can.train} == {"regular"}
    condition_of = load_descriptor("mvtec_ad_2").condition_of
    assert condition_of("can/test_public/bad/012_shift_2.png") == "shift_2"
    row = dataset_stats(load_dataset("mvtec_ad_2", mvtec_ad_2)).loc[0]
    assert (row["groups"], row["conditions"]) == (2, 2)


def test_conditions_leave_digests_as_they_are(mvtec_ad: Path, tmp_path: Path) -> None:
    path = write_descriptor(tmp_path / "mine.toml", "")
    path.write_text(f"{path.read_text()}condition = 'crack|good'\n")
    described, plain = load_dataset(path, mvtec_ad).categories, load_dataset("folder", mvtec_ad).categories
    for with_conditions, without in zip(described, plain, strict=True):
        assert {sample.condition for sample in with_conditions.test} == {"crack", "good", ""}
        assert (with_conditions.digest, with_conditions.names_digest) == (without.digest, without.names_digest)
    assert [str(finding) for finding in check_dataset(path, mvtec_ad)] == [
        f"warning: {category}: 2 images in which condition = 'crack|good' finds nothing, such as "
        f"{category}/test/spot/000.png: theirs is not known"
        for category in ("bottle", "cable")
    ]
    assert "conditions" not in dataset_stats(load_dataset("folder", mvtec_ad))
    path.write_text(path.read_text().replace("crack|good", "("))
    with pytest.raises(HrbenchError, match=r"mine\.toml: condition is '\(', not a regular expression"):
        load_descriptor(path)


def test_what_is_no_regular_expression_is_named(tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match=r"mine\.toml: group is '\(good', not a regular expression: missing \)"):
        load_descriptor(write_descriptor(tmp_path / "mine.toml", "(good"))


def test_check_reports_images_without_a_group_and_stats_count_them(mvtec_ad: Path, tmp_path: Path) -> None:
    path = write_descriptor(tmp_path / "mine.toml", r"(?:good|crack)/(\d+)")
    assert [str(finding) for finding in check_dataset(path, mvtec_ad)] == [
        f"warning: {category}: 2 images in which group = '(?:good|crack)/(\\\\d+)' finds nothing, such as "
        f"{category}/test/spot/000.png: each stands on its own"
        for category in ("bottle", "cable")
    ]
    row = dataset_stats(load_dataset(path, mvtec_ad)).loc[0]
    assert (row["groups"], row["groups_good"], row["groups_defective"]) == (4, 2, 4)  # 000 and 001, two of their own
    assert "groups" not in dataset_stats(load_dataset("folder", mvtec_ad))
