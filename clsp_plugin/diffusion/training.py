"""Training of the denoiser: noise prediction on uint8 images, exactly resumable.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020: the mean squared
error of the noise (their "simple" loss), with an exponential moving average of the weights.
"""

import contextlib
import copy
import dataclasses
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import lightning
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar, TQDMProgressBar
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from clsp_plugin.data.condition import check_condition, condition_digest
from clsp_plugin.data.files import write_text
from clsp_plugin.data.json_files import read_json
from clsp_plugin.data.loader import IndexBatches, index_loader
from clsp_plugin.data.random import Purpose, derive_key, key_normal, key_uniform, keys_for
from clsp_plugin.diffusion.denoiser import (
    LINEAR_BETAS,
    UNetSettings,
    build_unet,
    check_absent,
    save_denoiser,
)
from clsp_plugin.diffusion.interpolation import decode, encode, known, unknown
from clsp_plugin.diffusion.samples import SampleSheets
from clsp_plugin.diffusion.sampling import PREDICTIONS, to_float
from clsp_plugin.diffusion.settings import precision_name, read_settings, setting
from clsp_plugin.engine.checkpoint import read_checkpoint
from clsp_plugin.engine.lock import alone
from clsp_plugin.engine.progress import quiet
from clsp_plugin.engine.trainer import Finite, fit, new_trainer
from clsp_plugin.errors import ClspError
from clsp_plugin.memory import keep_freed_memory

__all__ = ["RECORD", "DenoiserModule", "TrainingSettings", "train_denoiser"]

# The file beside a denoiser's weights that says how they were trained.
RECORD = "training.json"

# Streams of a training; part of what a seed means, never renumber.
_WEIGHTS, _DROPOUT, _CHOICES, _NOISE, _RENOISED, _RENOISE, _UNCONDITIONED = range(7)

# Settings that a resumed run may change, since they do not change what is learned.
_FREE = frozenset(
    {"checkpoint_every", "sample_every", "fid_images", "accelerator", "devices", "strategy"}
)


