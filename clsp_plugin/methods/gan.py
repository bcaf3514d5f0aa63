"""A small generator and discriminator for square images of at least 12 pixels a side."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["Discriminator", "Generator", "discriminator_loss", "generator_loss"]


def _stages(size: int) -> tuple[int, int]:
    """Return how often an image's side is halved, and what is left: odd, or at most 7 pixels."""
    stages = 0
    while size % 2 == 0 and size > 7:
        size, stages = size // 2, stages + 1
    return stages, size


class Generator(nn.Module):
    """Maps latents (B, latent_dim) to images (B, 3, size, size) in [-1, 1].

    Convolutions on larger and larger maps as in DCGAN (Radford et al., ICLR 2016), with
    nearest-neighbour upsampling.

    Args:
        size: side of the images, in pixels.
        latent_dim: length of a latent.
        width: channels of the largest map.
    """

    def __init__(self, size: int, latent_dim: int, width: int):
        super().__init__()
        stages, side = _stages(size)
        channels = [width * 2**stage for stage in range(stages, -1, -1)]
        layers = [
            nn.Linear(latent_dim, channels[0] * side**2),
            nn.Unflatten(1, (channels[0], side, side)),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        ]
        for inputs, outputs in pairwise(channels):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.layers(latents)


class Discriminator(nn.Module):
    """Maps images (B, 3, size, size) in [-1, 1] to scores (B,), which are high for real ones.

    All layers are spectrally normalised (Miyato et al., ICLR 2018).

    Args:
        size: side of the images, in pixels.
        width: channels of the largest map.
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        stages, side = _stages(size)
        channels = [3, *(width * 2**stage for stage in range(stages))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.1)]
        last = spectral_norm(nn.Linear(channels[-1] * side**2, 1))
        self.layers = nn.Sequential(*layers, nn.Flatten(), last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)[:, 0]


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The hinge loss of scores (B,): ``mean max(0, 1 - real) + mean max(0, 1 + fake)``."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """The generator's loss of the scores (B,) of its images: ``-mean fake``."""
    return -fake.mean()
