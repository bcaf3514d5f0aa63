"""What a run was made from is found again where its folder was moved."""

from dataclasses import asdict

import pytest

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.errors import ClspError
from clsp_plugin.records.belonging import store_of
from clsp_plugin.records.record import Record


@pytest.mark.parametrize("before", ["runs/artifacts", "/somewhere/runs/artifacts"])
def test_a_store_that_was_moved_with_its_run(tmp_path, write_store, digits48, monkeypatch, before):
    monkeypatch.chdir(tmp_path)
    place = "candidates/digits-0/candidates"
    mine = write_store(tmp_path / "moved" / place, digits48, seed=1)
    write_store(tmp_path / "moved/runs/candidates", digits48, seed=2)  # of the same name
    path = tmp_path / "moved/runs/clsp_simclr-s0/clsp_simclr/id/record.json"
    fields = {"backbone": "resnet18", "epochs": 1, "seed": 0, "num_train": 48, "checkpoint": None}
    fields["config"] = {"synthetic": {"path": f"{before}/{place}"}}
    manifest = asdict(CandidateStore(mine).manifest)
    record = Record(method="clsp_simclr", dataset="digits", candidates=manifest, **fields)
    assert store_of(path, record).path == mine
    record.candidates["seed"] = 3
    with pytest.raises(ClspError, match=rf"{before}/{place} of clsp_simclr .* move the store"):
        store_of(path, record)
