"""What the files of evidence say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import assert_same_bits

from hrbench import HrbenchError
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.evidence.files import write_groups


@pytest.mark.parametrize("name", ["images", "components"])
def test_evidence_of_another_schema_is_refused(tmp_path: Path, name: str) -> None:
    collector = EvidenceCollector(EvidenceSpec())
    scores = np.random.default_rng(0).random((8, 9), np.float32)
    collector.update("a", scores, scores > 0.9)
    collector.result().save(tmp_path)
    assert np.array_equal(Evidence.load(tmp_path).defect_scores, collector.result().defect_scores)

    path = tmp_path / f"{name}.parquet"
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"hrbench"])
    pq.write_table(table.replace_schema_metadata({"hrbench": json.dumps({**facts, "schema": 2})}), path)
    with pytest.raises(HrbenchError, match=rf"{name}\.parquet: evidence of schema 2, .* reads 1"):
        Evidence.load(tmp_path)


def test_conditions_are_kept_where_there_are_any(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    collector = EvidenceCollector(EvidenceSpec())
    collector.update("a", scores, scores > 0.9, condition="dark")
    collector.update("b", scores, None)
    evidence = collector.result()
    evidence.save(tmp_path)
    assert_same_bits(Evidence.load(tmp_path), evidence)
    assert evidence.conditions == {"a": "dark"}
    write_groups(tmp_path, None, {"b": "bright"})
    assert Evidence.load(tmp_path).conditions == {"b": "bright"}
    write_groups(tmp_path, {"a": "part"}, {})
    assert "condition" not in pq.read_schema(tmp_path / "images.parquet").names  # as of a version that knew none
    found = Evidence.load(tmp_path)
    assert (found.conditions, found.images["group"].tolist()) == ({}, ["part", ""])
    assert_same_bits(found.grouped(None, {"a": "dark"}).grouped({}), evidence)


def test_evidence_that_knows_no_groups_is_read(tmp_path: Path) -> None:
    collector = EvidenceCollector(EvidenceSpec())
    scores = np.random.default_rng(0).random((8, 9), np.float32)
    collector.update("a", scores, scores > 0.9, group="part 1")
    collector.update("b", scores, None)
    collector.result().save(tmp_path)
    assert Evidence.load(tmp_path).images["group"].tolist() == ["part 1", ""]

    path = tmp_path / "images.parquet"
    pq.write_table(pq.read_table(path).drop_columns("group"), path)
    old = Evidence.load(tmp_path)
    assert old.images["group"].tolist() == ["", ""]
    assert old.images.dtypes.equals(collector.result().images.dtypes)
    assert old.groups is None
