"""Small things that many tests need."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from clsp_plugin.cli import compose
from clsp_plugin.data.images import load_images
from clsp_plugin.data.store import StoreManifest, StoreWriter

torch.set_num_threads(1)

TINY = (
    "data.num_train=48",
    "data.num_val=20",
    "backbone.kwargs.channels=[8,8,8,8]",
    "optimizer.batch_size=16",
    "method_kwargs.proj_hidden_dim=16",
    "method_kwargs.proj_output_dim=8",
    "max_epochs=2",
    "scheduler.warmup_epochs=1",
    "auto_resume.enabled=False",
    "checkpoint.frequency=1",
)
_FAMILY = {
    "mocov2plus": ("method_kwargs.queue_size=64",),
    "byol": ("method_kwargs.pred_hidden_dim=16",),
}


def _config_name(method: str) -> str:
    """The shipped configuration that a registry name is trained from."""
    base = method.removeprefix("clsp_").removesuffix("_aug")
    return "mocov2plus" if base == "mocov2" else base


@pytest.fixture
def tiny(tmp_path):
    """Make a configuration of any method that trains in a second: ``tiny(method, *overrides)``."""

    def make(method: str, *overrides: str):
        base = _config_name(method)
        cfg = compose(
            "pretrain",
            f"digits/{base}",
            [*TINY, *_FAMILY.get(base, ()), f"method={method}", f"name={method}",
             f"checkpoint.dir={tmp_path / 'trained'}", *overrides],
        )  # fmt: skip
        OmegaConf.set_struct(cfg, False)
        return cfg

    return make


def _write_store(path, array, num_candidates=3, seed=0, shard_size=20):
    """A store of random candidates for an image array."""
    height, width = array.size
    manifest = StoreManifest(
        num_images=len(array), num_candidates=num_candidates, height=height, width=width,
        fingerprint=array.fingerprint, dataset=array.name, denoiser="none", w=0.1,
        sampler="ddim", steps=100, eta=0.1, seed=seed, dtype="32-true", clip=False,
        share_anchor=False, shard_size=shard_size,
    )  # fmt: skip
    writer = StoreWriter(path, manifest, array.digests)
    generator = np.random.default_rng(seed)
    for shard, _, _ in writer.missing():
        writer.write(
            shard, generator.integers(0, 256, manifest.shard_shape(shard)).astype(np.uint8)
        )
    return path


@pytest.fixture
def write_store():
    """``write_store(path, array)``: a store of random candidates for an image array."""
    return _write_store


@pytest.fixture
def digits48():
    """The training images of the ``tiny`` configurations."""
    return load_images(
        {
            "dataset": "digits",
            "num_train": 48,
            "num_val": 20,
            "seed": 0,
            "fraction": -1,
            "image_size": 16,
        },
        "train",
    )


@pytest.fixture
def store(tmp_path, digits48):
    """A store of random candidates for the ``tiny`` configurations; its path."""
    return _write_store(tmp_path / "candidates", digits48)
