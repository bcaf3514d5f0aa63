"""What a run was made from is found again where its folder was moved."""

import io
import shutil
from dataclasses import asdict
from pathlib import Path

import datasets
import pytest
from PIL import Image

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.errors import ClspError
from clsp_plugin.records.belonging import images_of, store_of
from clsp_plugin.records.record import Record

_FILE = io.BytesIO()
Image.new("RGB", (8, 8)).save(_FILE, "PNG")
PNG = {"bytes": _FILE.getvalue(), "path": None}


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


@pytest.mark.parametrize("named", ["shards/train-{000..001}.tar", "shards/*.tar", "saved@train"])
def test_images_are_found_from_another_folder(tmp_path, monkeypatch, named):
    shutil.copytree(Path(__file__).parents[1] / "data/shards", tmp_path / "moved/shards")
    made = datasets.Dataset.from_dict(
        {"image": [PNG] * 5, "label": [0] * 5},
        features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"])),
    )
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "moved/saved")
    fields = {"backbone": "resnet18", "epochs": 1, "seed": 0, "num_train": 5, "checkpoint": None}
    data = {"dataset": "custom", "train_path": named, "image_size": 8}
    record = Record(method="simclr", dataset="custom", config={"data": data}, **fields)
    monkeypatch.chdir(tmp_path)
    assert len(images_of(tmp_path / "moved/runs/simclr/id/record.json", record, "train")) == 5
    with pytest.raises(ClspError, match=r"(does not exist|no files)"):
        images_of(tmp_path / "elsewhere/record.json", record, "train")
