"""Training of the denoiser: noise prediction on uint8 images, exactly resumable.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020: the mean squared
error of the noise (their "simple" loss), with an exponential moving average of the weights.
"""

import contextlib
import dataclasses
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import diffusers
import lightning
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from clsp_plugin.candidates.condition import check_condition, condition_digest
from clsp_plugin.config.typed import settings_of
from clsp_plugin.data.image_array import pixels_sha256
from clsp_plugin.data.keyed_random import Purpose, derive_key
from clsp_plugin.data.loader import HostLoader, IndexBatches, index_loader, row_loader
from clsp_plugin.diffusion.autoencoder import Autoencoder, load_autoencoder
from clsp_plugin.diffusion.compiling import compile_blocks
from clsp_plugin.diffusion.denoiser import build_unet, check_absent, save_denoiser
from clsp_plugin.diffusion.latents import Latents
from clsp_plugin.diffusion.module import (
    _WEIGHTS,
    DenoiserModule,
    KeptModule,
    TrainingSettings,
)
from clsp_plugin.diffusion.sample_sheets import SampleSheets
from clsp_plugin.diffusion.sampling import autocast, to_float
from clsp_plugin.engine.loggers import NOTES, Run, attach_loggers, check_installed
from clsp_plugin.engine.progress import METRICS, Bar, History, MetricsFile, metrics_csv, quiet
from clsp_plugin.engine.trainer import Finite, fit, new_trainer
from clsp_plugin.engine.watching import Watching
from clsp_plugin.errors import ClspError
from clsp_plugin.records.checkpoint import read_checkpoint
from clsp_plugin.records.lock import one_training
from clsp_plugin.system.compiling import to_compile
from clsp_plugin.system.devices import fits
from clsp_plugin.system.files import write_text
from clsp_plugin.system.json_files import read_json
from clsp_plugin.system.memory import keep_freed_memory
from clsp_plugin.system.processes import device_of, is_first

__all__ = ["RECORD", "SETTINGS", "Loop", "carry_out", "once", "train_denoiser"]

# The file beside a denoiser's weights that says how they were trained.
RECORD = "training.json"
# The file in the folder of an unfinished training that says with which settings it runs.
SETTINGS = "settings.json"
# Settings that a resumed run may change, since they do not change what is learned.
_FREE = frozenset(
    {
        "checkpoint_every",
        "sample_every",
        "fid_images",
        "accelerator",
        "devices",
        "strategy",
        "compile",
        "logger",
    }
)


