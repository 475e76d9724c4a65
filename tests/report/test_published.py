"""Published figures: the files that come with hrbench, what a bad file says, and their place on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hrbench.errors import HrbenchError
from hrbench.protocol import Protocol
from hrbench.report import page
from hrbench.report.published import COLUMNS, PublishedValue, published_tables, read_published
from hrbench.report.summary import summarise
from hrbench.runs.store import Run

HEAD = ",".join(COLUMNS)
LINE = "A,resnet18,mvtec_ad,mean,pixel_auroc,0.981,256,last epoch,arXiv 1"


def written(folder: Path, *lines: str, head: str = HEAD) -> Path:
    (folder / "a.csv").write_text("\n".join((head, *lines)) + "\n")
    return folder


def figure(method: str = "A", dataset: str = "mvtec_ad", category: str = "mean", value: str = "0.9") -> PublishedValue:
    return PublishedValue(method, "resnet18", dataset, category, "pixel_auroc", value, "256", "last epoch", "arXiv 1")


def test_the_files_that_come_along_are_sound() -> None:
    figures = read_published()
    assert {"FastFlow", "U-Flow"} <= {f.method for f in figures}
    uflow = [f for f in figures if f.method == "U-Flow" and f.dataset == "mvtec_ad" and f.metric == "miou"]
    assert len({f.category for f in uflow}) == 16
    # The mean that is printed is that of the categories that are printed, to their last digit.
    complete = {"mvtec_ad": 15, "visa": 12}
    checked = set()
    for series, dataset, metric in {(f.series, f.dataset, f.metric) for f in figures if f.dataset in complete}:
        rows = [f for f in figures if (f.series, f.dataset, f.metric) == (series, dataset, metric)]
        own = {f.category: float(f.value) for f in rows}
        mean = own.pop("mean", None)
        if mean is not None and len(own) == complete[dataset]:
            assert sum(own.values()) / len(own) == pytest.approx(mean, abs=1.1e-3), (series, dataset, metric)
            checked.add((series[0].partition(" (")[0], dataset))
    assert {("FastFlow", "mvtec_ad"), ("U-Flow", "mvtec_ad"), ("ISSTAD", "mvtec_ad"), ("L2BT", "visa")} <= checked


def test_no_folder_is_no_figure(tmp_path: Path) -> None:
    assert read_published(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINE, LINE], r"a.csv, line 3: the same figure as in a.csv, line 2"),
        ([LINE.replace("0.981", "98.1")], r"a.csv, line 2: value is '98.1', expected a share"),
        (
            [LINE.replace("0.981", "-1").replace("pixel_auroc", "ms_per_image")],
            "'-1', expected a number that is not neg",
        ),
        ([LINE.replace("0.981", "inf").replace("pixel_auroc", "ms_per_image")], "value is 'inf'"),
        ([LINE.replace("0.981", "1.2").replace("pixel_auroc", "aupro@0.3")], "value is '1.2', expected a share"),
        ([LINE.replace("0.981", "good")], "value is 'good'"),
        ([LINE.replace("0.981", "nan")], "value is 'nan'"),
        ([LINE.replace("last epoch", " ")], "selection is empty, expected text"),
        ([LINE + ",more"], "10 fields, expected 9"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        read_published(written(tmp_path, *lines))


def test_other_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match=r"a.csv: columns method, value; expected method, backbone"):
        read_published(written(tmp_path, head="method,value"))


def test_tables_have_series_by_category_mean_first() -> None:
    figures = [figure(category="zipper"), figure(), figure("B", category="cable", value="0.80"), figure(dataset="visa")]
    (table,) = published_tables(figures, ["mvtec_ad", "bolts"])
    assert [column.head for column in table.columns[4:]] == ["mean", "cable", "zipper", "source"]
    assert [[cell.text for cell in (line[0], *line[4:7])] for line in table.cells] == [
        ["A", "0.9", "–", "0.9"],
        ["B", "–", "0.80", "–"],
    ]


def test_the_page_shows_them_apart(
    make_run: Callable[..., Run], protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run()]
    summary = summarise(runs, protocol)
    plain = page.html_page(summary)
    assert "Published elsewhere" not in plain
    monkeypatch.setattr(page, "read_published", lambda: [figure("<b>A</b>", "bsdata", value="0.1234")])
    text = page.html_page(summary)
    before, after = text.split('<section id="published">')
    assert "0.1234" not in before
    assert "0.1234" in after
    assert "&lt;b&gt;A" in after
    assert "<b>A</b>" not in after
    shown, shown_before = (re.sub(r"\s+", " ", part[part.index("<main") :]) for part in (plain, before))
    assert shown.startswith(shown_before)
