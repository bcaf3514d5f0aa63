"""A denoiser small enough for every test."""

import pytest
import torch

from clsp_plugin.diffusion.denoiser import build_unet

TINY_UNET = {"block_out_channels": [8, 16], "layers_per_block": 1, "attention_resolutions": [4]}


@pytest.fixture
def make_unet():
    """Make an untrained denoiser: ``make_unet(image_size, seed, **settings)``."""

    def make(image_size=8, seed=0, **keys):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_unet(image_size, {**TINY_UNET, **keys}).eval()

    return make


@pytest.fixture
def unet(make_unet):
    return make_unet()


@pytest.fixture
def images():
    """uint8 (N, 8, 8, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8, generator=generator)
