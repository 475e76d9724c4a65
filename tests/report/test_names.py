"""Names from outside in what people read: escaped in every format, and plots of their own."""

from __future__ import annotations

import dataclasses
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from hrbench.protocol import Protocol
from hrbench.report import plots
from hrbench.report.embedding import inline_svg, save
from hrbench.report.latex import latex_tables
from hrbench.report.page import html_page
from hrbench.report.summary import summarise
from hrbench.report.terminal import terminal_table
from hrbench.report.text import csv_table, csv_text, markdown_page
from hrbench.runs.store import Run

from .conftest import CONFIGS, alter, board_of

Factory = Callable[..., Run]
HOSTILE = "=1+1`x`|**b** [l](http:x) <img src=x onerror=alert(1)> &amp; $a$ \\input{y} % # _z_ \x1b[31m\n- https://evil"


@pytest.fixture
def hostile(make_run: Factory, protocol: Protocol) -> tuple[list[Run], Protocol]:
    """Return runs of which every name is hostile, with the protocol that they were measured under."""
    protocol = dataclasses.replace(protocol, name=HOSTILE)
    runs = [make_run(dataclasses.replace(CONFIGS[0], title=HOSTILE)), make_run(CONFIGS[1])]
    for run in runs:
        for key in ("dataset.name", "dataset.category", "method.preset", "method.weights_licence", "device", "view"):
            alter(run, key, HOSTILE)
        alter(run, "protocols", {HOSTILE: {"version": 1, "sha256": protocol.digest}})
        run.records.assign(protocol=HOSTILE).to_parquet(run.files.table("records"))
    return [Run(run.folder) for run in runs], protocol


def test_markdown_shows_names_as_they_are(hostile: tuple[list[Run], Protocol]) -> None:
    text = markdown_page(summarise(*hostile))
    assert "\x1b" not in text
    assert "<img" not in text
    assert "\n- https" not in text
    plain = re.sub(r"\\[\\`*_{}\[\]|#~$:.]", "", text.replace("**", "").replace("*defects counted*", ""))
    assert not re.search(r"[`$\[]|\w://", re.sub(r" \[[\d., ∞]+\]|\*[\d.]+\*", "", plain))
    assert text.splitlines()[0].endswith("https\\://evil version 1")


def test_a_note_that_begins_like_a_list_is_none(make_run: Factory, protocol: Protocol) -> None:
    run = make_run(category="- 1. x")
    lacking = [make_run(CONFIGS[1]), make_run(CONFIGS[2], category="1. y")]
    other = make_run(seed=1, category="1. y")
    alter(other, "dataset.index_sha256", "another")
    text = markdown_page(summarise([run, *lacking, other], protocol))
    assert "- 1\\. y: 1 run on other images" in text
    assert "\n- - " not in text
    assert "\n- 1. " not in text


def test_latex_and_html_show_names_as_they_are(hostile: tuple[list[Run], Protocol]) -> None:
    summary = summarise(*hostile)
    latex, page = latex_tables(summary), html_page(summary)
    assert "\\input" not in latex
    assert "\n- https" not in latex
    assert latex.splitlines()[0].endswith("needs \\usepackage{booktabs}")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; &amp;amp; $a$" in page
    assert html.unescape(re.findall(r"<h2>(.*?)<a class=\"sign\"", page, re.S)[0]) == HOSTILE
    assert "\x1b" not in terminal_table(*hostile)


def test_csv_cells_are_no_formulas_and_numbers_stay_numbers(hostile: tuple[list[Run], Protocol]) -> None:
    table = pd.read_csv(io.StringIO(csv_table(summarise(*hostile))))
    assert set(table["dataset"]) == {"'" + HOSTILE.replace("\n", " ")}
    assert pd.api.types.is_float_dtype(table["aupro@0.05"])
    made = pd.DataFrame({"text": ["=a", "+a", "-a", "@a", "\ta", "\r=a", "a\r\n=a", "", None], "value": [-1.5] * 9})
    back = pd.read_csv(io.StringIO(csv_text(made)), keep_default_na=False)
    assert back["text"].tolist() == ["'=a", "'+a", "'-a", "'@a", "'\ta", "' =a", "a =a", "", ""]
    assert back["value"].tolist() == [-1.5] * 9


def test_labels_of_latex_are_unique(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(dataset=name) for name in ("数据集一", "数据集二", "a_b", "a-b", "bsdata")]
    labels = re.findall(r"\\label\{(.*?)\}", latex_tables(summarise(runs, protocol)))
    assert len(set(labels)) == len(labels) == 5
    assert all(re.fullmatch(r"tab:hrbench-[a-z0-9-]+", label) for label in labels)
    assert "tab:hrbench-bsdata" in labels


def test_no_two_plots_have_one_name(
    make_run: Factory, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "gather", lambda board: None)
    monkeypatch.setattr(plots, "figures", lambda *_: {"sizes": Figure()})
    monkeypatch.setattr(plots, "draw_panels", lambda *_: None)
    monkeypatch.setattr(plots, "save", lambda figure, stem, formats: [stem])
    names = {
        "a": ["b", "c"], "a-b": ["x"], "A": ["b", "c"], "a b": ["x"], "a_b": ["x"], "数据集一": ["螺母", "螺栓"],
        "数据集二": ["x"], "y" * 190: ["z" * 190, "z" * 191],
    }  # fmt: skip
    runs = [make_run(dataset=dataset, category=category) for dataset, own in names.items() for category in own]
    stems = [path.name for path in plots.write_plots(runs, tmp_path, protocol)]
    assert len(stems) == sum(1 if len(own) == 1 else 3 for own in names.values())
    assert len({stem.casefold() for stem in stems}) == len(stems)
    assert {"a_b-sizes", "A-sizes", "A-b-sizes"} <= set(stems)
    assert max(map(len, stems)) < 240


def test_letters_that_the_font_lacks_are_no_warning(tmp_path: Path) -> None:
    figure = Figure()
    figure.suptitle("数据集一")
    assert "数据集一" in inline_svg(figure, "d0", "")
    save(figure, tmp_path / "a")


def test_a_card_says_which_adapter_and_not_where(make_run: Factory, protocol: Protocol) -> None:
    run = make_run()
    alter(run, "method.reference", "/home/ada/adapters/mine.py")
    alter(run, "method.source_sha256", "0123456789abcdef" * 4)
    page = html_page(summarise([run], protocol))
    assert "mine.py sha256:0123456789abcdef<" in page
    assert "/home/ada" not in page
    assert "/data/m.pth" not in page
    assert board_of([run], protocol).runs[0].run.about.method.reference == "mine.py"
