"""MoCo v3: momentum contrast without a queue (Chen et al., ICCV 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING, DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.cross_view import cross_view_loss
from clsp_plugin.methods.base import WIDTH, BaseMomentumMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.registry import register_method


@register_method("mocov3")
class MoCoV3(BaseMomentumMethod):
    """Contrasts each view's query with the other view's keys; other images are the negatives.

    ``loss = 2 T (l(q_1, k_2) + l(q_2, k_1))`` with ``l`` of :func:`cross_view_loss`. The projector
    has two layers on a ResNet and three on any other backbone, such as a ViT.
    """

    prediction = "q"

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of MoCo v3.

        Attributes:
            pred_hidden_dim: width of the predictor's hidden layer.
            temperature: temperature of the similarities.
        """

        pred_hidden_dim: int = ranged(MISSING, WIDTH)
        temperature: float = ranged(MISSING, above=0)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        resnet = "resnet" in self.cfg.backbone.name
        sizes = (self.features_dim, *[hidden] * (1 if resnet else 2), out)
        self.add_momentum_head("projector", lambda: _head(*sizes))
        predictor = _head(out, kwargs.pred_hidden_dim, out, last_norm=not resnet)
        self.add_head("predictor", predictor)

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` and the query ``q``, both (B, proj_output_dim)."""
        out = super().forward(X)
        z = self.projector(out["feats"])
        return {**out, "z": z, "q": self.predictor(z)}

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds the key ``k`` (B, proj_output_dim)."""
        out = super().momentum_forward(X)
        return {**out, "k": self.momentum_projector(out["feats"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The symmetric contrastive loss of the two views plus the probe's."""
        out = super().training_step(batch, batch_idx)
        (q1, q2), (k1, k2) = out["q"], out["momentum_k"]
        temperature = self.cfg.method_kwargs.temperature
        contrast = cross_view_loss(q1, k2, temperature) + cross_view_loss(q2, k1, temperature)
        loss = 2 * temperature * contrast
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]


def _head(*sizes: int, last_norm: bool = True) -> nn.Sequential:
    """Make an MLP without biases and with batch normalisation.

    Args:
        sizes: widths from input to output.
        last_norm: whether to normalise the output too, without learnt scale and shift.
    """
    layers = mlp(*sizes, norm=True, hidden_bias=False, bias=False)
    return nn.Sequential(*layers, nn.BatchNorm1d(sizes[-1], affine=False)) if last_norm else layers
