"""Images that lie on the disk stay there, whatever is made of them."""

import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from clsp_plugin.candidates.oracle import Oracle, write_oracle
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.objects import images_given
from clsp_plugin.data.packed.squares import MappedArray
from clsp_plugin.diffusion import verbs
from clsp_plugin.diffusion.denoiser import save_denoiser
from clsp_plugin.diffusion.drawer import Drawer
from clsp_plugin.evaluation.features import extract_features
from clsp_plugin.evaluation.similarity import label_agreement
from clsp_plugin.inspection.frechet import frechet_from
from clsp_plugin.system.arrays import map_npy, mapped_tensor
from clsp_plugin.system.c_library import c_function
from clsp_plugin.system.memory import keep_freed_memory

NUMBER, SIDE = 60_000, 64
NBYTES = NUMBER * SIDE * SIDE * 3
DATA = {"dataset": "custom", "train_path": None, "val_path": None}


class Enough(Exception):
    pass


class OneStep(Callback):
    def on_train_batch_end(self, *args):
        raise Enough


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Squares of 700 MB, in files that take no room."""
    folder = tmp_path_factory.mktemp("squares")
    for name, shape in (("squares", (NUMBER, SIDE, SIDE, 3)), ("digests", (NUMBER, 16))):
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
    images = mapped_tensor(map_npy(folder / "squares.npy", ""))
    targets = torch.arange(NUMBER) % 2
    return MappedArray(images, targets, ("cat", "dog"), "many/train", folder)


def anonymous():
    """Bytes of memory of this process that are no mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@contextmanager
def most(share, nbytes=NBYTES):
    """Fail if the block needs more memory at once than a share of the images, or of so much."""
    if (trim := c_function("malloc_trim")) is not None:
        trim(0)  # memory that earlier trainings kept (keep_freed_memory) would be taken unseen
    stop, found, before = threading.Event(), [], anonymous()

    def look():
        while not stop.is_set():
            found.append(anonymous() - before)
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert max(found) < share * nbytes, f"{max(found) / nbytes:.2f} of the images"


def test_the_check_sees_a_copy():
    keep_freed_memory(torch.device("cpu"))
    torch.ones(NBYTES, dtype=torch.uint8)  # kept when it is freed, as after a training

    def hold():
        _copy = torch.ones(NBYTES // 2, dtype=torch.uint8)
        time.sleep(0.1)  # it is looked for every 2 ms

    with pytest.raises(AssertionError, match="of the images"), most(0.3):
        hold()


def test_training(many, tmp_path):
    with images_given(many):
        for verb, own in (
            (verbs.denoiser, {"block_out_channels": [8, 8, 8], "layers_per_block": 1,
                              "attention_resolutions": []}),
            (verbs.autoencoder, {"block_out_channels": [4, 4], "blocks": 1, "held_out": 8}),
        ):  # fmt: skip
            cfg = {"data": DATA, "out": str(tmp_path / "out"), "batch_size": 4, "max_epochs": 1,
                   "accelerator": "cpu", **own}  # fmt: skip
            with most(0.3), pytest.raises(Enough):
                verb(OmegaConf.create(cfg), callbacks=[OneStep()])


def test_candidates(many, make_unet, tmp_path, monkeypatch):
    save_denoiser(make_unet(SIDE, attention_resolutions=[]), tmp_path / "denoiser")
    cfg = {"data": DATA, "out": str(tmp_path / "store"), "denoiser": str(tmp_path / "denoiser"),
           "num_candidates": 1, "steps": 2, "shard_size": 8, "batch_size": 8,
           "device": "cpu"}  # fmt: skip

    def enough(*given):
        raise Enough

    monkeypatch.setattr(StoreWriter, "write", enough)
    drawn = []
    monkeypatch.setattr(Drawer, "draw_each", lambda self, jobs, done: _some(self, jobs, drawn))
    with images_given(many), most(0.3), pytest.raises(Enough):
        verbs.generate(OmegaConf.create(cfg))
    assert set(drawn) == {(8, 1, SIDE, SIDE, 3)}
    with most(0.3), pytest.raises(Enough):
        write_oracle(many, {}, tmp_path / "oracle", Oracle("class", num_candidates=2))


def _some(drawer, jobs, drawn):
    for start, stop, candidates in jobs:
        shape = (stop - start, len(candidates), *drawer.images.shape[1:])
        drawn.append(shape)
        yield np.zeros(shape, np.uint8)


def test_inspection(many):
    def encode(images):
        return torch.stack([images[:, 0, 0, 0].float(), images[:, 1, 0, 0].float()], dim=1)

    candidates = torch.zeros(4, 2, SIDE, SIDE, 3, dtype=torch.uint8)
    with most(0.3):
        label_agreement(encode, many, candidates, range(4))


class Network(torch.nn.Module):
    num_features = 2

    def forward(self, images):
        return images[:, :2, 0, 0].float()


def test_frechet(many):
    parts = (many.images[part] for part in torch.arange(NUMBER).split(256))
    with most(0.3):
        partial(frechet_from(Network(), parts), many.images[:4])()


def test_features_take_little_more_than_themselves():
    pixels = torch.zeros(20_000, 4, 4, 3, dtype=torch.uint8)
    images = ImageArray(pixels, torch.arange(20_000) % 2, ("cat", "dog"), "many/train")
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4096))
    size = 4 * len(images) * 4096
    with most(1.3, size):
        found = extract_features(backbone, images, mean=[0.5] * 3, std=[0.25] * 3, flip=False)
    assert found.feats.shape == (1, 20_000, 4096)
