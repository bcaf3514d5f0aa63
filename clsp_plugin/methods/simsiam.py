"""SimSiam: exploring simple siamese representation learning (Chen and He, CVPR 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import MISSING, DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.methods.base import WIDTH, BaseMethod, ProjectorKwargs, mlp, spread
from clsp_plugin.methods.registry import register_method


@register_method("simsiam")
class SimSiam(BaseMethod):
    """A predictor on each view regresses the other view's embedding, which takes no gradient.

    ``loss = -(cos(p_1, stopgrad(z_2)) + cos(p_2, stopgrad(z_1))) / 2``. The predictor's learning
    rate is not scheduled.
    """

    prediction = "p"

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of SimSiam.

        Attributes:
            pred_hidden_dim: width of the predictor's hidden layer.
        """

        pred_hidden_dim: int = ranged(MISSING, WIDTH)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        layers = mlp(self.features_dim, hidden, hidden, out, norm=True, hidden_bias=False)
        layers[-1].bias.requires_grad_(False)  # batch normalisation cancels it
        self.add_head("projector", nn.Sequential(*layers, nn.BatchNorm1d(out, affine=False)))
        predictor = mlp(out, kwargs.pred_hidden_dim, out, norm=True, hidden_bias=False)
        self.add_head("predictor", predictor, static_lr=True)

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` and the prediction ``p``, both (B, proj_output_dim)."""
        out = super().forward(X)
        z = self.projector(out["feats"])
        return {**out, "z": z, "p": self.predictor(z)}

    def regression_targets(
        self, out: dict[str, Any], targets: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        """Return the targets of the regression, one tensor (B, proj_output_dim) per view.

        The prediction of the other view has to match the target of a view.

        Args:
            out: the output of ``BaseMethod.training_step``.
            targets: (B,), labels.
        """
        return out["z"]

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The symmetric regression plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        (p1, p2), (y1, y2) = out["p"], self.regression_targets(out, batch[2])
        loss = (
            -(
                F.cosine_similarity(p1, y2.detach(), dim=-1).mean()
                + F.cosine_similarity(p2, y1.detach(), dim=-1).mean()
            )
            / 2
        )
        self.log_epoch(train_loss=loss, train_z_std=spread(out["z"]))
        return loss + out["loss"]
