"""NNCLR: nearest neighbours as positives (Dwibedi et al., ICCV 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import MISSING, DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.cross_view import cross_view_loss
from clsp_plugin.methods.base import WIDTH, BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.queue import NearestNeighbours
from clsp_plugin.methods.registry import register_method


@register_method("nnclr")
class NNCLR(NearestNeighbours, BaseMethod):
    """Contrasts the nearest neighbour of one view with the prediction of the other view.

    ``loss = (l(nn(z_1), p_2) + l(nn(z_2), p_1)) / 2`` with ``l`` of :func:`cross_view_loss` and
    ``nn(z)`` the past embedding nearest to ``z``.
    """

    prediction = "p"

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of NNCLR.

        Attributes:
            pred_hidden_dim: width of the predictor's hidden layer.
            temperature: temperature of the similarities.
            queue_size: past embeddings that are kept; a multiple of the batch of all processes.
        """

        pred_hidden_dim: int = ranged(MISSING, WIDTH)
        temperature: float = ranged(MISSING, above=0)
        queue_size: int = ranged(65536, low=1)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        layers = mlp(self.features_dim, hidden, hidden, out, norm=True)
        self.add_head("projector", nn.Sequential(*layers, nn.BatchNorm1d(out)))
        self.add_head("predictor", mlp(out, kwargs.pred_hidden_dim, out, norm=True))
        self.register_support_set(out)

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z``, unit norm, and the prediction ``p``, both (B, proj_output_dim)."""
        out = super().forward(X)
        z = self.projector(out["feats"])
        return {**out, "z": F.normalize(z, dim=-1), "p": self.predictor(z)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The symmetric contrast of neighbours and predictions plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        p1, p2 = out["p"]
        nn1, nn2 = (found[:, 0] for found in self.neighbours(out["z"], batch[2]))
        temperature = self.cfg.method_kwargs.temperature
        loss = (cross_view_loss(nn1, p2, temperature) + cross_view_loss(nn2, p1, temperature)) / 2
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
