"""What a GPU computes is what the CPU computes, within rounding; the host never waits for it.

Without a GPU the CPU is compared with itself: then these tests only show that they can run.
"""

import copy
import json
import os
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from clsp_plugin.candidates.store import CandidateStore
from clsp_plugin.candidates.third_view import ThirdView
from clsp_plugin.config.training import parse_cfg
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import load_images
from clsp_plugin.data.keyed_random import key_normal, key_uniform, keys_for
from clsp_plugin.diffusion.denoiser import build_unet, save_denoiser
from clsp_plugin.diffusion.drawer import Drawer, GenerationSettings
from clsp_plugin.diffusion.generation import generate_candidates
from clsp_plugin.diffusion.schedulers import LINEAR_BETAS
from clsp_plugin.diffusion.training import train_denoiser
from clsp_plugin.engine import pretrain as engine
from clsp_plugin.evaluation.features import Features, extract_features
from clsp_plugin.evaluation.knn import weighted_knn
from clsp_plugin.evaluation.linear import train_probe
from clsp_plugin.methods import METHODS
from clsp_plugin.methods.backbones import build_backbone
from clsp_plugin.methods.synthetic import SyntheticPositives
from clsp_plugin.records.record import Record

pytestmark = pytest.mark.gpu

# the device that is compared with the CPU
NAME = os.environ.get("CLSP_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = NAME == "cuda"
ACCELERATOR = "accelerator=gpu" if ON_GPU else "accelerator=cpu"
only_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
MEAN, STD = (0.5,) * 3, (0.25,) * 3
EVERYTHING = {
    "crop": True, "jitter_prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
    "hue": 0.1, "grayscale_prob": 0.2, "blur_prob": 0.5, "flip_prob": 0.5,
}  # fmt: skip
PIPELINES = {
    "bicubic": AugmentationConfig(crop_size=32, **EVERYTHING),
    "bilinear": AugmentationConfig(crop_size=24, **EVERYTHING, interpolation="bilinear"),
    # these two jump: a level on the edge between two may fall on either side
    "jumps": AugmentationConfig(crop_size=32, crop=True, solarize_prob=0.5, equalize_prob=0.5),
}
# Every method where there is a GPU; without one, the methods are tested elsewhere.
BASES = [name for name, cls in METHODS.items() if not issubclass(cls, SyntheticPositives)]
THIRD = ["clsp_simclr", "clsp_mocov2", "clsp_byol", "simclr_aug"]
NAMES = sorted({*BASES, *THIRD}) if ON_GPU else ["clsp_simclr", "mocov2plus"]


@pytest.fixture
def device():
    return torch.device(NAME)


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in float32, without the shorter mantissa of TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# These draw from the device's own generator: dropout, and permutations of negatives.
DRAWN_THERE = ("all4one", "mocov2_ft", "simclr_ft")


def uint8(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def close(here, there, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(there.cpu(), here, rtol=rtol, atol=atol)


def test_keyed_random_numbers(device):
    indexes = torch.arange(4096)
    keys, there = keys_for(12345, indexes), keys_for(12345, indexes.to(device))
    assert torch.equal(keys, there.cpu())
    assert torch.equal(key_uniform(keys, 34), key_uniform(there, 34).cpu())
    close(key_normal(keys, 33), key_normal(there, 33), atol=1e-6)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=only_gpu)])
@pytest.mark.parametrize("name", PIPELINES)
def test_augmentation(device, exact, name, compiled):
    images, keys = uint8(256, 32, 32, 3), keys_for(7, torch.arange(256))
    here = BatchAugmentation(PIPELINES[name], MEAN, STD)(images, keys)
    pipeline = BatchAugmentation(PIPELINES[name], MEAN, STD, compile=compiled)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiling the augmentation failed")
        there = pipeline(images.to(device), keys.to(device)).cpu()
    off = (here - there).abs() > 1e-3
    assert off.float().mean() < (0.01 if name == "jumps" else 1e-5)


def test_third_view_from_memory_and_from_disk(device, exact, store, digits48):
    pipeline = PIPELINES["bilinear"]
    indexes = torch.tensor([5, 0, 47, 21, 5])
    here = ThirdView(CandidateStore(store), BatchAugmentation(pipeline, MEAN, STD), 3)
    there = ThirdView(CandidateStore(store), BatchAugmentation(pipeline, MEAN, STD), 3).to(device)
    assert there.source.resident == ON_GPU
    on_disk = ThirdView(CandidateStore(store), BatchAugmentation(pipeline, MEAN, STD), 3)
    expected = here(indexes, 1, 2)
    close(expected, there(indexes.to(device), 1, 2), atol=1e-4)
    close(expected, on_disk(indexes.to(device), 1, 2), atol=1e-4)
    on_disk.begin(indexes, 1, device)
    close(expected, on_disk(indexes.to(device), 1, 2), atol=1e-4)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    settings = {"block_out_channels": [32, 64], "layers_per_block": 1,
                "attention_resolutions": [8]}  # fmt: skip
    return build_unet(16, settings).eval()


