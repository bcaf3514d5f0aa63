"""Compilation of a denoiser: whether it pays, and how it is done."""

import torch
from diffusers import UNet2DModel

from clsp_plugin.data.augmentation.pipeline import can_compile
from clsp_plugin.errors import ClspError

__all__ = ["compile_blocks", "to_compile"]

_GRAPHS = 4096  # largest number of compiled graphs: one per block and batch size
# Passes of one image through the network from which on compiling pays on a GPU. It takes half a
# minute, and saves 10 microseconds a pass with a small network and 100 with the paper's.
_WORTH = 10_000_000


def to_compile(wanted: bool | None, device: torch.device, passes: int = 0) -> bool:
    """Return whether to compile a denoiser.

    Args:
        wanted: the setting; None compiles on a CUDA GPU, if it pays and there is a compiler.
        device: where the denoiser computes.
        passes: how often an image goes through the network in all of the work; without it, nothing
            is compiled that is not wanted.

    Raises:
        ClspError: it is wanted and there is no compiler.
    """
    if wanted and not can_compile():
        raise ClspError("compile=True needs a C++ compiler, and none is here; leave it out.")
    if wanted is not None:
        return wanted
    return device.type == "cuda" and passes >= _WORTH and can_compile(device)


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
