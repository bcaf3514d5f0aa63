"""SimCLR: a simple framework for contrastive learning (Chen et al., ICML 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.nt_xent import nt_xent_loss
from clsp_plugin.methods.base import BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.registry import register_method


@register_method("simclr")
class SimCLR(BaseMethod):
    """Attracts views of one image, repels all others; see :func:`nt_xent_loss` for the formula."""

    takes_small_crops = takes_more_views = weighs_pairs = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of SimCLR.

        Attributes:
            temperature: temperature of the similarities.
        """

        temperature: float = ranged(0.2, above=0)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        sizes = (self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        self.add_head("projector", mlp(*sizes))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim)."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    def contrast(self, z: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
        """The loss of embeddings (views * B, D) of the images ``indexes``."""
        weights = self.pair_weights
        weights = None if weights is None else weights.repeat(len(z) // len(weights))
        return nt_xent_loss(z, indexes, self.cfg.method_kwargs.temperature, weights)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The contrastive loss over all views plus the probe's."""
        out = super().training_step(batch, batch_idx)
        loss = self.contrast(torch.cat(out["z"]), batch[0].repeat(self.num_crops))
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
