"""LeJEPA (Balestriero and LeCun, 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.data.keyed_random import Purpose, derive_key, key_normal, keys_for
from clsp_plugin.losses.lejepa import lejepa_loss
from clsp_plugin.methods.base import BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.registry import register_method

__all__ = ["LeJEPA"]


@register_method("lejepa")
class LeJEPA(BaseMethod):
    """Makes views agree and embeddings Gaussian; see :func:`lejepa_loss`.

    No momentum network, no predictor, no stopped gradient. The random directions of a step are
    drawn from a key of (seed, step), so they are the same in every process and in a continued run.
    """

    takes_small_crops = True
    takes_more_views = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of LeJEPA.

        Attributes:
            sigreg_weight: lambda, the share of the loss that makes embeddings Gaussian.
            num_directions: random directions a step.
            knots: frequencies at which distributions are compared along a direction.
            t_max: the largest of these frequencies.
        """

        sigreg_weight: float = ranged(0.05, low=0, high=1)
        num_directions: int = ranged(1024, low=1, high=2**20)
        knots: int = ranged(17, low=2, high=1000)
        t_max: float = ranged(3.0, above=0)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        sizes = (self.features_dim, hidden, hidden, out)
        # Adam would make steps of a bias out of the rounding that normalisation leaves of it
        self.add_head("projector", mlp(*sizes, norm=True, hidden_bias=False))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim)."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    def directions(self) -> torch.Tensor:
        """Draw the random directions of this step: (proj_output_dim, num_directions), unit norm."""
        kwargs = self.cfg.method_kwargs
        base = derive_key(self.cfg.seed, Purpose.DIRECTIONS, self.global_step)
        keys = keys_for(base, torch.arange(kwargs.num_directions, device=self.device))
        return F.normalize(key_normal(keys, kwargs.proj_output_dim), dim=1).T

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """LeJEPA's loss over all views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        kwargs = self.cfg.method_kwargs
        loss = lejepa_loss(
            out["z"],
            self.num_large_crops,
            self.directions(),
            sigreg_weight=kwargs.sigreg_weight,
            knots=kwargs.knots,
            t_max=kwargs.t_max,
        )
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
