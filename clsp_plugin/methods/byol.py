"""BYOL: bootstrap your own latent (Grill et al., NeurIPS 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING, DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.methods.base import WIDTH, BaseMomentumMethod, ProjectorKwargs, mlp, spread
from clsp_plugin.methods.registry import register_method


@register_method("byol")
class BYOL(BaseMomentumMethod):
    """A predictor on each view regresses the momentum embedding of every other view.

    ``loss = sum over large crops v and other crops u of 2 - 2 cos(p_u, z'_v)``.
    """

    takes_small_crops = takes_more_views = weighs_pairs = True
    prediction = "p"

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of BYOL.

        Attributes:
            pred_hidden_dim: width of the predictor's hidden layer.
        """

        pred_hidden_dim: int = ranged(MISSING, WIDTH)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.add_momentum_head("projector", lambda: mlp(self.features_dim, hidden, out, norm=True))
        self.add_head("predictor", mlp(out, kwargs.pred_hidden_dim, out, norm=True))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` and the prediction ``p``, both (B, proj_output_dim)."""
        out = super().forward(X)
        z = self.projector(out["feats"])
        return {**out, "z": z, "p": self.predictor(z)}

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        out = super().momentum_forward(X)
        return {**out, "z": self.momentum_projector(out["feats"])}

    def regression_targets(
        self, out: dict[str, Any], targets: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        """Return the targets of the regression, one tensor (B, D) per large crop.

        The predictions of all other crops have to match the target of a crop.

        Args:
            out: the output of ``BaseMomentumMethod.training_step``.
            targets: (B,), labels.
        """
        return out["momentum_z"]

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The regression over all pairs of views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        loss = sum(
            alignment_loss(out["p"][other], target, self.pair_weights)
            for view, target in enumerate(self.regression_targets(out, batch[2]))
            for other in range(self.num_crops)
            if other != view
        )
        self.log_epoch(train_loss=loss, train_z_std=spread(out["z"][: self.num_large_crops]))
        return loss + out["loss"]