class _Data(LightningDataModule):
    """Training batches: image indexes, and the images, which lie on the device if they fit there.

    The batch size counts the images of all processes together, and is capped at the number of
    images. Of a latent denoiser the images are latents.

    Args:
        images: uint8 (N, H, W, 3).
        settings: the settings of the loop.
        latents: the latents of a latent denoiser.
        rows: int64 (M,), the images to train on, which then count from 0; None for all.
    """

    def __init__(
        self,
        images: torch.Tensor,
        settings: "Loop",
        latents: Latents | None = None,
        rows: torch.Tensor | None = None,
    ):
        super().__init__()
        self.images, self.settings, self.latents, self.rows = images, settings, latents, rows

    def prepare_data(self) -> None:  # called in one process
        if self.latents is not None:
            self.latents.write(self.trainer.strategy.root_device)

    def setup(self, stage: str) -> None:
        if self.latents is not None:
            self.images = self.latents.read()

    def train_dataloader(self) -> DataLoader | HostLoader:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batch_size = self.settings.batch_size
        if batch_size % world_size:
            raise ClspError(
                f"batch_size={batch_size} does not divide among {world_size} "
                f"processes; it counts the images of all of them."
            )
        number = len(self.images if self.rows is None else self.rows)
        each = min(batch_size, number) // world_size
        batches = IndexBatches(number, each, self.settings.seed, rank, world_size)
        device = self.trainer.strategy.root_device
        if not fits(self.images.nbytes, device):
            return row_loader(self.images, batches, device, self.rows)
        return index_loader(batches, device)

    def on_after_batch_transfer(
        self, batch: Any, dataloader_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(batch, torch.Tensor):  # the images came along
            return tuple(batch)
        self.images = self.images.to(batch.device)
        if self.rows is None:
            return batch, self.images[batch]
        self.rows = self.rows.to(batch.device)
        return batch, self.images[self.rows[batch]]


class _LastCheckpoint(Checkpoint):  # Lightning calls a Checkpoint after the module's own hook
    """Replaces one file every few epochs; a process killed at any time leaves a complete one."""

    def __init__(self, workspace: Path, identity: dict[str, Any], every: int):
        self.workspace, self.identity, self.every = workspace, identity, every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_text(self.workspace / SETTINGS, json.dumps(self.identity, indent=2))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.every and done != trainer.max_epochs:
            return
        trainer.save_checkpoint(self.workspace / "last.ckpt")


def _check_images(images: torch.Tensor) -> int:
    """Refuse images that are not square, or none at all; return their side in pixels."""
    assert images.dtype == torch.uint8
    assert images.ndim == 4
    assert images.shape[3] == 3
    if len(images) == 0:
        raise ClspError("There are no images to train a denoiser on.")
    height, width = images.shape[1:3]
    if height != width:
        raise ClspError(f"The images are {height}x{width}; a denoiser needs square ones.")
    return height


def _identity(
    images: torch.Tensor,
    settings: TrainingSettings,
    condition: torch.Tensor | None,
    autoencoder: Autoencoder | None,
    sha256: str | None,
) -> dict[str, Any]:
    """Return the settings and data that identify a training, as they are read back from JSON."""
    kept = {k: v for k, v in dataclasses.asdict(settings).items() if k not in _FREE}
    kept |= {"num_images": len(images), "images": sha256 or pixels_sha256(images)}
    if settings.middle == "sample":  # as in trainings from before there was another
        del kept["middle"], kept["middle_dropout"]
    if autoencoder is None:  # as in trainings from before there was one
        del kept["autoencoder"]
    else:  # wherever it is
        kept["autoencoder"] = autoencoder.hash
    if condition is None:
        del kept["condition_dropout"]
    else:
        kept["condition"] = condition_digest(condition)
    return json.loads(json.dumps(kept))


def _find_checkpoint(workspace: Path, identity: dict[str, Any]) -> Path | None:
    """Return the checkpoint to resume from, or None.

    Raises:
        ClspError: the unfinished training has other settings, or one of its files is damaged.
    """
    checkpoint = workspace / "last.ckpt"
    if not checkpoint.exists():
        return None
    try:
        advice = "nothing else knows what that training was of."
        before = read_json(
            workspace / SETTINGS, dict[str, Any], "the settings of a training", advice
        )
        read_checkpoint(checkpoint)
    except (ClspError, FileNotFoundError) as error:
        raise ClspError(
            f"The unfinished training in {workspace} cannot be continued, a file of it is damaged "
            f"or missing ({_reason(error)}); delete that folder to start anew, or choose another "
            f"out=."
        ) from error
    changed = [
        f"{name}={before.get(name)!r} (now {identity.get(name)!r})"
        for name in sorted(before.keys() | identity.keys())
        if before.get(name) != identity.get(name)
    ]
    if changed:
        raise ClspError(
            f"{workspace} holds an unfinished training with {', '.join(changed)}; use the same "
            f"settings to continue it, choose another out=, or delete it to start anew."
        )
    return checkpoint


def _reason(error: Exception) -> str:
    """Return an error's message without the advice that follows a semicolon."""
    return str(error).partition(";")[0]


def _make_module(
    image_size: int,
    settings: TrainingSettings,
    condition: torch.Tensor | None = None,
    autoencoder: Autoencoder | None = None,
) -> DenoiserModule:
    keys: dict[str, Any] = {"of_view": settings.middle == "view"}
    if autoencoder is not None:
        image_size = autoencoder.latent_size(image_size, image_size)[0]
        keys["channels"] = autoencoder.channels
    if condition is not None and keys["of_view"]:
        raise ClspError("middle=view goes without a condition; leave one of the two out.")
    if condition is not None and condition.ndim == 2:
        keys["num_features"] = condition.shape[1]
    elif condition is not None:
        keys["num_classes"] = int(condition.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(settings.seed, Purpose.TRAINING, _WEIGHTS))
        return DenoiserModule(build_unet(image_size, settings, **keys), settings, condition)


class Loop(Protocol):
    """The settings of a training that its loop reads, see ``TrainingSettings``."""

    @property
    def seed(self) -> int: ...
    @property
    def max_epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def gradient_clip(self) -> float: ...
    @property
    def precision(self) -> Any: ...
    @property
    def accelerator(self) -> str: ...
    @property
    def devices(self) -> Any: ...
    @property
    def strategy(self) -> str: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def logger(self) -> Any: ...


def _make_trainer(
    settings: Loop,
    workspace: Path,
    identity: dict[str, Any],
    history: History,
    callbacks: Sequence[Callback],
    whose: str,
) -> Trainer:
    advice = f"a smaller lr (it is {settings.lr:g})"
    if settings.precision != "32-true":
        advice = f"precision=32-true or {advice}"
    finite = Finite(whose, f"use {advice}")
    callbacks = [
        finite,
        Watching(history),
        *callbacks,
        history,
        MetricsFile(history, workspace),
        _LastCheckpoint(workspace, identity, settings.checkpoint_every),
    ]
    if not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(Bar("train the denoiser", metrics=("loss",)))
    return new_trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=settings.strategy,
        precision=settings.precision,
        max_epochs=settings.max_epochs,
        gradient_clip_val=settings.gradient_clip or None,
        callbacks=callbacks,
        default_root_dir=workspace,
        logger=False,
        enable_checkpointing=True,
        use_distributed_sampler=False,
    )


