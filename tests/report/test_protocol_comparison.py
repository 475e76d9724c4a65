from __future__ import annotations

import math
import re
from collections.abc import Callable

import pandas as pd
import pytest

from hrbench.protocol import Protocol
from hrbench.report import page
from hrbench.report.protocol_comparison import Block, ProtocolComparison, compare_protocols
from hrbench.report.summary import summarise
from hrbench.report.tables import markdown_page
from hrbench.store import Run

from .conftest import CONFIGS

Factory = Callable[..., Run]


def measure(run: Run, name: str, *, shift: float = 0.0, factor: float = 1.0, limits: tuple[float, ...] = ()) -> Run:
    """Add records of another protocol in memory: values moved, counts shrunk, only some limits."""
    table = run.records[run.records["protocol"] == "native"]
    if limits:
        table = table[table["fpr_limit"].isna() | table["fpr_limit"].isin(limits)]
    table = table.assign(protocol=name, value=table["value"] + shift, n=(table["n"] * factor).astype(int))
    run.__dict__["records"] = pd.concat([run.records, table], ignore_index=True)
    run.config["protocols"][name] = {"version": 1, "sha256": name}
    return run


def worth(runs: list[Run], protocol: Protocol, dataset: str = "bsdata") -> ProtocolComparison:
    result = compare_protocols(runs, summarise(runs, protocol), dataset)
    assert result is not None
    return result


def texts(block: Block, row: int = 0) -> list[tuple[str, str]]:
    return [(cell.text, cell.difference) for cell in block.rows[row][1]]


def test_one_protocol_is_worth_nothing(make_run: Factory, protocol: Protocol) -> None:
    runs = [make_run()]
    assert compare_protocols(runs, summarise(runs, protocol), "bsdata") is None
    assert "worth" not in markdown_page(summarise(runs, protocol), runs)
    assert "What the protocol is worth" not in page.html_page(runs, summarise(runs, protocol))


def test_columns_are_protocols_and_small_print_the_difference_to_native(make_run: Factory, protocol: Protocol) -> None:
    run = measure(make_run(), "lowres256", shift=-0.123, factor=0.5)
    found = worth([run], protocol)
    assert found.protocols == ["native", "lowres256"]
    names = [block.name for block in found.blocks]
    assert names == [
        "AUPRO@0.3, all defects",
        "AUPRO@0.3, tiny defects",
        "AUPRO@0.05, all defects",
        "AUPRO@0.05, tiny defects",
        "image ROC-AUC",
    ]
    assert [block.counts for block in found.blocks[:2]] == [["n = 120", "n = 60"], ["n = 31", "n = 15"]]
    for block in found.blocks:
        (native, none), (low, difference) = texts(block)
        assert none == ""
        assert difference == "−12.3"
        assert float(low) == pytest.approx(float(native) - 0.123, abs=0.0011)


def test_aupro_at_the_largest_limit_that_all_share(make_run: Factory, protocol: Protocol) -> None:
    found = worth([measure(make_run(), "mvtec", limits=(0.3,))], protocol)
    assert [block.name[:10] for block in found.blocks[:3]] == ["AUPRO@0.3,", "AUPRO@0.3,", "AUPRO@0.05"]
    assert texts(found.blocks[2])[1] == ("–", "")
    assert texts(found.blocks[0])[1][1] == "±0.0"
    run = measure(make_run(seed=1), "odd", limits=(0.3,))
    odd = run.records["protocol"] == "odd"
    run.records.loc[odd & run.records["fpr_limit"].notna(), "fpr_limit"] = 0.02
    found = worth([run], protocol)
    assert [block.name for block in found.blocks] == [
        "AUPRO@0.05, all defects", "AUPRO@0.05, tiny defects", "image ROC-AUC",
    ]  # fmt: skip


def test_without_native_the_pages_own_protocol_is_the_reference(make_run: Factory, protocol: Protocol) -> None:
    run = measure(measure(make_run(), "b"), "a")
    run.__dict__["records"] = run.records[run.records["protocol"] != "native"].reset_index(drop=True)
    found = worth([run], Protocol("b", "B", 1))
    assert found.protocols == ["b", "a"]
    assert "difference to b" in found.notes


def test_a_value_needs_every_run_of_its_row(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(seed=0), "lowres256"), make_run(seed=1)]
    runs += [measure(make_run(CONFIGS[1]), "lowres256", shift=0.1)]
    found = worth(runs, protocol)
    rows = {row["view"]: cells for row, cells in found.blocks[0].rows}
    assert rows["tiled:256:64"][1].text == "–"
    assert rows["tiled:256:64"][1].title == "1 of 2 runs not measured under lowres256"
    assert rows["whole:512"][1].difference == "+10.0"


def test_other_rules_of_the_same_name_do_not_mix(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(seed=0), "lowres256"), measure(make_run(CONFIGS[1], seed=1), "lowres256")]
    runs[0].config["protocols"]["lowres256"]["sha256"] = "older"
    rows = {row["view"]: cells for row, cells in worth(runs, protocol).blocks[0].rows}
    assert "other rules" in rows["tiled:256:64"][1].title
    assert rows["whole:512"][1].text != "–"


def test_missing_values_leave_gaps_and_no_difference(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(category=c), "lowres256") for c in ("a", "b")]
    table = runs[0].records
    low = table["protocol"] == "lowres256"
    table.loc[low & (table["subset"] == "tiny"), ["value", "n"]] = (math.nan, 0)
    table.loc[low & (table["metric"] == "image_auroc"), "value"] = math.nan
    found = worth(runs, protocol)
    tiny = texts(found.blocks[1])
    assert tiny[1][0].endswith("°")
    assert tiny[1][1] == ""
    assert found.blocks[1].counts == ["n = 61", "n = 31"]
    table = runs[1].records
    table.loc[(table["protocol"] == "lowres256") & (table["subset"] == "tiny"), "n"] = 2
    assert texts(worth(runs, protocol).blocks[1])[1] == ("n = 2", "")


def test_best_of_each_protocol_is_marked(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(CONFIGS[0]), "lowres256", shift=-0.5), measure(make_run(CONFIGS[1]), "lowres256")]
    block = worth(runs, protocol).blocks[0]
    assert [[cell.best for cell in cells] for _, cells in block.rows] == [[True, False], [False, True]]


def test_page_and_markdown_show_it(make_run: Factory, protocol: Protocol) -> None:
    runs = [measure(make_run(config), "low|res <i>", shift=-0.05) for config in CONFIGS[2:]]
    summary = summarise(runs, protocol)
    text = page.html_page(runs, summary)
    assert text.count("<h3>What the protocol is worth</h3>") == 1
    assert "low|res &lt;i&gt;" in text
    assert "<i>" not in text
    assert "−5.0" in text
    markdown = markdown_page(summary, runs)
    (table,) = [block for block in markdown.split("\n\n") if block.startswith("| Metric")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
    assert set(bars) == {5}
    assert len(bars) == 2 + 5 * 2 + 4
    assert "(−5.0)" in table
    assert "Same images and same maps" in markdown
    assert "<i>" not in markdown
