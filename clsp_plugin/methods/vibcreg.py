"""VIbCReg: VICReg with correlations and whitening (Lee and Aune, 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.vibcreg import vibcreg_loss
from clsp_plugin.methods.base import BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.whitening import IterNorm


@register_method("vibcreg")
class VIbCReg(BaseMethod):
    """Makes views agree and features vary without correlation; see :func:`vibcreg_loss`."""

    takes_more_views = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of VIbCReg.

        Attributes:
            sim_loss_weight: weight of the distance of the views.
            var_loss_weight: weight of the variance term.
            cov_loss_weight: weight of the correlation term.
            iternorm: whether the projector ends in iterative whitening.
        """

        sim_loss_weight: float = ranged(25.0)
        var_loss_weight: float = ranged(25.0)
        cov_loss_weight: float = ranged(200.0)
        iternorm: bool = False

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        layers = mlp(
            self.features_dim,
            kwargs.proj_hidden_dim,
            kwargs.proj_hidden_dim,
            kwargs.proj_output_dim,
            norm=True,
            activation=nn.GELU,
        )
        last = IterNorm(kwargs.proj_output_dim) if kwargs.iternorm else nn.Identity()
        self.add_head("projector", nn.Sequential(*layers, last))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim)."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The three terms over all pairs of views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        kwargs = self.cfg.method_kwargs
        loss = vibcreg_loss(
            *out["z"],
            sim_loss_weight=kwargs.sim_loss_weight,
            var_loss_weight=kwargs.var_loss_weight,
            cov_loss_weight=kwargs.cov_loss_weight,
        )
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