def _finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of ``training.json`` if this very training was finished before."""
    try:
        record = read_json(out / RECORD, dict[str, Any], "the record of a training", "delete it.")
    except (ClspError, FileNotFoundError, NotADirectoryError):  # something else is at that place
        return None
    return record if record.get("settings") == identity else None


def record_of(module: KeptModule, identity: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the content of ``training.json`` for a finished training."""
    device = module.device
    cpu = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "settings": identity,
        "losses": module.losses,
        "epochs": len(module.losses),
        "steps": steps,
        "seconds": module.seconds,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "diffusers": diffusers.__version__,
        },
    }


def train_denoiser(
    images: torch.Tensor,
    cfg: TrainingSettings | Mapping[str, Any] | None,
    out: str | Path,
    *,
    condition: torch.Tensor | None = None,
    callbacks: Sequence[Callback] | None = None,
    loggers: Sequence[Logger] = (),
    score: Callable[[torch.Tensor], float] | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    """Train a denoiser and write it as a pipeline directory.

    While it runs, checkpoints are kept beside ``out`` in ``<out>.training``. A run that was stopped
    continues from there when it is started again with the same settings; one that was finished is
    not repeated.

    Args:
        images: uint8 (N, H, H, 3).
        cfg: keys of :class:`TrainingSettings`.
        out: the directory to write; ``training.json`` in it has the settings, the mean loss of
            each epoch, the seconds and the versions.
        condition: makes the denoiser a conditional one: int64 (N,), classes from 0, or float32
            (N, D), features of the images.
        callbacks: further Lightning callbacks; a progress bar among them replaces the default.
        loggers: further Lightning loggers, besides those that ``logger`` names.
        score: function of samples, uint8 (M, H, W, 3), such as the FID; computed with each sheet
            of samples.
        sha256: the images' ``ImageArray.sha256``, where it is known.

    Returns:
        The content of ``training.json``.

    Raises:
        ClspError: a setting is not valid, ``out`` holds something else, an unfinished training
            has other settings or a damaged file, the loss is not finite, the devices are not
            available, a logger cannot be opened, another process runs the same training, or a
            callback stopped it early.
    """
    settings = settings_of(TrainingSettings, cfg)
    check_installed(settings.logger)
    out = Path(out)
    size, autoencoder = _given(images, settings, condition)
    identity = _identity(images, settings, condition, autoencoder, sha256)

    def prepare() -> Callable[[Path], dict[str, Any]]:
        module = _make_module(size, settings, condition, autoencoder)
        return lambda workspace: _train(
            images,
            module,
            settings,
            identity,
            workspace,
            out,
            callbacks,
            loggers,
            score,
            autoencoder,
        )

    return once(out, identity, prepare)


def _given(
    images: torch.Tensor, settings: TrainingSettings, condition: torch.Tensor | None
) -> tuple[int, Autoencoder | None]:
    """Check what a training is given; return the side of the images, and the autoencoder."""
    size = _check_images(images)
    if condition is not None:
        check_condition(condition, len(images))
    source = settings.autoencoder
    return size, None if source is None else load_autoencoder(source)


_TIMED = 3  # optimiser steps that an estimate is made from


def estimate_training(
    images: torch.Tensor,
    cfg: TrainingSettings | Mapping[str, Any] | None,
    condition: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Time a few steps of a training, on one device, and estimate it; nothing is written.

    Takes the arguments of :func:`train_denoiser`.

    Returns:
        ``steps``, their number in the whole training; ``seconds``, the expected time of all;
        ``encoding``, the seconds of these that the encoding of the images takes; ``weights``, the
        number of the network's weights; and ``device``.

    Raises:
        ClspError: as :func:`train_denoiser`.
    """
    settings = settings_of(TrainingSettings, cfg)
    size, autoencoder = _given(images, settings, condition)
    device = device_of("cpu" if settings.accelerator == "cpu" else "auto")
    module = _make_module(size, settings, condition, autoencoder).to(device)
    number = min(settings.batch_size, len(images))
    indexes = torch.arange(number, device=device)
    batch, encoding = images[:number].to(device), 0.0
    if autoencoder is not None:
        batch, encoding = _timed_encoding(autoencoder.to(device), batch)
        encoding *= len(images) * (2 if settings.horizontal_flip else 1)
    steps = settings.max_epochs * (len(images) // number)
    seconds = _seconds_a_step(module, (indexes, batch)) * steps
    return {
        "steps": steps,
        "seconds": seconds + encoding,
        "encoding": encoding,
        "weights": sum(p.numel() for p in module.unet.parameters()),
        "device": str(device),
    }


def _timed_encoding(autoencoder: Autoencoder, images: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return latents for a batch, and the seconds that the encoding of one image takes."""
    some = to_float(images[:8])
    for _ in range(2):  # the first is a warm-up
        began = time.perf_counter()
        latents = autoencoder.encode(some)
        latents.sum().item()
        seconds = (time.perf_counter() - began) / len(some)
    rows = torch.arange(len(images), device=images.device) % len(some)
    return latents.clone()[rows][:, None], seconds


def _seconds_a_step(module: DenoiserModule, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Measure the seconds of an optimiser step."""
    adam, device = module.configure_optimizers()["optimizer"], batch[0].device
    for count in (1, _TIMED):  # the first is a warm-up
        began = time.perf_counter()
        for number in range(count):
            with autocast(device, module.settings.precision):
                loss = module.training_step(batch, number)
            adam.zero_grad()
            loss.backward()
            adam.step()
        loss.item()
        seconds = (time.perf_counter() - began) / count
    return seconds


def once(
    out: Path, identity: dict[str, Any], prepare: Callable[[], Callable[[Path], dict[str, Any]]]
) -> dict[str, Any]:
    """Do a training that is not finished yet, with its files beside ``out`` meanwhile.

    Args:
        out: the directory that is written.
        identity: what identifies the training.
        prepare: called before anything is written. What it returns trains in the folder that it is
            given, from the checkpoint there is, and returns the record of the training.

    Returns:
        The record.
    """
    workspace = out.with_name(f"{out.name}.training")
    finished = _finished(out, identity)
    if finished is not None:
        shutil.rmtree(workspace, ignore_errors=True)  # left by a process killed at the very end
        return finished
    check_absent(out)
    train = prepare()
    workspace.mkdir(parents=True, exist_ok=True)
    try:
        with one_training(workspace, "wait for it, or choose another out="):
            try:
                return train(workspace)
            finally:
                _leave(workspace)
    finally:
        with contextlib.suppress(OSError):  # if not empty, it is kept to continue the training
            workspace.rmdir()


def _leave(workspace: Path) -> None:
    """Delete what is of no use without a checkpoint, if there is none."""
    if is_first() and not (workspace / "last.ckpt").exists():
        for name in (SETTINGS, METRICS, NOTES):
            (workspace / name).unlink(missing_ok=True)


def _latents(
    images: torch.Tensor,
    autoencoder: Autoencoder,
    workspace: Path,
    identity: Mapping[str, Any],
    settings: TrainingSettings,
) -> Latents:
    mirrored = settings.horizontal_flip > 0
    content = json.dumps([identity["images"], identity["autoencoder"], mirrored])
    name = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Latents(images, autoencoder, workspace, name, mirrored)


def _train(
    images: torch.Tensor,
    module: DenoiserModule,
    settings: TrainingSettings,
    identity: dict[str, Any],
    workspace: Path,
    out: Path,
    callbacks: Sequence[Callback] | None,
    loggers: Sequence[Logger],
    score: Callable[[torch.Tensor], float] | None,
    autoencoder: Autoencoder | None,
) -> dict[str, Any]:
    """Train in a workspace, from its checkpoint if it has one; see :func:`train_denoiser`."""
    history, callbacks = History(), list(callbacks or ())
    if settings.sample_every:
        folder = out.with_name(f"{out.name}.samples")
        callbacks.append(
            SampleSheets(
                folder,
                settings.sample_every,
                settings.prediction,
                score=score,
                num_scored=settings.fid_images,
                history=history,
                autoencoder=autoencoder,
            )
        )
    latents = None
    if autoencoder is not None:
        latents = _latents(images, autoencoder, workspace, identity, settings)

    def prepare(device: torch.device) -> None:
        if to_compile(settings.compile, device, "compile"):
            compile_blocks(module.unet)

    data = _Data(images, settings, latents)
    trainer = carry_out(
        module,
        data,
        settings,
        identity,
        workspace,
        out,
        history,
        callbacks,
        "the denoiser",
        prepare,
        loggers,
    )
    record = record_of(module, identity, trainer.global_step)
    if trainer.is_global_zero:
        files = {RECORD: json.dumps(record, indent=2), METRICS: metrics_csv(history)}
        if autoencoder is not None:
            autoencoder.to(torch.device("cpu"))
        save_denoiser(
            module.ema,
            out,
            prediction=settings.prediction,
            autoencoder=autoencoder,
            files=files,
        )
        shutil.rmtree(workspace, ignore_errors=True)  # everything needed is in out
    trainer.strategy.barrier()
    return record


def carry_out(
    module: KeptModule,
    data: LightningDataModule,
    settings: Loop,
    identity: dict[str, Any],
    workspace: Path,
    out: Path,
    history: History,
    callbacks: Sequence[Callback],
    whose: str,
    prepare: Callable[[torch.device], None] = lambda device: None,
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """Train a module, from the checkpoint in its workspace if there is one.

    Args:
        module: what is trained.
        data: its batches.
        settings: the settings of the loop.
        identity: what identifies the training.
        workspace: folder of its files.
        out: the directory that will be written, for names.
        history: receives the numbers of every epoch.
        callbacks: further callbacks.
        whose: what is trained, for messages.
        prepare: called with the device before the first step.
        loggers: further loggers.

    Returns:
        The trainer, after the last epoch.

    Raises:
        ClspError: see :func:`train_denoiser`.
    """
    checkpoint = _find_checkpoint(workspace, identity)
    with quiet():
        trainer = _make_trainer(settings, workspace, identity, history, callbacks, whose)
        run = Run(workspace, out.name, identity, out.with_name(f"{out.name}.tensorboard"))
        if checkpoint is not None:
            run.read()
        attach_loggers(trainer, history, settings.logger, run, loggers)
        device = trainer.strategy.root_device
        keep_freed_memory(device)
        prepare(device)
        fit(trainer, module, data, checkpoint)
    if len(module.losses) < settings.max_epochs:  # a callback may stop the training early
        raise ClspError(
            f"The training stopped after {len(module.losses)} of {settings.max_epochs} epochs; "
            f"start it again with the same settings to continue."
        )
    return trainer
