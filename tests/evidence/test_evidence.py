"""What the files of evidence say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hrbench import HrbenchError
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec


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
