"""CL-GAN: SimCLR trained together with two generators that make harder and harder positives.

"Synthetic Data Can Also Teach: Synthesizing Effective Data for Unsupervised Visual
Representation Learning" (Wu et al., AAAI 2023).
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.data.augmentation.config import AugmentationConfig
from clsp_plugin.data.augmentation.pipeline import BatchAugmentation
from clsp_plugin.data.holder import Images
from clsp_plugin.data.image_array import ImageArray
from clsp_plugin.data.images import channel_statistics
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_normal, keys_for
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.distributed import average, rank
from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.methods.base import WIDTH, BaseMethod
from clsp_plugin.methods.gan import Discriminator, Generator, discriminator_loss, generator_loss
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simclr import SimCLR
from clsp_plugin.system.devices import fits


@register_method("cl_gan")
class CLGAN(SimCLR):
    """SimCLR on real images and on generated pairs, which become less similar during training.

    From the paper: two generators make two similar but distinct images. Two views of each, four
    in all, are positives of each other in SimCLR's loss, beside the real images. Generators and
    encoder are trained jointly and against each other, and the similarity of a pair is decreased
    during training.

    Here, with ``u`` a normal latent, ``x_g = G_g(u)`` and ``z_g`` the encoder's ``z`` of
    ``x_g``::

        L            = NT-Xent over 2 views of real images and 4 views of generated pairs
        L_D          = sum_g  mean max(0, 1 - D(x)) + mean max(0, 1 + D(x_g))
        L_G1 + L_G2  = sum_g -mean D(x_g)  +  pair_weight * mean (cos(z_1, z_2) - target)^2

    ``target`` falls linearly over the epochs from 1 to ``final_similarity``.

    We had to guess:

    * the networks and their training: DCGAN with spectral normalisation, hinge loss, Adam with
      rate 2e-4 and betas 0, 0.9, and one step of each network per batch;
    * the initial similarity: the second generator starts as the first with a tenth of noise on its
      weights (equal ones would stay equal), and both get the same latent;
    * the schedule of the similarity and its final value;
    * the share of generated images, and that they enter the encoder's loss only after
      ``start_epoch`` epochs, when they are no longer noise.

    We leave out the paper's other proposal, single hard samples.

    The generators and the discriminator have their own optimisers, which are saved in the
    checkpoint; Lightning's optimiser trains the encoder only.
    """

    takes_small_crops = takes_more_views = weighs_pairs = False

    @dataclass
    class Kwargs(SimCLR.Kwargs):
        """Settings of CLGAN, beside SimCLR's.

        Attributes:
            num_generated: generated pairs per step and process; 0 means half of the batch.
            start_epoch: number of first epochs in which generated images do not enter the encoder's
                loss.
            final_similarity: cosine similarity of a pair at the end of the training.
            pair_weight: weight of a pair's similarity in the generators' loss.
            latent_dim: size of the latent.
            gan_width: channels of the generators and the discriminator.
        """

        num_generated: int = ranged(0, low=0)
        start_epoch: int = ranged(1, low=0)
        final_similarity: float = ranged(0.5, low=-1, high=1)
        pair_weight: float = ranged(1.0)
        latent_dim: int = ranged(128, WIDTH)
        gan_width: int = ranged(64, WIDTH)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.kwargs = kwargs = self.cfg.method_kwargs
        size = self.cfg.augmentations[0].crop_size
        first = Generator(size, kwargs.latent_dim, kwargs.gan_width)
        second = copy.deepcopy(first)
        for parameter in second.parameters():
            parameter.data += 0.1 * parameter.abs().mean() * torch.randn_like(parameter)
        self.generators = nn.ModuleList([first, second])
        self.discriminator = Discriminator(size, kwargs.gan_width)
        # keeps these out of Lightning's optimiser and of its gradient reduction
        self.generators.requires_grad_(False)
        self.discriminator.requires_grad_(False)
        self.adams = {
            "generators": _adam(self.generators),
            "discriminator": _adam(self.discriminator),
        }
        self._adam_states: dict[str, Any] = {}
        self._images: torch.Tensor | None = None
        mean, std = channel_statistics(self.cfg.data, self.cfg.augmentations)
        pipeline = AugmentationConfig.from_cfg(self.cfg.augmentations[0])
        self._augment = BatchAugmentation(pipeline, mean, std)
        self.register_buffer("_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        kwargs.num_generated = kwargs.num_generated or max(2, cfg.optimizer.batch_size // 2)
        if not 2 <= kwargs.num_generated <= cfg.optimizer.batch_size:
            raise ClspError(
                f"method_kwargs.num_generated={kwargs.num_generated} must be between 2 and "
                f"optimizer.batch_size={cfg.optimizer.batch_size}."
            )
        return cfg

    def attach_images(self, images: Images) -> None:
        """Keep the training images for the discriminator.

        Raises:
            ClspError: their size is not ``crop_size``, the size of the generated images.
        """
        size = self.cfg.augmentations[0].crop_size
        if not isinstance(images, ImageArray) or images.size != (size, size):
            are = (
                f"are {images.size[0]}x{images.size[1]}"
                if isinstance(images, ImageArray)
                else "have several sizes"
            )
            raise ClspError(
                f"{self.cfg.method} generates images of crop_size={size} and those of "
                f"{images.name} {are}; set data.image_size={size}."
            )
        self._images = images.images

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["cl_gan"] = {name: adam.state_dict() for name, adam in self.adams.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._adam_states = checkpoint["cl_gan"]

    def on_train_start(self) -> None:
        super().on_train_start()
        for name, state in self._adam_states.items():  # now the networks are on their device
            self.adams[name].load_state_dict(state)
        self._adam_states = {}

    @property
    def target_similarity(self) -> float:
        """The cosine similarity that a generated pair should have in the current epoch."""
        progress = self.current_epoch / max(self.cfg.max_epochs - 1, 1)
        return 1 - (1 - self.kwargs.final_similarity) * min(progress, 1.0)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """Train the GAN for one step; return SimCLR's loss on all images plus the probe's loss."""
        out = BaseMethod.training_step(self, batch, batch_idx)
        key = derive_key(self.cfg.seed, Purpose.LATENT, self.current_epoch, batch_idx, rank())
        pair = self.train_gan(batch[0], key)
        z, indexes = torch.cat(out["z"]), batch[0].repeat(self.num_crops)
        if self.current_epoch >= self.kwargs.start_epoch:
            generated, names = self._embed_views(pair, key)
            z, indexes = torch.cat([z, generated]), torch.cat([indexes, names])
        loss = self.contrast(z, indexes)
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]

    def contrast(self, z: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
        """The loss of embeddings (N, D); a negative index stands for a generated pair."""
        return nt_xent_loss(z, indexes, self.kwargs.temperature)

    def _embed_views(
        self, pair: Sequence[torch.Tensor], key: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed two views of each image of B pairs.

        Returns:
            ``z`` (4 * B, D), and negative indexes (4 * B,), one number for each pair.
        """
        number = torch.arange(len(pair[0]), device=self.device)
        views = []
        for generator, images in enumerate(pair):
            pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            pixels = pixels.permute(0, 2, 3, 1).contiguous()
            for view in range(2):
                base = derive_key(key, Purpose.AUGMENTATION, generator, view)
                views.append(self._augment(pixels, keys_for(base, number)))
        names = -1 - (number + rank() * len(number))
        return self(torch.cat(views))["z"], names.repeat(len(views))

    def train_gan(self, indexes: torch.Tensor, key: int) -> list[torch.Tensor]:
        """Take one step of the discriminator and one of the generators.

        Args:
            indexes: int64 (B,), indexes of real images.
            key: the random key that the latents are drawn from.

        Returns:
            The pair that the generators made before their step: (num_generated, 3, size, size)
            each, in [-1, 1], without a gradient.
        """
        if self._images is None:
            raise ClspError(
                f"{self.cfg.method} was not told which images it trains on; call "
                f"attach_images(images) before fitting."
            )
        if self._images.device != self.device and fits(self._images.nbytes, self.device):
            self._images = self._images.to(self.device)
        rows = indexes[: self.kwargs.num_generated].to(self._images.device)
        real = self._images[rows].to(self.device)
        real = real.permute(0, 3, 1, 2).float() / 127.5 - 1
        keys = keys_for(key, torch.arange(self.kwargs.num_generated, device=self.device))
        latents = key_normal(keys, self.kwargs.latent_dim)
        with torch.autocast(self.device.type, enabled=False), _learning(self.generators):
            pair = [generator(latents) for generator in self.generators]
            loss_d = self._step_discriminator(real, pair)
            loss_g, similarity = self._step_generators(pair)
        self.log_epoch(train_loss_d=loss_d, train_loss_g=loss_g, train_pair_similarity=similarity)
        return [images.detach() for images in pair]

    def _step_discriminator(self, real: torch.Tensor, pair: Sequence[torch.Tensor]) -> torch.Tensor:
        with _learning(self.discriminator):
            scores = self.discriminator(real)
            losses = [
                discriminator_loss(scores, self.discriminator(images.detach())) for images in pair
            ]
            loss = reduce(torch.add, losses)
            self._step("discriminator", self.discriminator, loss)
        return loss.detach()

    def _step_generators(self, pair: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        losses = [generator_loss(self.discriminator(images)) for images in pair]
        adversarial = reduce(torch.add, losses)
        first, second = (F.normalize(self._judge(images), dim=-1) for images in pair)
        similarity = (first * second).sum(-1)
        apart = (similarity - self.target_similarity).square().mean()
        loss = adversarial + self.kwargs.pair_weight * apart
        self._step("generators", self.generators, loss)
        return loss.detach(), similarity.detach().mean()

    def _judge(self, images: torch.Tensor) -> torch.Tensor:
        """Return the encoder's ``z`` (B, D) of images in [-1, 1]; keeps its running statistics."""
        training = [module for module in (self.backbone, self.projector) if module.training]
        for module in training:
            module.eval()
        z = self.projector(
            self._features(self.backbone, ((images + 1) / 2 - self._mean) / self._std)
        )
        for module in training:
            module.train()
        return z.float()

    def _step(self, name: str, module: nn.Module, loss: torch.Tensor) -> None:
        """Take an optimiser step of one network; no other network gets a gradient."""
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = average(gradient)
        self.adams[name].step()
        self.adams[name].zero_grad()


def _adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=2e-4, betas=(0.0, 0.9))


@contextmanager
def _learning(module: nn.Module) -> Iterator[None]:
    """Let a network that is frozen otherwise take gradients inside the block."""
    module.requires_grad_(True)
    try:
        yield
    finally:
        module.requires_grad_(False)