@dataclasses.dataclass(frozen=True)
class TrainingSettings(UNetSettings):
    """How a denoiser is trained; the defaults are the paper's on CIFAR.

    Attributes:
        seed: of the weights, the order, the steps, the noise, the flips and the dropout.
        max_epochs: passes over the images.
        batch_size: images an optimiser step, over all processes together. The images left over
            by whole batches wait for another epoch.
        lr: learning rate of Adam.
        warmup_steps: optimiser steps of linear warm-up.
        gradient_clip: largest norm of the gradient; 0 clips nothing.
        prediction: what the network's output is: the noise (``epsilon``, the paper's), or the
            velocity ``sqrt(a) noise - sqrt(1 - a) image`` (``v_prediction``, Salimans and Ho,
            ICLR 2022), with which a short training comes further.
        renoise_middle: probability that the middle feature of an image is computed from the same
            image under other noise, as a candidate's is from its anchor. The paper's 0 trains the
            denoiser alone; after a short training the skip connections then decide everything, and
            candidates do not show what their anchors do. Training takes up to a half longer.
        condition_dropout: probability that a conditional denoiser is not told the condition of an
            image, so that it can be guided; the paper's second recipe has 0.1.
        ema_decay: of the moving average of the weights, which is what is saved.
        ema_warmup: whether the decay of the 0-based step s is at most (1 + s) / (10 + s), so that
            short runs do not keep their first weights.
        horizontal_flip: probability of mirroring an image. Set it to 0 for images with writing.
        precision: Lightning's name: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        accelerator: Lightning's.
        devices: Lightning's.
        strategy: Lightning's.
        checkpoint_every: epochs between checkpoints.
        sample_every: epochs between sheets of samples in ``<out>.samples``; 0 draws none.
        fid_images: samples drawn for a Frechet distance where one is asked for.
    """

    seed: int = setting(0, int, low=0, high=2**32 - 1)
    max_epochs: int = setting(2000, int, low=1)
    batch_size: int = setting(128, int, low=1)
    lr: float = setting(2e-4, float, above=0.0)
    warmup_steps: int = setting(5000, int, low=0)
    gradient_clip: float = setting(1.0, float, low=0.0)
    prediction: str = setting("epsilon", str, choices=PREDICTIONS)
    renoise_middle: float = setting(0.0, float, low=0.0, high=1.0)
    condition_dropout: float = setting(0.1, float, low=0.0, high=1.0)
    ema_decay: float = setting(0.9999, float, low=0.0, high=1.0)
    ema_warmup: bool = setting(True, bool)
    horizontal_flip: float = setting(0.5, float, low=0.0, high=1.0)
    precision: str | int = setting("32-true", None)
    accelerator: str = setting("auto", str)
    devices: int | str | Sequence[int] = setting(1, None)
    strategy: str = setting("auto", str)
    checkpoint_every: int = setting(50, int, low=1)
    sample_every: int = setting(0, int, low=0)
    fid_images: int = setting(1000, int, low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "precision", precision_name(self.precision))

    def ema_decay_at(self, step: int) -> float:
        """Decay of the moving average after the optimiser's 0-based step."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay


class DenoiserModule(LightningModule):
    """A denoiser in training.

    Every random number but dropout's is keyed by (seed, epoch, image index), dropout by (seed,
    epoch, batch, process): a resumed run equals an uninterrupted one, to the last bit on the CPU.

    Args:
        unet: the network.
        settings: see :class:`TrainingSettings`.
        condition: of a conditional network, for every image: int64 (N,), or float (N, D).

    Attributes:
        unet: the network in training.
        ema: the moving average of its weights; part of every checkpoint.
        losses: mean loss of each epoch so far.
        seconds: training time so far, over all runs.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        settings: TrainingSettings,
        condition: torch.Tensor | None = None,
    ):
        super().__init__()
        self.settings = settings
        self.unet = unet
        self.ema = copy.deepcopy(unet).requires_grad_(False)
        self.losses: list[float] = []
        self.seconds = 0.0
        alphas = DDPMScheduler(**LINEAR_BETAS).alphas_cumprod
        self.register_buffer("signal", alphas.sqrt(), persistent=False)
        self.register_buffer("sigma", (1.0 - alphas).sqrt(), persistent=False)
        self.register_buffer("condition", condition, persistent=False)

    def _draw(
        self, indexes: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clean images (B, 3, H, W), noise of that shape and steps (B,) of a batch."""
        x = to_float(images)
        choices, noises = (
            derive_key(self.settings.seed, Purpose.TRAINING, stream, self.current_epoch)
            for stream in (_CHOICES, _NOISE)
        )
        u = key_uniform(keys_for(choices, indexes), 2)
        noise = key_normal(keys_for(noises, indexes), x[0].numel())
        t = (u[:, 0] * len(self.signal)).long()
        flip = (u[:, 1] < self.settings.horizontal_flip)[:, None, None, None]
        return torch.where(flip, x.flip(-1), x), noise.view_as(x), t

    def _noisy(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, sigma = (v[t, None, None, None] for v in (self.signal, self.sigma))
        return signal * x + sigma * noise

    def _given(self, indexes: torch.Tensor) -> torch.Tensor | None:
        """What a conditional network is told of images: of some, nothing."""
        if self.condition is None:
            return None
        condition = self.condition[indexes]
        stream = Purpose.TRAINING, _UNCONDITIONED, self.current_epoch
        u = key_uniform(keys_for(derive_key(self.settings.seed, *stream), indexes), 1)
        dropped = u < self.settings.condition_dropout
        dropped = dropped if condition.ndim == 2 else dropped[:, 0]
        return torch.where(dropped, unknown(condition), known(condition))

    def _estimate(
        self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, indexes: torch.Tensor
    ) -> torch.Tensor:
        """What the network predicts; some images take their middle feature from other noise."""
        x_t, given = self._noisy(x, noise, t), self._given(indexes)
        if self.settings.renoise_middle == 0.0:
            return self.unet(x_t, t, given).sample
        choices, noises = (
            derive_key(self.settings.seed, Purpose.TRAINING, stream, self.current_epoch)
            for stream in (_RENOISED, _RENOISE)
        )
        u = key_uniform(keys_for(choices, indexes), 1)[:, 0]
        h, skips, emb = encode(self.unet, x_t, t, given)
        rows = torch.nonzero(u < self.settings.renoise_middle)[:, 0]
        if len(rows):
            fresh = key_normal(keys_for(noises, indexes[rows]), x[0].numel()).view_as(x[rows])
            own = None if given is None else given[rows]
            other = encode(self.unet, self._noisy(x[rows], fresh, t[rows]), t[rows], own)[0]
            h = h.index_copy(0, rows, other)
        return decode(self.unet, h, skips, emb)

    @contextlib.contextmanager
    def _dropout_seed(self, batch_idx: int) -> Iterator[None]:
        """Seed dropout by name, and leave the global generators as they were."""
        place = (_DROPOUT, self.current_epoch, batch_idx, self.global_rank)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_key(self.settings.seed, Purpose.TRAINING, *place))
            yield

    def training_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int
    ) -> torch.Tensor:
        """Loss of a batch.

        Args:
            batch: image indexes, int64 (B,), and images, uint8 (B, H, W, 3).
            batch_idx: number of the batch in its epoch.
        """
        x, noise, t = self._draw(*batch)
        target = noise
        if self.settings.prediction == "v_prediction":
            target = self._noisy(noise, -x, t)  # signal * noise - sigma * x
        with self._dropout_seed(batch_idx):
            estimate = self._estimate(x, noise, t, batch[0])
        loss = F.mse_loss(estimate.float(), target)
        self._loss_sum += loss.detach()
        self._batches += 1
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam with a linear warm-up, stepped every batch."""
        warmup = self.settings.warmup_steps
        # under mixed precision Lightning does not clip the gradients of a fused optimiser, which
        # may unscale them itself
        fused = self.settings.precision == "32-true"
        adam = torch.optim.Adam(self.unet.parameters(), lr=self.settings.lr, fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: min(1.0, (step + 1) / warmup) if warmup else 1.0
        )
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average. ``global_step`` counts the steps completed before."""
        super().optimizer_step(*args, **kwargs)
        average = get_ema_multi_avg_fn(self.settings.ema_decay_at(self.global_step))
        average(list(self.ema.parameters()), list(self.unet.parameters()), self.global_step)

    def on_train_epoch_start(self) -> None:
        self._loss_sum = torch.zeros((), device=self.device)
        self._batches = 0
        self._start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        mean = self.trainer.strategy.reduce(self._loss_sum / self._batches, reduce_op="mean")
        self.losses.append(float(mean))
        self.seconds += time.perf_counter() - self._start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {"losses": list(self.losses), "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["progress"]["losses"])
        self.seconds = checkpoint["progress"]["seconds"]


class _Data(LightningDataModule):
    """Batches of indexes, and the images from the training device's memory.

    The batch size is of all processes together, and no larger than the data set.
    """

    def __init__(self, images: torch.Tensor, settings: TrainingSettings):
        super().__init__()
        self.images, self.settings = images, settings

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batch_size = self.settings.batch_size
        if batch_size % world_size:
            raise ClspError(
                f"batch_size={batch_size} does not divide among {world_size} "
                f"processes; it counts the images of all of them."
            )
        each = min(batch_size, len(self.images)) // world_size
        return index_loader(
            IndexBatches(len(self.images), each, self.settings.seed, rank, world_size)
        )

    def on_after_batch_transfer(
        self, indexes: torch.Tensor, dataloader_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.images = self.images.to(indexes.device)
        return indexes, self.images[indexes]


class _LastCheckpoint(Checkpoint):  # which has its turn after the module
    """Replaces one file every few epochs, so that a kill at any time leaves a whole one."""

    def __init__(self, workspace: Path, identity: dict[str, Any], every: int):
        self.workspace, self.identity, self.every = workspace, identity, every

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.every and done != trainer.max_epochs:
            return
        if trainer.is_global_zero:  # with the first checkpoint: without one they say nothing
            write_text(self.workspace / "settings.json", json.dumps(self.identity, indent=2))
        trainer.save_checkpoint(self.workspace / "last.ckpt")


def _check_images(images: torch.Tensor) -> int:
    """Height and width of the images."""
    assert images.dtype == torch.uint8
    assert images.ndim == 4
    assert images.shape[3] == 3
    if len(images) == 0:
        raise ClspError("There are no images to train a denoiser on.")
    height, width = images.shape[1:3]
    if height != width:
        raise ClspError(f"The images are {height}x{width}; a denoiser needs square ones.")
    return height


def images_digest(images: torch.Tensor) -> str:
    """Which images a denoiser was trained on: a SHA-256 of their pixels in their order."""
    return hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()


def _identity(
    images: torch.Tensor, settings: TrainingSettings, condition: torch.Tensor | None
) -> dict[str, Any]:
    """What makes two trainings the same one, as JSON would give it back."""
    kept = {k: v for k, v in dataclasses.asdict(settings).items() if k not in _FREE}
    kept |= {"num_images": len(images), "images": images_digest(images)}
    if condition is None:
        del kept["condition_dropout"]
    else:
        kept["condition"] = condition_digest(condition)
    return json.loads(json.dumps(kept))


def _find_checkpoint(workspace: Path, identity: dict[str, Any]) -> Path | None:
    """The checkpoint to resume from, if there is one of this very training."""
    checkpoint = workspace / "last.ckpt"
    if not checkpoint.exists():
        return None
    try:
        advice = "nothing else knows what that training was of."
        before = read_json(
            workspace / "settings.json", dict[str, Any], "the settings of a training", advice
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
    """What is wrong, without the advice that a sentence of ours ends with."""
    return str(error).partition(";")[0]


def _make_module(
    image_size: int, settings: TrainingSettings, condition: torch.Tensor | None = None
) -> DenoiserModule:
    keys = {}
    if condition is not None and condition.ndim == 2:
        keys["num_features"] = condition.shape[1]
    elif condition is not None:
        keys["num_classes"] = int(condition.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(settings.seed, Purpose.TRAINING, _WEIGHTS))
        return DenoiserModule(build_unet(image_size, settings, **keys), settings, condition)


def _make_trainer(
    settings: TrainingSettings,
    workspace: Path,
    identity: dict[str, Any],
    callbacks: Sequence[Callback],
) -> Trainer:
    finite = Finite(
        "the denoiser", f"use precision=32-true or a smaller lr (it is {settings.lr:g})"
    )
    callbacks = [
        finite,
        *callbacks,
        _LastCheckpoint(workspace, identity, settings.checkpoint_every),
    ]
    if not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks.append(TQDMProgressBar())
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
    """What ``training.json`` says, if this very training was finished before."""
    try:
        record = read_json(out / RECORD, dict[str, Any], "the record of a training", "delete it.")
    except (ClspError, FileNotFoundError, NotADirectoryError):  # something else is at that place
        return None
    return record if record.get("settings") == identity else None


def _record(module: DenoiserModule, identity: dict[str, Any], steps: int) -> dict[str, Any]:
    """What ``training.json`` says of a finished training."""
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
    score: Callable[[torch.Tensor], float] | None = None,
) -> dict[str, Any]:
    """Train a denoiser and write it as a pipeline directory.

    While it runs, checkpoints are kept beside ``out`` in ``<out>.training``; a run that was
    stopped continues from there when it is started again with the same settings, and one that was
    finished is left as it is.

    Args:
        images: uint8 (N, H, H, 3).
        cfg: keys of :class:`TrainingSettings`.
        out: the directory to write; ``training.json`` in it has the settings, the mean loss of
            each epoch, the seconds and the versions.
        condition: makes the denoiser a conditional one: int64 (N,), classes from 0, or float32
            (N, D), features of the images.
        callbacks: further Lightning callbacks; a progress bar among them replaces the default.
        score: of samples, uint8 (M, H, W, 3), such as the FID; computed beside each sheet of them.

    Returns:
        What ``training.json`` says.

    Raises:
        ClspError: a setting is not valid, ``out`` holds something else, an unfinished training
            has other settings or a file that is damaged, the loss is not finite, the devices do
            not fit this machine, another process is at it, or a callback ended it.
    """
    settings = read_settings(TrainingSettings, cfg)
    out = Path(out)
    size = _check_images(images)
    if condition is not None:
        check_condition(condition, len(images))
    identity = _identity(images, settings, condition)
    workspace = out.with_name(f"{out.name}.training")
    finished = _finished(out, identity)
    if finished is not None:
        shutil.rmtree(workspace, ignore_errors=True)  # of a process that was killed at the very end
        return finished
    check_absent(out)
    module = _make_module(size, settings, condition)
    workspace.mkdir(parents=True, exist_ok=True)
    try:
        with alone(workspace, "wait for it, or choose another out="):
            return _train(images, module, settings, identity, workspace, out, callbacks, score)
    finally:
        with contextlib.suppress(OSError):  # not empty: it can be continued
            workspace.rmdir()


def _train(
    images: torch.Tensor,
    module: DenoiserModule,
    settings: TrainingSettings,
    identity: dict[str, Any],
    workspace: Path,
    out: Path,
    callbacks: Sequence[Callback] | None,
    score: Callable[[torch.Tensor], float] | None,
) -> dict[str, Any]:
    """Train in a workspace, on from its checkpoint if it has one; see :func:`train_denoiser`."""
    checkpoint = _find_checkpoint(workspace, identity)
    with quiet():
        callbacks = list(callbacks or ())
        if settings.sample_every:
            folder = out.with_name(f"{out.name}.samples")
            keys = {"score": score, "num_scored": settings.fid_images}
            callbacks.append(
                SampleSheets(folder, settings.sample_every, settings.prediction, **keys)
            )
        trainer = _make_trainer(settings, workspace, identity, callbacks)
        keep_freed_memory(trainer.strategy.root_device)
        fit(trainer, module, _Data(images, settings), checkpoint)
    if len(module.losses) < settings.max_epochs:  # a callback may end it
        raise ClspError(
            f"The training stopped after {len(module.losses)} of {settings.max_epochs} epochs; "
            f"start it again with the same settings to continue."
        )
    record = _record(module, identity, trainer.global_step)
    if trainer.is_global_zero:
        files = {RECORD: json.dumps(record, indent=2)}
        save_denoiser(module.ema, out, prediction=settings.prediction, files=files)
        shutil.rmtree(workspace, ignore_errors=True)  # all of it is in out
    trainer.strategy.barrier()
    return record
