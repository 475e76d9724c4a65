"""The checklist for a GPU, in its smallest form and on a device that only says that it is one."""

from __future__ import annotations

from types import SimpleNamespace

import gpu_checklist as checklist
import numpy as np
import pytest
import torch

from hrbench._util.fake_cuda import fake_cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_section_has_its_seconds():
    assert list(checklist.SECTIONS) == list(checklist.SECONDS)
    assert sum(checklist.SECONDS.values()) <= 9 * 60
    assert checklist.IN_ALL < 9 * 60
    for tolerances in checklist.TOLERANCES.values():
        assert set(tolerances) == set(checklist.METHODS)


def test_sections_write_their_pages_and_a_summary_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(checklist, "METHODS", ("l2bt",))
    assert checklist.run(CPU, tmp_path / "pages", ["halving", "throughput", "equality"], small=True) == 0
    names = {path.stem for path in (tmp_path / "pages").iterdir()}
    assert names == {"halving", "throughput", "equality", "summary"}
    summary = (tmp_path / "pages" / "summary.md").read_text(encoding="utf-8")
    assert "0 of 9 checks failed" in summary
    assert "| l2bt, bfloat16: maps " in summary
    assert "not judged" in summary


def test_equality_on_a_device_that_says_it_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(checklist, "METHODS", ("uflow",))
    with fake_cuda():
        assert checklist.run(GPU, tmp_path, ["equality"], small=True) == 0
    page = (tmp_path / "equality.md").read_text(encoding="utf-8")
    assert "fake CUDA" in page
    assert "uflow, float32: decisions" in page


def test_memory_is_limited_to_provoke_halving_and_set_free_afterwards(tmp_path, monkeypatch):
    fractions, sizes = [], []

    class Limited(checklist.Narrow):
        def predict(self, batch):
            sizes.append(len(batch))
            self.room = 2 if fractions and fractions[-1] < 1 else 100
            return super().predict(batch)

    made = checklist.Setup.made
    monkeypatch.setattr(checklist.Setup, "made", lambda self: Limited(made(self), 100))
    cuda = {"empty_cache": lambda: None, "reset_peak_memory_stats": lambda device: None}
    cuda["max_memory_reserved"] = lambda device: sizes[-1] << 30
    cuda["set_per_process_memory_fraction"] = lambda fraction, device: fractions.append(fraction)
    cuda["get_device_properties"] = lambda device: SimpleNamespace(total_memory=80 << 30)
    with fake_cuda():
        for name, stand_in in cuda.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        assert checklist.run(GPU, tmp_path, ["halving"], small=True) == 0
        monkeypatch.undo()
    assert 0 < fractions[0] < 1
    assert fractions[1:] == [1.0]
    assert "going on with" in (tmp_path / "halving.md").read_text(encoding="utf-8")


def test_what_fails_is_said_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(section):
        section.judged("something", "right", "wrong", ok=False)
        raise ValueError("no such kernel")

    def late(section):
        section.ends = 0
        assert list(section.each(["fastflow"])) == []

    def slow(section):
        section.timed("speed", ">= 1", "0.5", ok=False)

    monkeypatch.setattr(checklist, "SECTIONS", {"fit": broken, "model": late, "compile": slow})
    assert checklist.run(CPU, tmp_path, ["fit", "model", "compile"], small=True) == 1
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "3 of 4 checks failed" in summary
    assert "ValueError: no such kernel" in summary
    assert "left out" in summary
    assert "not judged" in summary


def test_a_wrong_map_is_told_from_rounding():
    map_ = np.random.default_rng(0).gamma(2.0, 1.0, (64, 64))
    assert checklist.relative([map_], [map_]) == 0
    assert checklist.relative([map_], [map_ + 0.01 * map_.std()]) == pytest.approx(0.01)
    assert checklist.relative([map_], [map_[::-1]]) > 1
