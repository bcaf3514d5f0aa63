"""Lightning's trainer as we use it: how it ends where it is stopped, and what it leaves."""

import os
import signal

import lightning.pytorch as pl
import pytest
import torch

from clsp_plugin.engine.trainer import new_trainer
from clsp_plugin.errors import ClspError
from tests.campaign import commands

LONG = ["data.num_train=48", "max_epochs=100000", "accelerator=cpu"]
DENOISER = ["denoiser", "block_out_channels=[8,8]", "checkpoint_every=1", "out=out", *LONG]
PRETRAIN = ["pretrain", "--config-name", "simclr", "data.num_val=20", "optimizer.batch_size=16",
            "backbone.kwargs.channels=[8,8,8,8]", "checkpoint.frequency=1", *LONG]  # fmt: skip


@pytest.fixture(scope="module")
def warm():
    commands.warm()


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [(DENOISER, signal.SIGTERM, 143), (DENOISER, signal.SIGINT, 130),
     (PRETRAIN, signal.SIGTERM, 143), (PRETRAIN, signal.SIGINT, 130)],
)  # fmt: skip
def test_a_training_that_is_stopped_says_so(tmp_path, warm, command, number, code):
    process = commands.start(command, tmp_path, tmp_path / "said")
    for _ in range(1800):
        if any(tmp_path.rglob("*.ckpt")) or not process.alive:
            break
        process.join(0.1)
    told = process.stop(number, 60)
    assert told.code == code, told.err
    assert told.err.endswith("clsp: stopped; the same command continues where it can.\n")
    assert not (tmp_path / "out").exists()


class Model(pl.LightningModule):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def configure_optimizers(self):
        return None


def test_a_checkpoint_appears_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))  # not by way of there
    trainer = new_trainer(logger=False, accelerator="cpu", devices=1)
    trainer.strategy.connect(Model())
    path = tmp_path / "runs" / "a.ckpt"
    trainer.save_checkpoint(path)
    before = path.read_bytes()
    other = path.parent / ".a.ckpt.1.2.tmp"  # of a process that may live: the lock decides
    other.touch()
    with torch.no_grad():
        trainer.lightning_module.weight += 1
    trainer.save_checkpoint(path)
    assert {file.name for file in path.parent.iterdir()} == {"a.ckpt", other.name}
    assert torch.load(path, weights_only=True)["state_dict"]["weight"] == 1

    monkeypatch.setattr(os, "fsync", lambda number: os.write(-1, b""))  # the disk refuses
    trainer.lightning_module.weight.data += 1
    with pytest.raises(OSError, match="Bad file") as refused:
        trainer.save_checkpoint(path)
    assert refused.value.filename == str(path)
    assert {file.name for file in path.parent.iterdir()} == {"a.ckpt", other.name}
    assert torch.load(path, weights_only=True)["state_dict"]["weight"] == 1
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("given", "message"),
    [({"devices": 0}, "devices=0 do not fit this machine: "),
     ({"devices": "many"}, "devices=many do not fit this machine: "),
     ({"accelerator": "abacus"}, "accelerator=abacus, devices=1 do not fit this machine: "),
     ({"strategy": "none"}, "devices=1, strategy=none do not fit this machine: ")],
)  # fmt: skip
def test_devices_that_are_not_there(given, message):
    with pytest.raises(ClspError, match=message):
        new_trainer(**{"accelerator": "cpu", "devices": 1, **given})
