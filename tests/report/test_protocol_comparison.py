from __future__ import annotations

import math
import re
from collections.abc import Callable

import pandas as pd
import pytest

from hrbench.protocol import Protocol
from hrbench.report import page
from hrbench.report.protocol_comparison import compare_protocols
from hrbench.report.summary import summarise
from hrbench.report.table import Cell, Table
from hrbench.report.text import markdown_page
from hrbench.runs.store import Run

from .conftest import CONFIGS, alter, board_of

Factory = Callable[..., Run]


def measure(run: Run, name: str, *, shift: float = 0.0, factor: float = 1.0, limits: tuple[float, ...] = ()) -> Run:
    """Add records of another protocol in memory: values moved, counts shrunk, only some limits."""
    table = run.records[run.records["protocol"] == "native"]
    if limits:
        table = table[table["fpr_limit"].isna() | table["fpr_limit"].isin(limits)]
    table = table.assign(protocol=name, value=table["value"] + shift, n=(table["n"] * factor).astype(int))
    run.__dict__["records"] = pd.concat([run.records, table], ignore_index=True)
    alter(run, f"protocols.{name}", {"version": 1, "sha256": name})
    return run


def compare(runs: list[Run], protocol: Protocol) -> Table:
    result = compare_protocols(board_of(runs, protocol))
    assert result is not None
    return result


def blocks(table: Table) -> list[tuple[str, tuple[Cell, ...], dict[str, tuple[Cell, ...]]]]:
    """Return each metric of a table: its name, what it counts, and its lines by view."""
    result: list[tuple[str, tuple[Cell, ...], dict[str, tuple[Cell, ...]]]] = []
    for row, cells in zip(table.rows, table.cells, strict=True):
        if isinstance(row, str):
            result.append((row, cells, {}))
        elif row is not None:
            result[-1][2][row.configuration.view] = cells
    return result


def names(table: Table) -> list[str]:
    return [name for name, _, _ in blocks(table)]


def texts(table: Table, metric: int) -> list[tuple[str, str]]:
    """Return text and difference under each protocol, of a table with one row for each metric."""
    ((cells),) = blocks(table)[metric][2].values()
    return [(cell.text, "".join(cell.small)) for cell in cells]


def test_one_protocol_is_worth_nothing(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run()]
    assert compare_protocols(board_of(runs, protocol)) is None
    assert "worth" not in markdown_page(summarise(runs, protocol))
    assert "What the protocol is worth" not in page.html_page(summarise(runs, protocol))


def test_columns_are_protocols_and_small_print_the_difference_to_native(make_run: Factory, protocol: Protocol) -> None:
    run = measure(make_run(), "lowres256", shift=-0.123, factor=0.5)
    table = compare([run], protocol)
    assert [column.head for column in table.columns] == ["native", "lowres256"]
    assert names(table) == [
        "AUPRO@0.3, all defects",
        "AUPRO@0.3, tiny defects",
        "AUPRO@0.05, all defects",
        "AUPRO@0.05, tiny defects",
        "image ROC-AUC",
    ]
    counts = [[cell.text for cell in cells] for _, cells, _ in blocks(table)[:2]]
    assert counts == [["n = 120", "n = 60"], ["n = 31", "n = 15"]]
    for metric in range(5):
        (native, none), (low, difference) = texts(table, metric)
        assert none == ""
        assert difference == "−12.3"
        assert float(low) == pytest.approx(float(native) - 0.123, abs=0.0011)


def test_aupro_at_the_largest_limit_that_all_share(make_run: Factory, protocol: Protocol) -> None:
    table = compare([measure(make_run(), "mvtec", limits=(0.3,))], protocol)
    assert [name[:10] for name in names(table)[:3]] == ["AUPRO@0.3,", "AUPRO@0.3,", "AUPRO@0.05"]
    assert texts(table, 2)[1] == ("–", "")
    assert texts(table, 0)[1][1] == "±0.0"
    run = measure(make_run(seed=1), "odd", limits=(0.3,))
    odd = run.records["protocol"] == "odd"
    run.records.loc[odd & run.records["fpr_limit"].notna(), "fpr_limit"] = 0.02
    assert names(compare([run], protocol)) == [
        "AUPRO@0.05, all defects", "AUPRO@0.05, tiny defects", "image ROC-AUC",
    ]  # fmt: skip


