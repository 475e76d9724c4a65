from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import hrbench.report
from hrbench.protocol import Protocol, load_protocol
from hrbench.report import page, plots, write_leaderboard
from hrbench.report.columns import category_columns, image_columns, matched_columns, overview_columns
from hrbench.report.summary import summarise
from hrbench.runs.store import Run

from .conftest import CONFIGS, NASTY, PROTOCOL, write_run

Factory = Callable[..., Run]
VOID = {"meta", "link", "img", "br", "hr", "input", "col", "path", "use", "rect", "line", "image", "stop"}


class Reader(HTMLParser):
    """Checks that tags are balanced, and keeps tags and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        found = [attrs for name, attrs in self.tags if name == tag]
        return [a for a in found if all(a.get(k.rstrip("_")) == v for k, v in attributes.items())]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    make_run = functools.partial(write_run, tmp_path_factory.mktemp("runs"))
    runs = [make_run(config, "weave & grain", "fabric", seed) for config in CONFIGS for seed in (0, 1)]
    runs += [make_run(config, "weave & grain", "wood") for config in CONFIGS if config.name != "l2bt"]
    runs += [make_run(CONFIGS[0], intervals=True)]
    return write_leaderboard(runs, tmp_path_factory.mktemp("board"), PROTOCOL)


@pytest.fixture(scope="module")
def text(files: dict[str, Path]) -> str:
    return files["html"].read_text(encoding="utf-8")


def test_writes_all_formats_and_leaves_nothing_else(files: dict[str, Path]) -> None:
    assert list(files) == ["md", "csv", "tex", "html"]
    assert sorted(files.values()) == sorted(files["md"].parent.iterdir())
    assert all(path.stat().st_size > 500 for path in files.values())


def test_page_is_balanced_self_contained_and_escaped(text: str) -> None:
    assert text.startswith("<!doctype html>")
    page = Reader(text)
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            if name in ("src", "srcset", "data", "poster", "action"):
                assert value.startswith("data:image/jpeg;base64,")
            if tag == "image" and name == "href":
                assert re.match("data:image/(jpeg|png);base64,", value)
            elif name.endswith("href"):
                beside = r"leaderboard\.(csv|md|tex)|\.\./[\w/.~%-]+/run\.json"
                assert value.startswith("#") or (tag == "a" and re.match(f"https://|({beside})$", value))
            assert not name.startswith("on")
    assert not page.all("link")
    assert "default-src 'none'" in text
    style_and_script = "".join(re.findall(r"<(?:style|script)>(.*?)</", text, re.S))
    assert not re.search(r"https?:|@import|url\(", style_and_script)
    assert not page.all("b", class_="") or "<b>x&y" not in text
    assert "<i>seen" not in text
    assert "\x1b" not in text
    shown = NASTY.replace("\x1b", "")
    assert any(shown in data for data in page.texts)


def test_ids_are_unique_and_links_lead_somewhere(text: str) -> None:
    page = Reader(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {"weave-grain", "weave-grain-fabric", "weave-grain-cost", "bsdata-ballscrew"} <= set(ids)
    targets = {value[1:] for _, a in page.tags for k, value in a.items() if k.endswith("href") and value[:1] == "#"}
    assert targets <= set(ids)


def test_headers_are_buttons_and_tell_their_order(text: str) -> None:
    page = Reader(text)
    assert len(page.all("th", **{"aria-sort": "ascending"})) == len(page.all("caption")) - len(
        page.all("table", class_="heat")
    )
    assert len(page.all("button", type="button")) > 20
    assert all(a["alt"] for a in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))


def test_rows_say_what_they_are(text: str) -> None:
    page = Reader(text)
    assert [a for a in page.all("tr") if a.get("class") == "random"]
    assert "random weights" in page.texts
    words = re.sub(r"\s+", " ", " ".join(page.texts))
    assert "lacks wood" in words
    for needle in (
        "Apache-2.0",
        "9db7919",
        "sha256",
        "steps = 20",
        "native version 1",
        "cpu (2 threads)",
        "1.23",
    ):
        assert needle in words


def test_every_number_explains_itself(text: str) -> None:
    page = Reader(text)
    cells = [a for a in page.all("td") if "number" in a.get("class", "").split() and "title" in a]
    assert len(cells) > 100
    assert all(a["title"] for a in cells)
    titles = " ".join(a["title"] for a in cells)
    assert "± 4e-7 (certified numerical error)" in titles
    assert "no such threshold" in titles
    assert "the method takes no decision of its own" in titles
    assert "no number below 3" in titles
    assert "over 2 seeds" in titles
    assert "interval 0." in titles
    assert not re.search("(automatic|operating) threshold|IoU auto", text)


@pytest.mark.parametrize(("name", "words", "head"), [
    ("native", "promised threshold", "promised"), ("native@1", "threshold set on normal images", "threshold"),
])  # fmt: skip
def test_the_threshold_has_one_name_in_every_heading(name: str, words: str, head: str) -> None:
    protocol = load_protocol(name)
    assert protocol.threshold.name == words
    columns = [*category_columns(protocol), *overview_columns(protocol), *matched_columns(protocol)]
    columns += image_columns(protocol)
    texts = [text for column in columns for text in (column.group, column.title) if " threshold" in text]
    named = [text for text in texts if f"at the {words}" in text]
    assert len(named) > 10
    assert all("at the best threshold" in text or "is matched on" in text for text in texts if text not in named)
    assert [column.head for column in columns if column.key == "iou"][1] == head


def test_small_print_is_the_interval_of_the_headline(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run(seed=seed, intervals=True) for seed in (0, 1)]
    text = write_leaderboard(runs, runs[0].folder / "page", protocol)["html"].read_text(encoding="utf-8")
    rows = re.findall(r"<tr data-of[^>]*>(.*?)</tr>", text, re.S)
    small = [re.findall(r"<small>(0\.[^<]*|seeds [^<]*)</small>", row) for row in rows]
    # AUPRO@0.05 and rho in the overview, both again in the category, then with the range of the seeds.
    assert [len(found) for found in small if any(re.match(r"0\.\d\d–0\.\d\d$", one) for one in found)] == [2, 4]
    assert sum(one.startswith("seeds 0.") for found in small for one in found) == 2
    assert text.count("Intervals: 95 %, bootstrap over images, 1000 draws.") == 2


def test_same_runs_give_the_same_page(make_run: Factory, tmp_path: Path, protocol: Protocol) -> None:
    runs = [make_run()]
    first, second = (write_leaderboard(runs, tmp_path / name, protocol) for name in "ab")
    assert {k: p.read_bytes() for k, p in first.items()} == {k: p.read_bytes() for k, p in second.items()}


def test_report_knows_no_torch() -> None:
    for path in Path(hrbench.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "timm", "pylab"}
            assert "matplotlib.pyplot" not in names


def test_of_many_rows_the_best_are_drawn_and_a_sentence_says_so(
    make_run: Factory, tmp_path: Path, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run(config) for config in CONFIGS[:3]]
    for module in (page, plots):
        monkeypatch.setattr(module, "MOST_ROWS", 2)
    text = write_leaderboard(runs, tmp_path, protocol)["html"].read_text(encoding="utf-8")
    read = Reader(text)
    assert "Plots and detection limits show the best 2 of 3 rows." in read.texts
    (board,) = summarise(runs, protocol).leaderboards
    legend = plots.figures(board, plots.gather(board), "", kinds=["sizes"])["sizes"].legends[0]
    shown = [label.get_text().strip() for label in legend.get_texts()]
    assert [row.configuration.short for row in board.rows[:2]] == shown[:2]
    assert board.rows[2].configuration.short not in shown
