"""One step of a denoiser's training: what is noised, what is predicted, and the loss."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterator
from typing import Any, Optional

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from lightning.pytorch import LightningModule
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clsp_plugin.config.loggers import logger_names
from clsp_plugin.config.rules import SEED, ranged
from clsp_plugin.data.keyed_random import (
    Purpose,
    derive_key,
    key_normal,
    key_uniform,
    keys_for,
    seed_generators,
)
from clsp_plugin.diffusion.denoiser import UNetSettings
from clsp_plugin.diffusion.interpolation import decode, encode, known, unknown, viewed_middle
from clsp_plugin.diffusion.precision import precision_name
from clsp_plugin.diffusion.sampling import to_float
from clsp_plugin.diffusion.schedulers import LINEAR_BETAS, PREDICTIONS
from clsp_plugin.diffusion.views import other_view
from clsp_plugin.errors import ClspError
from clsp_plugin.methods.epoch_means import EpochMeans

__all__ = ["DenoiserModule", "KeptModule", "TrainingSettings"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

# Random streams of a training. They are part of what a seed means: never renumber.
_WEIGHTS, _DROPOUT, _CHOICES, _NOISE, _RENOISED, _RENOISE, _UNCONDITIONED, _VIEW = range(8)


@dataclasses.dataclass(frozen=True)
class TrainingSettings(UNetSettings):
    """How a denoiser is trained; the defaults are the paper's on CIFAR.

    Attributes:
        seed: seed of the weights, the order, the steps, the noise, the flips and the dropout.
        max_epochs: number of passes over the images.
        batch_size: images per optimiser step, over all processes together. Images that do not fill
            a whole batch are left out of that epoch.
        lr: learning rate of Adam.
        warmup_steps: optimiser steps of linear warm-up.
        gradient_clip: largest norm of the gradient; 0 means no clipping.
        prediction: what the network predicts: the noise (``epsilon``, the paper's), or the
            velocity ``sqrt(a) noise - sqrt(1 - a) image`` (``v_prediction``, Salimans and Ho,
            ICLR 2022), which gives a better denoiser after a short training.
        renoise_middle: probability that the middle feature of an image is computed from the same
            image under other noise, as that of a candidate is from its anchor. The paper's 0
            trains for denoising only; after a short training the skip connections then decide
            everything, and candidates do not show what their anchors show. Above 0, training takes
            up to one and a half times as long.
        middle: what the middle feature is computed from: ``sample``, the noisy image itself, as in
            the paper; or ``view``, another view of the image, without noise (see
            :func:`~clsp_plugin.diffusion.views.other_view`), so that candidates take from their
            anchor only what it shares with its views. Candidates are then drawn with ``w=0``.
        middle_dropout: with ``middle=view``, probability that an image gets no middle feature
            (zeros), which makes guidance by the anchor possible.
        condition_dropout: probability that a conditional denoiser does not get the condition of an
            image, which makes guidance possible; 0.1 in the paper's second recipe.
        ema_decay: decay of the moving average of the weights; the average is what is saved.
        ema_warmup: whether the decay at step s, counted from 0, is at most (1 + s) / (10 + s), so
            that the first weights do not dominate after a short run.
        horizontal_flip: probability of mirroring an image. Set it to 0 for images with writing.
        precision: Lightning's name: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        compile: whether to compile the blocks of the network. It changes the rounding of sums, and
            which features dropout drops. ``renoise_middle`` must be 0.
        accelerator: accelerator of Lightning's trainer.
        devices: devices of Lightning's trainer.
        strategy: strategy of Lightning's trainer.
        checkpoint_every: epochs between checkpoints.
        sample_every: epochs between sheets of samples in ``<out>.samples``; 0 draws none.
        fid_images: number of samples drawn for the Frechet distance, if one is asked for.
        logger: where the numbers of every epoch go; see ``config.loggers.logger_names``.
        autoencoder: for a latent denoiser, the directory of an autoencoder or its name on the hub,
            see :func:`~clsp_plugin.diffusion.autoencoder.load_autoencoder`; None for a denoiser of
            pixels. ``attention_resolutions`` are then counted in places of the latents.
    """

    seed: int = ranged(0, SEED)
    max_epochs: int = ranged(2000, low=1)
    batch_size: int = ranged(128, low=1)
    lr: float = ranged(2e-4, above=0)
    warmup_steps: int = ranged(5000, low=0)
    gradient_clip: float = ranged(1.0, low=0)
    prediction: str = ranged("epsilon", choices=PREDICTIONS)
    renoise_middle: float = ranged(0.0, low=0, high=1)
    middle: str = ranged("sample", choices=("sample", "view"))
    middle_dropout: float = ranged(0.1, low=0, high=1)
    condition_dropout: float = ranged(0.1, low=0, high=1)
    ema_decay: float = ranged(0.9999, low=0, high=1)
    ema_warmup: bool = True
    horizontal_flip: float = ranged(0.5, low=0, high=1)
    precision: Any = "32-true"
    compile: bool = False
    accelerator: str = "auto"
    devices: Any = 1
    strategy: str = "auto"
    checkpoint_every: int = ranged(50, low=1)
    sample_every: int = ranged(0, low=0)
    fid_images: int = ranged(1000, low=2)
    logger: Any = "csv"
    autoencoder: Optional[str] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", precision_name(self.precision))
        object.__setattr__(self, "logger", logger_names(self.logger))
        if self.compile and self.renoise_middle:
            raise ClspError(
                "compile=True makes a graph for each size of a batch, and with renoise_middle "
                "above 0 there are many; leave one of the two out."
            )
        if self.middle == "view" and self.renoise_middle:
            raise ClspError(
                f"renoise_middle={self.renoise_middle:g} is for middle=sample; with middle=view "
                f"the middle feature is always that of another view. Set renoise_middle=0."
            )
        if self.middle == "view" and self.autoencoder is not None:
            raise ClspError(
                "middle=view makes views of pixels, and a denoiser with an autoencoder sees "
                "latents; leave one of the two out."
            )

    def ema_decay_at(self, step: int) -> float:
        """Return the decay of the moving average at optimiser step ``step``, counted from 0."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay


class KeptModule(EpochMeans, LightningModule):
    """A module that keeps the mean loss of each epoch and the time of training, over all runs.

    Attributes:
        losses: mean loss of each epoch so far.
        seconds: training time so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.seconds = 0.0

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._start = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.losses.append(float(self.trainer.callback_metrics["loss"]))
        self.seconds += time.perf_counter() - self._start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {"losses": list(self.losses), "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["progress"]["losses"])
        self.seconds = checkpoint["progress"]["seconds"]


class DenoiserModule(KeptModule):
    """A denoiser in training.

    Random numbers are keyed by (seed, epoch, image index), those of dropout by (seed, epoch, batch,
    process). So a resumed run equals an uninterrupted one, to the last bit on the CPU.

    Args:
        unet: the network.
        settings: see :class:`TrainingSettings`.
        condition: condition of every image for a conditional network: int64 (N,), classes, or
            float (N, D), features; else None.

    Attributes:
        unet: the network in training.
        ema: the moving average of its weights; part of every checkpoint.
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
        alphas = DDPMScheduler(**LINEAR_BETAS).alphas_cumprod
        self.register_buffer("signal", alphas.sqrt(), persistent=False)
        self.register_buffer("sigma", (1.0 - alphas).sqrt(), persistent=False)
        self.register_buffer("condition", condition, persistent=False)

    def _draw(
        self, indexes: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return a batch's images (B, 3, H, W), some flipped, noise (same shape) and steps (B,).

        The latents of mirrored images are no mirrored latents, so both are there.
        """
        if images.dtype == torch.uint8:
            x = to_float(images)
            mirrored = x.flip(-1)
        else:
            x, mirrored = images[:, 0].float(), images[:, -1].float()
        choices, noises = (
            derive_key(self.settings.seed, Purpose.TRAINING, stream, self.current_epoch)
            for stream in (_CHOICES, _NOISE)
        )
        u = key_uniform(keys_for(choices, indexes), 2)
        noise = key_normal(keys_for(noises, indexes), x[0].numel())
        t = (u[:, 0] * len(self.signal)).long()
        flip = (u[:, 1] < self.settings.horizontal_flip)[:, None, None, None]
        return torch.where(flip, mirrored, x), noise.view_as(x), t

    def _noisy(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, sigma = (v[t, None, None, None] for v in (self.signal, self.sigma))
        return signal * x + sigma * noise

    def _given(self, indexes: torch.Tensor) -> torch.Tensor | None:
        """Return the network's input for the images' conditions, randomly dropped, or None."""
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
        """Return the network's prediction; some middle features are computed from other noise."""
        x_t, given = self._noisy(x, noise, t), self._given(indexes)
        if self.settings.middle == "view":
            _, skips, emb = encode(self.unet, x_t, t, given)
            return decode(self.unet, self._viewed(x, indexes), skips, emb)
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

    def _viewed(self, x: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
        """Return middle features of other views of the images, some of them set to zero."""
        stream = Purpose.TRAINING, _VIEW, self.current_epoch
        keys = keys_for(derive_key(self.settings.seed, *stream), indexes)
        h = viewed_middle(self.unet, other_view(x, keys))
        dropped = key_uniform(keys, 1)[:, 0] < self.settings.middle_dropout
        return h.masked_fill(dropped[:, None, None, None], 0.0)

    @contextlib.contextmanager
    def _dropout_seed(self, batch_idx: int) -> Iterator[None]:
        """Seed dropout within the block, and restore the global random generators after it."""
        place = (_DROPOUT, self.current_epoch, batch_idx, self.global_rank)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            key = derive_key(self.settings.seed, Purpose.TRAINING, *place)
            seed_generators(key, self.device)
            yield

    def training_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            batch: image indexes, int64 (B,), and images, uint8 (B, H, W, 3); or their latents,
                float (B, 2, C, h, w), with those of the mirrored images.
            batch_idx: number of the batch in its epoch, from 0.
        """
        x, noise, t = self._draw(*batch)
        target = noise
        if self.settings.prediction == "v_prediction":
            target = self._noisy(noise, -x, t)  # signal * noise - sigma * x
        with self._dropout_seed(batch_idx):
            estimate = self._estimate(x, noise, t, batch[0])
        loss = F.mse_loss(estimate.float(), target)
        self.log_epoch(loss=loss)
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
        """Step, then update the moving average; ``global_step`` does not count this step yet."""
        super().optimizer_step(*args, **kwargs)
        average = get_ema_multi_avg_fn(self.settings.ema_decay_at(self.global_step))
        average(list(self.ema.parameters()), list(self.unet.parameters()), self.global_step)

    def watched(self) -> dict[str, float]:
        return {"ema_decay": self.settings.ema_decay_at(self.global_step - 1)}
