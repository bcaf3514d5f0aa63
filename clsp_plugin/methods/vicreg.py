"""VICReg: variance, invariance, covariance (Bardes et al., ICLR 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.vicreg import vicreg_loss
from clsp_plugin.methods.base import BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.registry import register_method


@register_method("vicreg")
class VICReg(BaseMethod):
    """Makes views agree and features vary without covariance; see :func:`vicreg_loss`."""

    takes_more_views = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of VICReg.

        Attributes:
            sim_loss_weight: weight of the distance of the views.
            var_loss_weight: weight of the variance term.
            cov_loss_weight: weight of the covariance term.
        """

        sim_loss_weight: float = ranged(25.0)
        var_loss_weight: float = ranged(25.0)
        cov_loss_weight: float = ranged(1.0)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.add_head("projector", mlp(self.features_dim, hidden, hidden, out, norm=True))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim)."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The three terms over all pairs of views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        kwargs = self.cfg.method_kwargs
        loss = vicreg_loss(
            *out["z"],
            sim_loss_weight=kwargs.sim_loss_weight,
            var_loss_weight=kwargs.var_loss_weight,
            cov_loss_weight=kwargs.cov_loss_weight,
        )
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
