"""DCL: decoupled contrastive learning (Yeh et al., ECCV 2022)."""

import torch

from clsp_plugin.losses.dcl import dcl_loss
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simclr import SimCLR


@register_method("dcl")
class DCL(SimCLR):
    """SimCLR without the positive in the denominator; see :func:`dcl_loss` for the formula."""

    weighs_pairs = False

    def contrast(self, z: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
        return dcl_loss(z, indexes, self.cfg.method_kwargs.temperature)
