"""Train in two processes on gloo: ``python two_processes.py FOLDER``, started again by Lightning.

For every ``FOLDER/NAME.yaml`` the record's curve and the weights of the first epoch go to
``FOLDER/NAME.pt``. torch's synchronised batch normalisation needs GPUs, so here each layer gathers
the batch of all processes.
"""

import json
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.losses.distributed import gather, rank, world_size


def synchronised(plain):
    def forward(self, x):
        if not self.training or world_size() == 1:
            return plain(self, x)
        return plain(self, gather(x)).chunk(world_size())[rank()].clone()

    return forward


def results(finished):
    curve = json.loads(finished.record.read_text())["curve"]
    (first,) = finished.run_dir.glob("*ep=0.ckpt")
    return {"curve": curve, "state": torch.load(first, weights_only=True)["state_dict"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for layer in (nn.BatchNorm1d, nn.BatchNorm2d):
        layer.forward = synchronised(layer.forward)
    for file in sorted(Path(sys.argv[1]).glob("*.yaml")):
        finished = pretrain(OmegaConf.load(file))
        assert finished.checkpoint.is_file()  # whichever process asks
        if rank() == 0:
            torch.save(results(finished), file.with_suffix(".pt"))
