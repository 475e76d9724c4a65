from __future__ import annotations

from pathlib import Path

import pytest

from hrbench.report.anchors import Anchors
from hrbench.report.links import file_link, linked


def test_anchors_are_unique_and_their_digest_does_not_hang_on_the_order() -> None:
    names = [
        ("a", "b c"),
        ("a", "b/c"),
        ("a b", "c"),
        ("a",),
        ("",),
        ("<b>",),
        ("!",),
        ("x" * 300,),
        ("数据集", "螺母"),
    ]
    first, second = Anchors(), Anchors()
    forth = [first.of(*name) for name in names]
    back = [second.of(*name) for name in reversed(names)][::-1]
    assert len(set(forth)) == len(forth)
    assert len(set(back)) == len(back)
    assert [a for a, b in zip(forth, back, strict=True) if a == b][-1] == "数据集-螺母"
    assert all(not set(anchor) & set(" <>\"'#&%=/") and len(anchor) < 100 for anchor in forth)
    assert first.of("a", "b:c", tell="1") != second.of("a", "b:c", tell="2")
    assert first.short() != first.short()


def test_papers_are_links_and_nothing_else_becomes_markup() -> None:
    text = linked("A <b>, arXiv:1234.56789v2; https://arxiv.org/abs/2111.07677 (arXiv)")
    assert text.count("<a ") == 2
    assert 'href="https://arxiv.org/abs/1234.56789v2"' in text
    assert 'href="https://arxiv.org/abs/2111.07677"' in text
    assert "A &lt;b&gt;, " in text


@pytest.mark.parametrize(("page", "address"), [
    ("out", "runs/a%20b/run.json"), ("out/report", "../runs/a%20b/run.json"), ("out/x/report", ""), ("away/report", ""),
])  # fmt: skip
def test_only_files_that_travel_with_the_page_are_linked(tmp_path: Path, page: str, address: str) -> None:
    run = tmp_path / "deep" / "out" / "runs" / "a b" / "run.json"
    run.parent.mkdir(parents=True)
    run.touch()
    folder = tmp_path / ("deep" if page.startswith("out") else "") / page
    assert file_link(run, folder) == address
    assert file_link(run, None) == file_link(run.with_name("none.json"), folder) == ""
