"""Backbones from timm, with a stem for small images."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from clsp_plugin.config.rules import check_finite
from clsp_plugin.errors import ClspError, nearest, short

__all__ = [
    "build_backbone",
    "check_layout",
    "check_network",
    "of_method",
    "resolve_stem",
    "timm_model",
    "without_content",
]

# solo-learn's names of models, and timm's names of the same models
_ALIASES = {
    **{f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")},
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_large": "swin_large_patch4_window7_224",
}
# solo-learn's MoCo v3 has its own ViTs, with more heads than timm's models of these names
_MOCOV3_HEADS = {"vit_tiny": 12, "vit_small": 12}
_STEM_KEYS = ("kernel_size", "stride", "padding", "max_pool")


def of_method(backbone: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return a ``backbone`` block with the changes that a method makes to it.

    MoCo v3's tiny and small ViTs have 12 heads in solo-learn. The number has to be set here
    because the shapes of the weights do not show it. A ``num_heads`` in ``kwargs`` takes
    precedence.
    """
    heads = _MOCOV3_HEADS.get(backbone["name"]) if "mocov3" in method else None
    if heads is None:
        return dict(backbone)
    return {**backbone, "kwargs": {"num_heads": heads, **(backbone.get("kwargs") or {})}}


def resolve_stem(backbone: Mapping[str, Any], dataset: str) -> dict[str, Any] | None:
    """Return the stem of a ResNet: the configured one, or solo-learn's stem for CIFAR.

    Args:
        backbone: the configuration's ``backbone`` block; ``stem`` has ``kernel_size``,
            ``stride``, ``padding`` (pixels) and ``max_pool``.
        dataset: name of the data set.

    Returns:
        The four keys, or None for the architecture's own stem. On CIFAR, solo-learn pads a 3x3
        stem by 2, the authors of CLSP by 1.
    """
    stem = backbone.get("stem")
    if stem is not None:
        absent = [key for key in _STEM_KEYS if stem.get(key) is None]
        unknown = [key for key in stem if key not in _STEM_KEYS]
        if absent or unknown:
            raise ClspError(
                f"backbone.stem needs exactly {', '.join(_STEM_KEYS)}; "
                f"missing: {absent or 'nothing'}, unknown: {unknown or 'nothing'}."
            )
        return dict(stem)
    if dataset in ("cifar10", "cifar100") and backbone["name"].startswith("resnet"):
        return {"kernel_size": 3, "stride": 1, "padding": 2, "max_pool": False}
    return None


