"""The comparison of weights: one row per backbone."""

from __future__ import annotations

import compare_weights
import pytest


def test_random_and_bundled_weights_come_before_files() -> None:
    found = compare_weights.contenders(["mobilenetv2_100=work/a.pth", "resnet18=work/b.safetensors"])
    assert [one.name for one in found] == [
        "ResNet18, random",
        "ResNet18, bundled",
        "mobilenetv2_100, a.pth",
        "resnet18, b.safetensors",
    ]
    assert (found[-1].backbone, found[-1].weights) == ("resnet18", "work/b.safetensors")


def test_files_of_one_name_would_share_a_row() -> None:
    with pytest.raises(SystemExit, match=r"several are resnet18, a\.safetensors; expected files of different names"):
        compare_weights.contenders(["resnet18=one/a.safetensors", "resnet18=two/a.safetensors"])