def test_without_native_the_pages_own_protocol_is_the_reference(make_run: Factory, protocol: Protocol) -> None:
    run = measure(measure(make_run(), "b"), "a")
    run.__dict__["records"] = run.records[run.records["protocol"] != "native"].reset_index(drop=True)
    table = compare([run], Protocol("b", "B", 1))
    assert [column.head for column in table.columns] == ["b", "a"]
    assert "difference to b" in table.notes[0]


def test_a_value_needs_every_run_of_its_row(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(seed=0), "lowres256"), make_run(seed=1)]
    runs += [measure(make_run(CONFIGS[1]), "lowres256", shift=0.1)]
    lines = blocks(compare(runs, protocol))[0][2]
    assert lines["tiled:256:64"][1].text == "–"
    assert lines["tiled:256:64"][1].title == "1 of 2 runs not measured under lowres256"
    assert lines["whole:512"][1].small == ("+10.0",)


def test_other_rules_of_the_same_name_do_not_mix(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(seed=0), "lowres256"), measure(make_run(CONFIGS[1], seed=1), "lowres256")]
    alter(runs[0], "protocols.lowres256.sha256", "older")
    lines = blocks(compare(runs, protocol))[0][2]
    assert "other rules" in lines["tiled:256:64"][1].title
    assert lines["whole:512"][1].text != "–"


def test_missing_values_leave_gaps_and_no_difference(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(category=c), "lowres256") for c in ("a", "b")]
    table = runs[0].records
    low = table["protocol"] == "lowres256"
    table.loc[low & (table["subset"] == "tiny"), ["value", "n"]] = (math.nan, 0)
    table.loc[low & (table["metric"] == "image_auroc"), "value"] = math.nan
    comparison = compare(runs, protocol)
    tiny = texts(comparison, 1)
    assert tiny[1][0].endswith("°")
    assert tiny[1][1] == ""
    assert [cell.text for cell in blocks(comparison)[1][1]] == ["n = 61", "n = 31"]
    table = runs[1].records
    table.loc[(table["protocol"] == "lowres256") & (table["subset"] == "tiny"), "n"] = 2
    assert texts(compare(runs, protocol), 1)[1] == ("n = 2", "")


def test_best_of_each_protocol_is_marked(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(CONFIGS[0]), "lowres256", shift=-0.5), measure(make_run(CONFIGS[1]), "lowres256")]
    lines = blocks(compare(runs, protocol))[0][2]
    assert [[cell.place for cell in cells] for cells in lines.values()] == [[1, 2], [2, 1]]


def test_rows_under_other_rules_compete_where_the_rules_are_shared(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(config), "lowres256") for config in CONFIGS[:2]]
    alter(runs[0], "protocols.native.sha256", "older")
    lines = blocks(compare(runs, protocol))[0][2]
    assert {view: [cell.place for cell in cells] for view, cells in lines.items()} == {
        "tiled:256:64": [0, 1], "whole:512": [0, 2],
    }  # fmt: skip


def test_page_and_markdown_show_it(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(config), "low|res <i>", shift=-0.05) for config in CONFIGS[2:]]
    summary = summarise(runs, protocol)
    text = page.html_page(summary)
    assert len(re.findall(r"<h3[^>]*>What the protocol is worth", text)) == 1
    assert "low|res &lt;i&gt;" in text
    assert "<i>" not in text
    assert "−5.0" in text
    markdown = markdown_page(summary)
    (table,) = [block for block in markdown.split("\n\n") if block.startswith("| Metric")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
    assert set(bars) == {5}
    assert len(bars) == 2 + 5 * 2 + 4
    assert "(−5.0)" in table
    assert "Same images and same maps" in markdown
    assert "<i>" not in markdown