def timm_model(backbone: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return timm's name of a backbone and the arguments of its constructor.

    Raises:
        ClspError: the name is not known.
    """
    name = _ALIASES.get(backbone["name"], backbone["name"])
    if not timm.is_model(name):
        raise ClspError(
            f"backbone.name={short(backbone['name'])} is not a model of timm"
            f"{nearest(name, timm.list_models()) if len(name) > 2 else ''}"
        )
    kwargs = dict(backbone.get("kwargs") or {})
    if name.startswith("resnet"):
        # torchvision's initialisation, which solo-learn and the authors use
        kwargs.setdefault("zero_init_last", False)
    if backbone["name"] in _ALIASES and name.startswith("vit"):
        kwargs.setdefault("dynamic_img_size", True)  # small crops have fewer patches
    return name, kwargs


def build_backbone(backbone: Mapping[str, Any], dataset: str) -> tuple[nn.Module, int]:
    """Make a backbone without its classifier.

    Args:
        backbone: the configuration's ``backbone`` block: ``name`` (timm's or solo-learn's),
            ``kwargs`` for timm's constructor, ``stem`` (see :func:`resolve_stem`).
        dataset: name of the data set.

    Returns:
        The module, which maps images (B, 3, H, W) to features (B, D), and D.

    Raises:
        ClspError: the name is unknown, timm refuses the arguments, or a stem is given for an
            architecture other than ResNet.
    """
    name, kwargs = timm_model(backbone)
    check_finite("backbone.kwargs", kwargs)
    try:
        module = timm.create_model(name, num_classes=0, **kwargs)
    except Exception as error:
        # timm's models raise errors of any type when an argument does not fit
        raise ClspError(
            f"backbone.kwargs={short(kwargs)} do not fit {name}: {short(error) or 'it fails'}"
        ) from error
    stem = resolve_stem(backbone, dataset)
    if stem is not None:
        _replace_stem(module, stem, name)
    return module, module.num_features


def check_network(
    backbone: Mapping[str, Any], module: nn.Module, sizes: Sequence[int], batch_size: int
) -> None:
    """Check that a network accepts the views of a training and returns features (B, D).

    A copy of the network on the meta device runs once on a tensor without content per size:
    nothing is computed, and neither the statistics of batch normalisation nor the state of the
    random numbers changes.

    Args:
        backbone: the configuration's ``backbone`` block, for the message.
        module: the network, which maps images (B, 3, H, W) to features (B, D).
        sizes: H = W of the views, in pixels.
        batch_size: B, images per process and step.

    Raises:
        ClspError: the network fails, with the library's message, or its features have another
            shape.
    """
    for size in dict.fromkeys(sizes):
        images = torch.empty(batch_size, 3, size, size, device="meta")
        what = f"backbone.name={backbone['name']}"
        for key in ("kwargs", "stem"):
            what += f", backbone.{key}={short(backbone[key])}" if backbone.get(key) else ""
        where = f"{batch_size} view{'s' * (batch_size > 1)} of {size}x{size} pixels"
        try:
            features = without_content(module).train()(images)
        except Exception as error:
            # layers of timm and torch raise errors of any type when a shape does not fit
            if isinstance(error, NotImplementedError) or "meta" in str(error):
                return  # the meta device lacks an operation; the first training step will show
            raise ClspError(f"{what} cannot work on {where}: {short(error)}") from error
        if features.ndim != 2 or 0 in features.shape:
            raise ClspError(f"{what} makes features of shape {tuple(features.shape)} of {where}.")


def check_layout(module: nn.Module, device: torch.device) -> None:
    """Refuse a network that a CPU cannot train with the channels as the last dimension in memory.

    The gradient of a 1x1 convolution with a stride and with 2 to 6 input channels writes outside of
    its memory there (seen with torch 2.6 and 2.14).

    Args:
        module: the network.
        device: where it will be trained.

    Raises:
        ClspError: the network has such a convolution, and the device is a CPU.
    """
    for layer in module.modules() if device.type == "cpu" else ():
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
            continue
        strided = layer.kernel_size == (1, 1) and max(layer.stride) > 1
        if strided and 2 <= layer.in_channels <= 6:
            raise ClspError(
                f"The network has a 1x1 convolution with a stride and {layer.in_channels} input "
                f"channels, whose gradient a CPU computes wrongly in the layout channels_last; set "
                f"performance.disable_channel_last=True, or give at least 7 channels."
            )


def without_content(module: nn.Module) -> nn.Module:
    """Copy a module to the meta device, where parameters and buffers take no memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


def _replace_stem(module: nn.Module, stem: Mapping[str, Any], name: str) -> None:
    before = getattr(module, "conv1", None)
    if isinstance(before, nn.Sequential):  # timm's deep stem, whose width can be set
        before = before[-1]
    if not isinstance(before, nn.Conv2d) or not hasattr(module, "maxpool"):
        raise ClspError(f"backbone.stem is for ResNets; {name} has no such stem: remove the key.")
    conv = nn.Conv2d(
        3,
        before.out_channels,
        kernel_size=stem["kernel_size"],
        stride=stem["stride"],
        padding=stem["padding"],
        bias=False,
    )
    module.conv1 = conv
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if not stem["max_pool"]:
        module.maxpool = nn.Identity()
