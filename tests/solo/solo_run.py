"""What the tests of this folder share."""

from pathlib import Path

import torch

PAGE = (Path(__file__).parents[2] / "docs/solo-learn.md").read_text()
# What solo-learn needs on a machine without a GPU, and what keeps a run short.
CPU = ["accelerator=cpu", "devices='1'", "strategy=auto", "precision=32"]
SHORT = ["max_epochs=1", "optimizer.batch_size=16", "data.num_workers=0", "++wandb.enabled=False"]


def states(folder, method):
    """The weights that a pre-training left."""
    (checkpoint,) = (Path(folder) / "trained" / method).glob("*/*.ckpt")
    return torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
