"""An architecture for timm: a ResNet with a stem for small images.

timm's own ResNets have no argument for such a stem. Importing this module makes ``clsp_resnet`` one
of timm's models, and ``timm.create_model("local-dir:DIR", pretrained=True)`` then loads what
``clsp export`` wrote of such a network.
"""

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from clsp_plugin.methods.backbones import build_backbone

__all__ = ["NAME", "clsp_resnet"]

NAME = "clsp_resnet"
default_cfgs = generate_default_cfgs(
    {NAME: {"num_classes": 0, "first_conv": "conv1", "classifier": "fc", "license": "mit"}}
)


def _build(
    base: str = "resnet18",
    stem: Mapping[str, Any] | None = None,
    num_classes: int = 0,
    in_chans: int = 3,
    **kwargs: Any,
) -> nn.Module:
    if in_chans != 3:
        raise ValueError(f"in_chans={in_chans}: this network is for RGB images.")
    module: Any
    module, _ = build_backbone({"name": base, "kwargs": kwargs, "stem": stem}, "custom")
    if num_classes:
        module.reset_classifier(num_classes)
    return module


@register_model
def clsp_resnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make one of timm's ResNets with another stem.

    Args:
        pretrained: whether to load the weights that timm was told of.
        kwargs: ``base``, the name of timm's ResNet; ``stem``, see
            :func:`clsp_plugin.methods.backbones.resolve_stem`; ``num_classes``, 0 for features; and
            arguments of timm's ResNet such as ``channels``.
    """
    return build_model_with_cfg(_build, NAME, pretrained, **kwargs)
