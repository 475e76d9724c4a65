"""The model of the pipeline: what sets the pace, what is counted, and that it holds for a whole run in small."""

from __future__ import annotations

import dataclasses

import pipeline_model as model
import pytest
import torch
from torch.nn import functional

HOST = model.Host(decode=0.05, stack=0.002, evidence=0.01, places=0.002, test_everywhere=0.2, test_found=0.004)
WORK = model.Work(low=0.1, convolution=0.0, full=0.0, operations=300, tiles=1.5, moved=50)
CHIP = model.Chip("one", low=300, convolution=150, full=50, memory=1000, bus=25)


def test_the_busiest_resource_sets_the_pace():
    assert model.pace({"a": 0.01, "b": 0.25, "c": 0.1}) == (4.0, "b")
    before = model.demands(WORK, HOST, CHIP, 16, before=True)
    assert before["GPU"] == pytest.approx(0.1 / 300 * 3 + 50 / 1e3 / 1000)
    assert before["decoding threads"] == pytest.approx(0.05 / 8)
    assert model.demands(WORK, HOST, CHIP, 4, before=True)["decoding threads"] == pytest.approx(0.05 / 4)
    assert model.pace(before) == (100, "evidence thread")
    now = model.demands(WORK, HOST, CHIP, 16, before=False)
    assert model.pace(now) == (160, "decoding threads")
    assert model.pace(model.demands(WORK, HOST, CHIP, 1, before=False))[1] == "all cores"
    assert now["bus to the host"] < before["bus to the host"]


def test_a_test_on_the_host_is_in_the_way_or_beside():
    deciding = dataclasses.replace(WORK, decides=True)
    before, now = (model.demands(deciding, HOST, CHIP, 16, before=when) for when in (True, False))
    assert before["queueing thread"] == pytest.approx(300 * model.QUEUED + 1.5 * 0.2)
    assert now["queueing thread"] == pytest.approx(300 * model.QUEUED)
    assert now["deciding threads"] == pytest.approx(1.5 * 0.004 / model.DECIDING)


def test_operations_are_counted_by_precision():
    image, kernel, heads = torch.rand(1, 2, 8, 8), torch.rand(3, 2, 1, 1), torch.rand(1, 2, 16, 8)
    with model.Counting() as counted:
        functional.conv2d(image, kernel)
        torch.rand(4, 5).bfloat16() @ torch.rand(5, 6).bfloat16()
        functional.scaled_dot_product_attention(heads, heads, heads)
    assert counted.flops["convolution"] == 2 * 64 * 2 * 3
    assert counted.flops["low"] == 2 * 4 * 5 * 6
    assert counted.flops["full"] == 2 * 2 * 2 * 16 * 16 * 8
    assert counted.operations >= 3


def test_the_model_holds_for_a_whole_run_in_small(tmp_path):
    sample = model.files(tmp_path, 256, 1)[0]
    row = model.held_against("fastflow", torch.device("cpu"), sample, 2, model.CHIPS[0])
    assert 0.3 < float(row["whole / stages"]) < 3
    assert row["set by"] in ("network's thread", "all cores")
