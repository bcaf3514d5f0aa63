"""Training of a small autoencoder, for machines that cannot fetch one.

It is diffusers' ``AutoencoderTiny``, which begins as a picture made small and large again, trained
for the mean absolute error of pixels and of the differences of neighbouring pixels (for edges),
without a perceptual or an adversarial loss: what it decodes is softer than what the large
autoencoders of the hub decode.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from lightning.pytorch.callbacks import Callback
from torch import nn

from clsp_plugin.config.loggers import logger_names
from clsp_plugin.config.rules import SEED, ranged
from clsp_plugin.config.typed import settings_of
from clsp_plugin.data.image_array import pixels_sha256
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_uniform, keys_for
from clsp_plugin.diffusion.autoencoder import Autoencoder
from clsp_plugin.diffusion.folders import made_whole
from clsp_plugin.diffusion.module import _CHOICES, _WEIGHTS, KeptModule
from clsp_plugin.diffusion.precision import precision_name
from clsp_plugin.diffusion.sampling import to_float, to_uint8
from clsp_plugin.diffusion.training import RECORD, _Data, carry_out, once, record_of
from clsp_plugin.engine.loggers import check_installed
from clsp_plugin.engine.progress import METRICS, History, metrics_csv
from clsp_plugin.errors import ClspError

__all__ = ["AutoencoderModule", "AutoencoderSettings", "psnr", "train_autoencoder"]

# ruff: noqa: UP045  OmegaConf reads Optional[...] on every Python that we support

_COLOURS = 3  # channels that carry the colours of an untrained network
_BATCH = 64  # images that are encoded at once after the training
_WEIGHED = 1024  # training images that the scale of the latents is computed from
# Settings that a resumed run may change, since they do not change what is learned.
_FREE = ("checkpoint_every", "accelerator", "devices", "strategy", "logger")


@dataclasses.dataclass(frozen=True)
class AutoencoderSettings:
    """How an autoencoder is trained.

    Attributes:
        block_out_channels: channels at each resolution, equally many at all; each resolution is
            half of the one before, so that three make a place of 4x4 pixels.
        blocks: residual blocks per resolution.
        latent_channels: channels of the latents.
        crop: side in pixels of the random squares that it is trained on; None takes whole images.
        edges: weight of the error of differences of neighbouring pixels.
        latent_weight: weight of the mean square of the latents, which keeps them within the range
            that the decoder tells apart (about -3 to 3).
        held_out: images that are not trained on, for the PSNR; at most a tenth of all.
        seed: seed of the weights, the order, the crops and the flips.
        max_epochs: number of passes over the images.
        batch_size: images per optimiser step, over all processes together.
        lr: the learning rate of Adam, after the warm-up; it then falls to 0 as a cosine.
        warmup_steps: optimiser steps of linear warm-up.
        gradient_clip: largest norm of the gradient; 0 means no clipping.
        horizontal_flip: probability of mirroring an image.
        precision: Lightning's name: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        accelerator: accelerator of Lightning's trainer.
        devices: devices of Lightning's trainer.
        strategy: strategy of Lightning's trainer.
        checkpoint_every: epochs between checkpoints.
        logger: where the numbers of every epoch go; see ``config.loggers.logger_names``.
    """

    block_out_channels: tuple[int, ...] = ranged((64, 64, 64, 64), low=1)
    blocks: int = ranged(2, low=1)
    latent_channels: int = ranged(4, low=1)
    crop: Optional[int] = ranged(None, low=1)
    edges: float = ranged(0.5, low=0)
    latent_weight: float = ranged(1e-3, low=0)
    held_out: int = ranged(256, low=1)
    seed: int = ranged(0, SEED)
    max_epochs: int = ranged(20, low=1)
    batch_size: int = ranged(32, low=1)
    lr: float = ranged(5e-4, above=0)
    warmup_steps: int = ranged(100, low=0)
    gradient_clip: float = ranged(1.0, low=0)
    horizontal_flip: float = ranged(0.5, low=0, high=1)
    precision: Any = "32-true"
    accelerator: str = "auto"
    devices: Any = 1
    strategy: str = "auto"
    checkpoint_every: int = ranged(1, low=1)
    logger: Any = "csv"

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", precision_name(self.precision))
        object.__setattr__(self, "logger", logger_names(self.logger))
        if not self.block_out_channels:
            raise ClspError("block_out_channels is an empty list; give the channels of each block.")
        if len(set(self.block_out_channels)) > 1:
            raise ClspError(
                f"block_out_channels={list(self.block_out_channels)} differ, and diffusers' "
                f"AutoencoderTiny has as many channels at every resolution; give one number "
                f"{len(self.block_out_channels)} times."
            )

    @property
    def factor(self) -> int:
        """Pixels of a place of the latents, in height and in width."""
        return 2 ** (len(self.block_out_channels) - 1)


def _network(settings: AutoencoderSettings) -> AutoencoderTiny:
    widths, levels = settings.block_out_channels, len(settings.block_out_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(settings.seed, Purpose.TRAINING, _WEIGHTS))
        network = AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths[::-1],
            num_encoder_blocks=(settings.blocks,) * levels,
            num_decoder_blocks=(settings.blocks,) * levels,
            latent_channels=settings.latent_channels,
        )
    if min(settings.latent_channels, *widths) >= _COLOURS:
        _carry_colours(network)
    return network


def _carry_colours(network: AutoencoderTiny) -> None:
    """Let an untrained network make a picture small, as its first latents, and large again.

    From random weights alone a short training finds the brightness of every place, and no colours.
    The first three channels of every layer are the image's, in its own range of 0 to 1; the others
    stay random, and come to the decoded image through what the last layer learns.
    """
    centre, smooth = torch.zeros(3, 3), torch.tensor([0.25, 0.5, 0.25])
    centre[1, 1] = 1.0
    smooth = smooth[:, None] * smooth
    for layers in (network.encoder.layers, network.decoder.layers):
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        for layer in convolutions[1:-1]:  # each halves or doubles the size
            _carry(layer, smooth)
        for layer in layers:
            if isinstance(layer, AutoencoderTinyBlock):  # which adds to what it is given
                _carry(layer.conv[-1], torch.zeros(3, 3))
    _carry(network.encoder.layers[0], centre)
    # latents are signed, within -1 and 1
    _carry(network.encoder.layers[-1], 2 * centre, -1.0)
    _carry(network.decoder.layers[0], centre / 2, 0.5)
    _carry(network.decoder.layers[-1], centre)


@torch.no_grad()
def _carry(layer: nn.Conv2d, kernel: torch.Tensor, bias: float = 0.0) -> None:
    """Let a layer make each of the first three channels of the same one, by a kernel (3, 3)."""
    layer.weight[:_COLOURS] = 0.0
    for channel in range(_COLOURS):
        layer.weight[channel, channel] = kernel
    if layer.bias is not None:
        layer.bias[:_COLOURS] = bias


def _differences(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


class AutoencoderModule(KeptModule):
    """An autoencoder in training; random numbers are keyed by (seed, epoch, image index).

    Args:
        settings: see :class:`AutoencoderSettings`.
        steps: number of optimiser steps of the whole training.
    """

    def __init__(self, settings: AutoencoderSettings, steps: int):
        super().__init__()
        self.settings, self.steps = settings, steps
        self.network = _network(settings)

    def _draw(self, indexes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return a batch's images, cropped and some of them flipped: (B, 3, crop, crop)."""
        x = to_float(images)
        choices = derive_key(self.settings.seed, Purpose.TRAINING, _CHOICES, self.current_epoch)
        u = key_uniform(keys_for(choices, indexes), 3)
        flip = (u[:, 0] < self.settings.horizontal_flip)[:, None, None, None]
        x = torch.where(flip, x.flip(-1), x)
        side = self.settings.crop
        if side is None or side >= x.shape[2]:
            return x
        places = torch.arange(side, device=x.device)
        top, left = (
            (u[:, axis] * (x.shape[axis + 1] - side + 1)).long()[:, None] + places
            for axis in (1, 2)
        )
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        return x.permute(0, 2, 3, 1)[rows, top[:, :, None], left[:, None]].permute(0, 3, 1, 2)

    def training_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            batch: image indexes, int64 (B,), and images, uint8 (B, H, W, 3).
            batch_idx: number of the batch in its epoch, from 0.
        """
        x, settings = self._draw(*batch).contiguous(), self.settings
        latents = self.network.encode(x).latents
        y = self.network.decode(latents).sample.float()
        loss = error = F.l1_loss(y, x)
        for ours, theirs in zip(_differences(y), _differences(x), strict=True):
            loss = loss + settings.edges * F.l1_loss(ours, theirs)
        loss = loss + settings.latent_weight * latents.float().square().mean()
        self.log_epoch(loss=loss, l1=error)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam with a linear warm-up and a cosine, stepped every batch."""
        warmup = self.settings.warmup_steps

        def rate(step: int) -> float:
            rest = (step + 1 - warmup) / max(1, self.steps - warmup)
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, rest))))
            return min(1.0, (step + 1) / warmup) * cosine if warmup else cosine

        adam = torch.optim.Adam(self.network.parameters(), lr=self.settings.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _split(number: int, settings: AutoencoderSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indexes of the images to train on and of those held out."""
    held = min(settings.held_out, number // 10)
    if held == 0:
        raise ClspError(
            f"There are {number} images, and an autoencoder needs at least 10: a tenth of them is "
            f"held out."
        )
    order = keys_for(
        derive_key(settings.seed, Purpose.TRAINING, _CHOICES), torch.arange(number)
    ).argsort()
    return order[held:].sort().values, order[:held].sort().values


def psnr(autoencoder: Autoencoder, images: torch.Tensor) -> float:
    """Return the mean peak signal-to-noise ratio of images that were encoded and decoded, in dB.

    Args:
        autoencoder: the autoencoder.
        images: uint8 (N, H, W, 3).
    """
    device, found = next(autoencoder.network.parameters()).device, []
    for part in images.split(_BATCH):
        again = to_uint8(autoencoder.decode(autoencoder.encode(to_float(part.to(device))))).cpu()
        squares = (again.double() - part.double()).square().flatten(1).mean(1)
        found.append(10 * torch.log10(255**2 / squares.clamp(min=1e-2)))
    return float(torch.cat(found).mean())


def _scale(network: AutoencoderTiny, images: torch.Tensor) -> float:
    """Return the factor that gives the latents of images a standard deviation of 1."""
    device, autoencoder = next(network.parameters()).device, Autoencoder(network)
    parts = [autoencoder.encode(to_float(part.to(device))).cpu() for part in images.split(_BATCH)]
    return round(1 / max(1e-6, float(torch.cat(parts).double().std())), 5)


def _check(images: torch.Tensor, settings: AutoencoderSettings) -> None:
    for side in images.shape[1:3]:
        if side % settings.factor:
            raise ClspError(
                f"The images are {images.shape[1]}x{images.shape[2]}, and block_out_channels="
                f"{list(settings.block_out_channels)} needs a multiple of {settings.factor}; "
                f"resize them (data.image_size=) or give fewer blocks."
            )
    if settings.crop is not None and settings.crop % settings.factor:
        raise ClspError(f"crop={settings.crop} is no multiple of {settings.factor} pixels.")


def train_autoencoder(
    images: torch.Tensor,
    cfg: AutoencoderSettings | Mapping[str, Any] | None,
    out: str | Path,
    *,
    callbacks: Sequence[Callback] | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    """Train an autoencoder and write it in diffusers' format.

    It continues and finishes as :func:`~clsp_plugin.diffusion.training.train_denoiser` does.

    Args:
        images: uint8 (N, H, W, 3).
        cfg: keys of :class:`AutoencoderSettings`.
        out: the directory to write.
        callbacks: further Lightning callbacks; a progress bar among them replaces the default.
        sha256: the images' ``ImageArray.sha256``, where it is known.

    Returns:
        The content of ``training.json``: as of a denoiser, and ``psnr``, the mean over the images
        held out in dB.

    Raises:
        ClspError: as :func:`train_denoiser`; or the images are too few, or cannot be halved often
            enough.
    """
    settings, out = settings_of(AutoencoderSettings, cfg), Path(out)
    check_installed(settings.logger)
    train, held_out = _split(len(images), settings)
    _check(images, settings)
    kept = {k: v for k, v in dataclasses.asdict(settings).items() if k not in _FREE}
    kept |= {"num_images": len(images), "images": sha256 or pixels_sha256(images)}
    identity = json.loads(json.dumps(kept))
    steps = settings.max_epochs * max(1, len(train) // settings.batch_size)

    def prepare() -> Any:
        module = AutoencoderModule(settings, steps)
        return lambda workspace: _train(
            images, train, held_out, module, settings, identity, workspace, out, callbacks
        )

    return once(out, identity, prepare)


def _train(
    images: torch.Tensor,
    rows: torch.Tensor,
    held_out: torch.Tensor,
    module: AutoencoderModule,
    settings: AutoencoderSettings,
    identity: dict[str, Any],
    workspace: Path,
    out: Path,
    callbacks: Sequence[Callback] | None,
) -> dict[str, Any]:
    history, data = History(), _Data(images, settings, rows=rows)
    trainer = carry_out(
        module, data, settings, identity, workspace, out, history, callbacks or (),
        "the autoencoder",
    )  # fmt: skip
    record = record_of(module, identity, trainer.global_step)
    if trainer.is_global_zero:
        network = module.network.eval()
        network.register_to_config(scaling_factor=_scale(network, images[rows[:_WEIGHED]]))
        record["psnr"] = psnr(Autoencoder(network), images[held_out])
        files = {RECORD: json.dumps(record, indent=2), METRICS: metrics_csv(history)}
        made_whole(out, network.save_pretrained, (".",), files)
        shutil.rmtree(workspace, ignore_errors=True)  # everything needed is in out
    trainer.strategy.barrier()
    return record
