"""Barlow Twins: redundancy reduction (Zbontar et al., ICML 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.barlow import barlow_loss
from clsp_plugin.losses.pairs import mean_over_pairs
from clsp_plugin.methods.base import BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.registry import register_method


@register_method("barlow_twins")
class BarlowTwins(BaseMethod):
    """Moves the correlation of the two views' features to the identity; see :func:`barlow_loss`."""

    takes_more_views = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of Barlow Twins.

        Attributes:
            lamb: weight of the correlations between different features.
            scale_loss: factor of the loss.
        """

        lamb: float = ranged(0.0051)
        scale_loss: float = ranged(0.024)

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
        """Redundancy reduction over all pairs of views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        kwargs = self.cfg.method_kwargs
        loss = mean_over_pairs(
            barlow_loss, out["z"], lamb=kwargs.lamb, scale_loss=kwargs.scale_loss
        )
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
