"""Two processes train as one does with twice the batch, whatever a method gathers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from two_processes import results

from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.images import load_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.synthetic import SyntheticPositives

BASES = {name for name, cls in METHODS.items() if not issubclass(cls, SyntheticPositives)}
# In these each process draws or whitens for its own images.
OWN = {
    "all4one": "dropout of its transformer",
    "cl_gan": "latent vectors",
    "mocov2_ft": "weights of the transformation",
    "simclr_ft": "weights of the transformation",
    "vibcreg": "IterNorm of a process's own batch, as in solo-learn",
    "wmse": "whitening of parts of a process's own batch, as in solo-learn",
}
NAMES = sorted({*BASES, "clsp_simclr", "clsp_mocov2", "clsp_byol", "simclr_aug"} - OWN.keys())


def test_two_processes_train_as_one_with_the_double_batch(tiny, tmp_path, write_store):
    """Equal weights after a step, and equal losses in the next, which sees queues and centres.

    Every further step amplifies rounding, in networks this small to a hundredth in two steps.
    """
    folder, store = tmp_path / "two", tmp_path / "candidates"
    folder.mkdir()
    alone = {}
    for name in NAMES:
        # validation images that do not fill the batches of all processes; each is to count once
        cfg = tiny(name, "data.num_train=32", "data.num_val=45", "max_epochs=2", "devices=1",
                   "accelerator=cpu", "optimizer.batch_size=32", "scheduler.warmup_epochs=0",
                   "checkpoint.keep_prev=True")  # fmt: skip
        if name.startswith("clsp_"):
            if not store.exists():
                write_store(store, load_images(parse_cfg(cfg, METHODS).data, "train"))
            cfg.synthetic = {"path": str(store), "weight": 1.0}
        alone[name] = results(pretrain(cfg))
        cfg.merge_with({"devices": 2, "strategy": "ddp", "name": f"{name}-two"})
        cfg.optimizer.batch_size = 16
        OmegaConf.save(cfg, folder / f"{name}.yaml")
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], cwd=tmp_path, capture_output=True, text=True,
        timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, one in alone.items():
        two = torch.load(folder / f"{name}.pt", weights_only=True)
        for first, second in zip(one["curve"], two["curve"], strict=True):
            for key in (key for key in first if "loss" in key or key == "train_alignment"):
                assert second[key] == pytest.approx(first[key], rel=1e-3, abs=1e-4), (name, key)
            for curve in (first, second):  # percents of 45 images
                hits = curve["val_acc5"] * 45 / 100
                assert hits == pytest.approx(round(hits), abs=1e-3), name
        for key, value in one["state"].items():
            if not key.startswith(("queue", "memory")):  # these are in the order of the processes
                other = two["state"][key]
                torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")
