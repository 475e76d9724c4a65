"""Nothing of the test set reaches fit, calibration or thresholds: until they are done its files cannot be read."""

import shutil

import pytest
import torch

from hrbench.data import load_dataset
from hrbench.errors import HrbenchError
from hrbench.protocol import load_protocol
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job
from hrbench.runs.shards import EvidenceShards

RSTPM = {
    "weights": "random",
    "teacher": "test_efficientnet",
    "second_teacher": "test_byobnet",
    "strides": (4,),
    "width": 2,
    "batch_size": 2,
    "steps": 2,
    "discriminator_batch_size": 2,
    "discriminator_steps": 2,
}


def run(method, root, output):
    (category,) = load_dataset("folder", root).select(["bolt"])
    options = RSTPM if method == "rstpm" else {"steps": 2}
    job = make_job(category, method, preset="demo", view="tiled:32:0", options=options)
    return run_job(job, output, [load_protocol("native")], device=torch.device("cpu"))


@pytest.mark.parametrize("method", ["toy", "rstpm"])
def test_fit_and_thresholds_never_open_a_test_file(method, toy, tree, tmp_path, monkeypatch):
    method = toy if method == "toy" else method
    root = shutil.copytree(tree, tmp_path / "parts")
    hidden = [path for part in ("test", "ground_truth") for path in (root / "bolt" / part).rglob("*.png")]
    contents = {path: path.read_bytes() for path in hidden}
    assert len(hidden) == 13
    usual = run(method, root, tmp_path / "usual")

    for path in hidden:
        path.write_bytes(b"not an image")
    with pytest.raises(HrbenchError, match=r"test.*not a readable image"):
        run(method, root, tmp_path / "broken")  # they are read in the end, or this test shows nothing

    collect, fitted = EvidenceShards.collect, []

    def restoring(self, *arguments):
        fitted.extend(path.read_bytes() for path in (tmp_path / "hidden").rglob("weights.safetensors"))
        for path, content in contents.items():
            path.write_bytes(content)
        return collect(self, *arguments)

    monkeypatch.setattr(EvidenceShards, "collect", restoring)
    found = run(method, root, tmp_path / "hidden")
    assert fitted == [(usual.folder / "weights.safetensors").read_bytes()]
    assert found.about.threshold == usual.about.threshold
    assert found.records.drop(columns="run").equals(usual.records.drop(columns="run"))
