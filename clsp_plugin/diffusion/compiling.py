"""Compilation of a denoiser: whether it pays, and how it is done."""

import torch
from diffusers import UNet2DModel

__all__ = ["compile_blocks", "pays"]

_GRAPHS = 4096  # largest number of compiled graphs: one per block and batch size
# Passes of one image through the network from which on compiling pays on a GPU. It takes half a
# minute, and saves 10 microseconds a pass with a small network and 100 with the paper's.
_WORTH = 10_000_000


def pays(device: torch.device, passes: int) -> bool:
    """Return whether compiling a denoiser pays.

    Args:
        device: where the denoiser computes.
        passes: how often an image goes through the network in all of the work.
    """
    return device.type == "cuda" and passes >= _WORTH


def compile_blocks(unet: UNet2DModel) -> None:
    """Compile the blocks of a denoiser, each when it first gets a batch of a new size."""
    # The graphs of all blocks of one class count together. Beyond the limit blocks would run
    # uncompiled, which rounds differently.
    limits = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, _GRAPHS)
    limits.accumulated_cache_size_limit = max(limits.accumulated_cache_size_limit, _GRAPHS)
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        # one graph per batch size: a graph for all sizes could round differently in a continued
        # run, where the sizes come in another order
        block.compile(dynamic=False)
