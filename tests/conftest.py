"""Small things that many tests need."""

import contextlib
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import settings
from omegaconf import OmegaConf

from clsp_plugin.candidates.manifest import StoreManifest
from clsp_plugin.candidates.writer import StoreWriter
from clsp_plugin.config.compose import compose
from clsp_plugin.config.shipped import shipped
from clsp_plugin.data.images import load_images
from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.engine.progress import History

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # The first gradient of a process decides whether autograd keeps threads for devices besides the
    # CPU, with which it cannot be forked; what compiles registers devices that are not there.
    torch.ones(1, requires_grad=True).backward()
settings.register_profile("tests", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("tests")

TINY = (
    "data.num_train=48",
    "data.num_val=20",
    "backbone.kwargs.channels=[8,8,8,8]",
    "optimizer.batch_size=16",
    "max_epochs=2",
    "scheduler.warmup_epochs=1",
    "auto_resume.enabled=False",
    "checkpoint.frequency=1",
)
# Sizes among a method's settings, brought down where its shipped configuration has them.
SMALL = {
    "proj_hidden_dim": 16,
    "proj_output_dim": 8,
    "pred_hidden_dim": 16,
    "queue_size": 64,
    "whitening_size": 16,
    "num_prototypes": 12,
    "latent_dim": 8,
    "gan_width": 4,
    "num_generated": 8,
    "mix_start_epoch": 0,
}


def _shipped(method: str):
    """The shipped configuration that a registry name is trained from, if it has one."""
    base = method.removeprefix("clsp_").removesuffix("_aug")
    base = "mocov2plus" if base == "mocov2" else base
    folder = shipped() / "pretrain/digits"
    found = (name for name in (base, method) if (folder / f"{name}.yaml").is_file())
    name = next(found, None)
    return None if name is None else f"digits/{name}"


@pytest.fixture
def tiny(tmp_path):
    """Make a configuration of any method that trains in a second: ``tiny(method, *overrides)``.

    It is the shipped one of the offline data set, shrunk. A method without one gets SimCLR's, and
    its own default settings.
    """

    def make(method: str, *overrides: str):
        name = _shipped(method)
        plain = ["~method_kwargs"] if name is None else []
        name = name or "digits/simclr"
        settings = compose("pretrain", name, plain).get("method_kwargs") or {}
        shrunk = [
            f"method_kwargs.{key}={[SMALL[key]] * 2 if OmegaConf.is_list(value) else SMALL[key]}"
            for key, value in settings.items()
            if key in SMALL
        ]
        cfg = compose(
            "pretrain",
            name,
            [*TINY, *plain, *shrunk, f"method={method}", f"name={method}",
             f"checkpoint.dir={tmp_path / 'trained'}", *overrides],
        )  # fmt: skip
        OmegaConf.set_struct(cfg, False)
        return cfg

    return make


class _Stopped(Exception):
    pass


@pytest.fixture
def interrupt(monkeypatch):
    """Start a pre-training that dies when an epoch begins: ``interrupt(cfg, epoch=1)``."""

    def run(cfg, epoch):
        plain = History.on_train_epoch_start

        def dying(self, trainer, module):
            if trainer.current_epoch == epoch:
                raise _Stopped
            plain(self, trainer, module)

        with monkeypatch.context() as patch:
            patch.setattr(History, "on_train_epoch_start", dying)
            with pytest.raises(_Stopped):
                pretrain(cfg)

    return run


def _gathered(rank, world, folder, worker):
    torch.set_num_threads(1)
    meeting = (folder / "meeting").as_uri()
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    worker(rank, world, folder)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def gathering():
    """Run ``worker(rank, world, folder)`` in two processes: ``gathering(worker, folder)``.

    They meet in the folder over gloo. Forked from this one, they need not import torch again; but
    where there is a GPU a process cannot be forked after its first gradient.
    """

    def run(worker, folder):
        how = "spawn" if torch.cuda.is_available() else "fork"
        mp.start_processes(_gathered, args=(2, folder, worker), nprocs=2, start_method=how)

    return run


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


@pytest.fixture(autouse=True)
def ctrl_c():
    """Let Ctrl-C reach the test's processes: a shell ignores it for what runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@pytest.fixture
def full_disk():
    """A context in which no file may grow beyond so many bytes: ``with full_disk(5000): ..``."""

    @contextlib.contextmanager
    def limited(size):
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def no_file_to_open(tmp_path):
    """A context in which this process may open no further file."""

    @contextlib.contextmanager
    def exhausted():
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            with contextlib.suppress(OSError):
                while True:
                    opened.append(os.open(tmp_path, os.O_RDONLY))
            yield
        finally:
            for number in opened:
                os.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return exhausted