@pytest.mark.parametrize(
    "change",
    [{}, {"share_anchor": True}, {"sampler": "dpmpp", "eta": None},
     {"sampler": "ddpm", "eta": None}, pytest.param({"compile": True}, marks=only_gpu)],
    ids=str,
)  # fmt: skip
def test_candidates(device, exact, unet, change):
    images = uint8(4, 16, 16, 3)
    settings = {"num_candidates": 2, "steps": 5, "batch_size": 4, **change}

    def draw(name, **more):
        drawer = Drawer(
            images, copy.deepcopy(unet), LINEAR_BETAS,
            GenerationSettings(**{**settings, "device": name, **more}),
        )  # fmt: skip
        return torch.from_numpy(drawer.draw(0, 4, range(2))).int()

    here = draw("cpu", compile=False)
    off = (here - draw(NAME)).abs()
    assert off.max() <= 1  # a level on the edge between two
    assert (off > 0).float().mean() < 0.02
    if not change:
        for more in ({"precision": "bf16-mixed"}, {"channels_last": False}):
            off = (here - draw(NAME, **more)).abs().float()
            assert off.mean() < 3


def test_generation_continues_with_the_same_bytes(unet, tmp_path):
    """Drawn at once, and drawn in two parts: the store has the same bytes."""
    save_denoiser(unet, tmp_path / "denoiser")
    images = uint8(8, 16, 16, 3)
    cfg = {"num_candidates": 2, "steps": 3, "batch_size": 4, "shard_size": 4, "device": NAME}

    def generate(out):
        return generate_candidates(images, "00" * 16, tmp_path / "denoiser", out, cfg)

    assert generate(tmp_path / "whole")["candidates"] == 16
    generate(tmp_path / "again")
    (tmp_path / "again" / "shard-00001.npy").unlink()
    assert generate(tmp_path / "again")["candidates"] == 8
    whole, again = (CandidateStore(tmp_path / name) for name in ("whole", "again"))
    assert (whole.images(range(8)) == again.images(range(8))).all()


@only_gpu
def test_out_of_memory_halves_the_batch(unet):
    images = uint8(4096, 16, 16, 3)
    settings = GenerationSettings(num_candidates=2, steps=1, batch_size=8192, device=NAME)
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(2**30 / total)
        drawer = Drawer(images, unet, LINEAR_BETAS, settings)
        assert drawer.draw(0, 4096, range(2)).shape == (4096, 2, 16, 16, 3)
        assert drawer.batch_size < 8192
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture
def trained(tiny, write_store, tmp_path):
    """Losses of two epochs of a step each: every further step amplifies rounding."""
    settings = ("data.num_train=32", "optimizer.batch_size=32", "max_epochs=2", "precision=32")

    def train(name, *overrides):
        cfg = tiny(name, *settings, *overrides)
        if name.startswith("clsp_"):
            path = tmp_path / "candidates32"
            if not path.exists():
                write_store(path, load_images(parse_cfg(cfg, METHODS).data, "train"))
            cfg.synthetic = {"path": str(path)}
        record = Record.load(engine.pretrain(cfg).record)
        return [row["train_loss"] for row in record.curve]

    return train


@pytest.mark.parametrize("name", NAMES)
def test_methods(exact, trained, name):
    here = trained(name, "accelerator=cpu")
    there = trained(name, ACCELERATOR)
    if name not in DRAWN_THERE or not ON_GPU:
        assert there == pytest.approx(here, rel=2e-3, abs=1e-3)
    half = trained(name, ACCELERATOR, "precision=bf16-mixed")  # draws what `there` drew
    assert half[0] == pytest.approx(there[0], rel=0.05, abs=0.05)


def test_photographs(exact, tiny, tmp_path):
    """Their crops are made on the host, the rest of the views on the device."""
    generator = np.random.default_rng(0)
    for number in range(32):
        folder = tmp_path / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        blocks = Image.fromarray(generator.integers(0, 256, (5, 5, 3)).astype(np.uint8))
        blocks.resize((40 + number, 36)).save(folder / f"{number}.jpg")
    settings = (
        "data.dataset=custom", "data.image_size=null", f"data.train_path={tmp_path / 'train'}",
        f"data.cache={tmp_path / 'cache'}", "data.pack_size=32", "optimizer.batch_size=32",
        "precision=32",
    )  # fmt: skip
    here, there = (
        [row["train_loss"] for row in Record.load(engine.pretrain(
            tiny("simclr_aug", *settings, accelerator)).record).curve]
        for accelerator in ("accelerator=cpu", ACCELERATOR)
    )  # fmt: skip
    assert there == pytest.approx(here, rel=2e-3, abs=1e-3)


