"""SupCon: supervised contrastive learning (Khosla et al., NeurIPS 2020)."""

import torch
from omegaconf import DictConfig

from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.methods.base import BaseMethod, check_method_kwargs
from clsp_plugin.methods.simclr import SimCLR


class SupCon(SimCLR):
    """SimCLR where all images of a class are positives of each other: it learns from labels.

    :func:`nt_xent_loss` with the labels as keys: the sum over positives stands inside the
    logarithm, as in solo-learn; the paper's preferred form has it outside. An image without a
    label (-1) matches its own views and nothing else.

    ``method_kwargs``: ``proj_hidden_dim``, ``proj_output_dim`` (sizes of the projector),
    ``temperature``.
    """

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        cfg = BaseMethod.add_and_assert_specific_cfg(cfg)
        return check_method_kwargs(
            cfg, {"proj_hidden_dim": int, "proj_output_dim": int, "temperature": float}
        )

    def contrastive_loss(
        self, z: torch.Tensor, indexes: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        # negative numbers are no labels, so an image's own never meets a class
        keys = torch.where(targets >= 0, targets, -1 - indexes)
        return nt_xent_loss(z, keys, self.cfg.method_kwargs.temperature)
