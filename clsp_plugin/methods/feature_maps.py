"""The last feature map of a backbone that still has places."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from clsp_plugin.errors import ClspError
from clsp_plugin.methods.backbones import without_content

__all__ = ["check_maps", "feature_map"]

# What pools the feature map of timm's and torchvision's convolutional networks.
_POOLINGS = ("global_pool", "avgpool", "head.global_pool")


def _pools_maps(backbone: nn.Module) -> bool:
    """Whether a network has a layer that pools maps (B, D, h, w), as no transformer of timm has."""
    layers = dict(backbone.named_modules())
    pools = any(name in layers for name in _POOLINGS)
    return pools and getattr(backbone, "output_fmt", "NCHW") == "NCHW"


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a network: stem, stages, and what sequences of them consist of."""
    for part in module.children():
        if isinstance(part, nn.Sequential):
            yield from _parts(part)
        yield part


def feature_map(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Run a backbone and return its last feature map of more than one place, (B, D, h, w).

    That is the output of the last of its parts (stem, stages, ..) that has one: small images may
    have shrunk to a single place in the stages after it.

    Args:
        backbone: a convolutional network.
        images: (B, 3, H, W).

    Raises:
        ClspError: there is no such map, as in a ViT.
    """
    maps: list[torch.Tensor] = []

    def keep(part: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, torch.Tensor) and out.ndim == 4 and out.shape[2:].numel() > 1:
            maps.append(out)

    parts = _parts(backbone) if _pools_maps(backbone) else ()
    handles = [part.register_forward_hook(keep) for part in parts]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    if not maps:
        raise ClspError(
            f"synthetic.pair_weight=quality tells foreground from background in a feature map, and "
            f"{type(backbone).__name__} makes none of images of {tuple(images.shape[2:])} pixels; "
            f"set synthetic.pair_weight=equal, or take a ResNet."
        )
    return maps[-1]


def check_maps(backbone: nn.Module, size: int) -> None:
    """Refuse a backbone without a feature map, before anything is computed.

    Args:
        backbone: the network.
        size: H = W of the views, in pixels.

    Raises:
        ClspError: see :func:`feature_map`.
    """
    try:
        empty = torch.empty(1, 3, size, size, device="meta")
        feature_map(without_content(backbone).eval(), empty)
    except ClspError:
        raise
    except Exception:
        return  # an operation that the meta device lacks; the first training step will show