@only_gpu
def test_compiled_network(exact, trained):
    plain = trained("clsp_mocov2", ACCELERATOR)
    compiled = trained("clsp_mocov2", ACCELERATOR, "performance.compile_network=True")
    assert compiled == pytest.approx(plain, rel=2e-3)


class Waits(Callback):
    """Lets torch warn where the host waits for the GPU within a step, after the first."""

    def __init__(self):
        self.steps = 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps += 1
        # after an epoch its metrics are read
        torch.cuda.set_sync_debug_mode("default" if trainer.is_last_batch else "warn")


@only_gpu
@pytest.mark.parametrize("name", NAMES)
def test_the_host_never_waits_within_a_step(tiny, store, monkeypatch, name):
    waits, new = Waits(), engine.new_trainer
    given = [f"synthetic.path={store}"] if name.startswith("clsp_") else []

    def new_trainer(**keys):
        return new(**{**keys, "callbacks": [waits, *keys["callbacks"]]})

    monkeypatch.setattr(engine, "new_trainer", new_trainer)
    monkeypatch.setattr(engine.Finite, "every", 1000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            engine.pretrain(tiny(name, "max_epochs=1", ACCELERATOR, *given))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert waits.steps == 3
    waited = [w for w in told if "called a synchronizing" in str(w.message)]
    assert [f"{w.filename}:{w.lineno}" for w in waited] == []


def test_resume_is_exact(device, tiny, store, interrupt, monkeypatch):
    """On one device, a continued run has the weights of one that was not interrupted."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = ("max_epochs=3", ACCELERATOR, "deterministic=True", f"synthetic.path={store}")
    again = tiny("clsp_simclr", *settings, "auto_resume.enabled=True")
    try:
        interrupt(again, epoch=2)
        resumed = engine.pretrain(again)
        whole = engine.pretrain(tiny("clsp_simclr", *settings))
    finally:
        torch.use_deterministic_algorithms(False)
    assert whole.checkpoint != resumed.checkpoint
    first, second = (torch.load(run.checkpoint, weights_only=True) for run in (whole, resumed))
    for key, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][key]), key


def test_denoiser_training(device, exact, tmp_path):
    images = uint8(16, 16, 16, 3)
    cfg = {"block_out_channels": [32, 32], "layers_per_block": 1, "attention_resolutions": [],
           "max_epochs": 2, "batch_size": 16, "lr": 1e-4, "warmup_steps": 0,
           "dropout": 0.0}  # fmt: skip
    losses = {}
    for name in ("cpu", NAME):
        for precision in ("32-true", "bf16-mixed"):
            out = tmp_path / f"{name}-{precision}"
            accelerator = "gpu" if name == "cuda" else "cpu"
            train_denoiser(images, {**cfg, "accelerator": accelerator, "precision": precision}, out)
            losses[name, precision] = json.loads((out / "training.json").read_text())["losses"]
    assert losses[NAME, "32-true"] == pytest.approx(losses["cpu", "32-true"], rel=1e-3)
    assert losses[NAME, "bf16-mixed"] == pytest.approx(losses["cpu", "32-true"], rel=0.02)


def test_evaluation(device, exact):
    torch.manual_seed(0)
    network = {"name": "resnet18", "kwargs": {"channels": [8, 16, 16, 32]}, "stem": None}
    network, _ = build_backbone(network, "cifar10")
    images = ImageArray(uint8(100, 32, 32, 3), torch.arange(100) % 10, tuple("0123456789"), "noise")
    parts = [
        extract_features(network, images, mean=MEAN, std=STD, device=place, flip=True)
        for place in ("cpu", device)
    ]  # fmt: skip
    close(parts[0].feats, parts[1].feats, rtol=1e-3, atol=1e-3)
    features = torch.nn.functional.normalize(torch.randn(100, 32))
    on = [Features(features[None].to(place), images.targets.to(place)) for place in ("cpu", device)]
    scores = [weighted_knn(f.feats[0], f.targets, f.feats[0], f.targets, (1, 20)) for f in on]
    assert scores[0][20] == pytest.approx(scores[1][20], abs=1)
    probes = [train_probe(f, 10, (0.3, 1.0), epochs=5, batch_size=64) for f in on]
    close(probes[0].weights, probes[1].weights, rtol=1e-3, atol=1e-4)
