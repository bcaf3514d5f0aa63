"""Backbones by timm's names, with a stem for small images."""

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from clsp_plugin.errors import ClspError, nearest

__all__ = ["build_backbone", "of_method", "resolve_stem"]

# solo-learn's names for what timm calls otherwise
_ALIASES = {
    **{f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")},
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "swin_large": "swin_large_patch4_window7_224",
}
# solo-learn's MoCo v3 has ViTs of its own, with more heads than timm's of these names
_MOCOV3_HEADS = {"vit_tiny": 12, "vit_small": 12}
_STEM_KEYS = ("kernel_size", "stride", "padding", "max_pool")


def of_method(backbone: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A ``backbone`` block with what a method changes in it.

    MoCo v3's small ViTs have 12 heads in solo-learn, which no weight's shape tells; ``kwargs`` that
    say otherwise win.
    """
    heads = _MOCOV3_HEADS.get(backbone["name"]) if "mocov3" in method else None
    if heads is None:
        return dict(backbone)
    return {**backbone, "kwargs": {"num_heads": heads, **(backbone.get("kwargs") or {})}}


def resolve_stem(backbone: Mapping[str, Any], dataset: str) -> dict[str, Any] | None:
    """The stem a ResNet gets: the configured one, or solo-learn's rule for CIFAR.

    Args:
        backbone: the configuration's ``backbone`` block; ``stem`` has ``kernel_size``,
            ``stride``, ``padding`` (pixels) and ``max_pool``.
        dataset: name of the data set.

    Returns:
        The four keys, or None for the architecture's own stem. solo-learn pads a 3x3 stem by 2
        on CIFAR, the authors of CLSP by 1.
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


def build_backbone(backbone: Mapping[str, Any], dataset: str) -> tuple[nn.Module, int]:
    """Make a backbone without its classifier.

    Args:
        backbone: the configuration's ``backbone`` block: ``name`` (of timm, or solo-learn's),
            ``kwargs`` for timm's constructor, ``stem`` (see :func:`resolve_stem`).
        dataset: name of the data set.

    Returns:
        The module, images (B, 3, H, W) to features (B, D), and D.

    Raises:
        ClspError: an unknown name, arguments that timm refuses, a stem on another architecture.
    """
    name = _ALIASES.get(backbone["name"], backbone["name"])
    if not timm.is_model(name):
        raise ClspError(
            f"backbone.name={backbone['name']} is not a model of timm"
            f"{nearest(name, timm.list_models()) if len(name) > 2 else ''}"
        )
    kwargs = dict(backbone.get("kwargs") or {})
    if name.startswith("resnet"):
        # torchvision's initialisation, which solo-learn and the authors use
        kwargs.setdefault("zero_init_last", False)
    if backbone["name"] in _ALIASES and name.startswith("vit"):
        kwargs.setdefault("dynamic_img_size", True)  # small crops have fewer patches
    try:
        module = timm.create_model(name, num_classes=0, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:
        raise ClspError(f"backbone.kwargs={kwargs} do not fit {name}: {error}") from error
    stem = resolve_stem(backbone, dataset)
    if stem is not None:
        _replace_stem(module, stem, name)
    return module, module.num_features


def _replace_stem(module: nn.Module, stem: Mapping[str, Any], name: str) -> None:
    if not isinstance(getattr(module, "conv1", None), nn.Conv2d) or not hasattr(module, "maxpool"):
        raise ClspError(f"backbone.stem is for ResNets; {name} has no such stem: remove the key.")
    module.conv1 = nn.Conv2d(
        module.conv1.in_channels,
        module.conv1.out_channels,
        kernel_size=stem["kernel_size"],
        stride=stem["stride"],
        padding=stem["padding"],
        bias=False,
    )
    nn.init.kaiming_normal_(module.conv1.weight, mode="fan_out", nonlinearity="relu")
    if not stem["max_pool"]:
        module.maxpool = nn.Identity()
