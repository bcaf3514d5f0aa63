"""All4One: neighbours, their centroids and redundancy reduction (Estepa et al., ICCV 2023)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import MISSING, DictConfig
from torch import nn

from clsp_plugin.config.rules import ranged
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.cross_view import cross_view_loss
from clsp_plugin.losses.feature import feature_contrast_loss
from clsp_plugin.methods.base import WIDTH, BaseMomentumMethod, ProjectorKwargs, mlp, spread
from clsp_plugin.methods.queue import NearestNeighbours
from clsp_plugin.methods.registry import register_method

_NEIGHBOURS = 5
_HEADS = 8
_CENTROID_TEMPERATURE = 0.1


@register_method("all4one")
class All4One(NearestNeighbours, BaseMomentumMethod):
    """Half the sum of three terms: neighbour contrast, centroid contrast, feature contrast.

    * neighbours: ``(l(nn_1, p_2) + l(nn_2, p_1)) / 2``, with ``l`` of :func:`cross_view_loss` and
      ``nn_v`` the past momentum embedding that is nearest to the momentum embedding of view ``v``;
    * centroids: ``(l(c_1, s_2) + l(c_2, s_1)) / 2`` at temperature 0.1, where a transformer
      computes ``c_v`` from the five nearest past embeddings, and ``s_v`` from a second prediction
      and the four nearest;
    * features: :func:`feature_contrast_loss`.

    As in solo-learn, the transformer's learning rate before the schedule is 0.1, whatever
    ``optimizer.lr`` is, and the positional encoding gives wavelengths to positions and varies
    along the features.
    """

    prediction = "p"

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of All4One; ``proj_output_dim`` is a multiple of 8.

        Attributes:
            pred_hidden_dim: width of the predictors' hidden layer.
            temperature: temperature of the similarities.
            queue_size: past embeddings that are kept; a multiple of the batch of all processes.
        """

        pred_hidden_dim: int = ranged(MISSING, WIDTH)
        temperature: float = ranged(MISSING, above=0)
        queue_size: int = ranged(65536, low=1)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        out, predictor = kwargs.proj_output_dim, kwargs.pred_hidden_dim
        self.add_momentum_head("projector", self._projector)
        self.add_head("predictor", mlp(out, predictor, out, norm=True))
        self.add_head("predictor2", mlp(out, predictor, out, norm=True))
        layer = nn.TransformerEncoderLayer(
            out, _HEADS, dim_feedforward=2 * out, dropout=0.1, batch_first=True
        )
        transformer = nn.TransformerEncoder(layer, num_layers=3)
        self.add_head("transformer_encoder", transformer, lr=0.1)
        self.register_buffer("encoding", _encoding(_NEIGHBOURS, out), persistent=False)
        self.register_support_set(out)

    def _projector(self) -> nn.Sequential:
        kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        layers = mlp(self.features_dim, hidden, hidden, out, norm=True)
        return nn.Sequential(*layers, nn.BatchNorm1d(out))

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        cfg = super().add_and_assert_specific_cfg(cfg)
        dim = cfg.method_kwargs.proj_output_dim
        if dim % _HEADS:
            raise ClspError(
                f"method_kwargs.proj_output_dim={dim} is not a multiple of the transformer's "
                f"{_HEADS} heads; set method_kwargs.proj_output_dim={dim // _HEADS * _HEADS or 8}."
            )
        return cfg

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` and the prediction ``p``, both (B, proj_output_dim)."""
        out = super().forward(X)
        z = self.projector(out["feats"])
        return {**out, "z": z, "p": self.predictor(z)}

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim), unit norm."""
        out = super().momentum_forward(X)
        return {**out, "z": F.normalize(self.momentum_projector(out["feats"]), dim=-1)}

    def _centroid(self, sequence: torch.Tensor) -> torch.Tensor:
        """Map a sequence (B, 5, D) to the transformer's output at the first position, (B, D)."""
        return self.transformer_encoder(sequence + self.encoding)[:, 0]

    def _centroid_loss(
        self, views: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        shifted = [
            torch.cat((self.predictor2(z)[:, None], near[:, :-1]), dim=1)
            for z, near in zip(views, found, strict=True)
        ]
        (c1, c2), (s1, s2) = map(self._centroid, found), map(self._centroid, shifted)
        first = cross_view_loss(c1, s2, _CENTROID_TEMPERATURE)
        return (first + cross_view_loss(c2, s1, _CENTROID_TEMPERATURE)) / 2

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The three terms plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        (z1, z2), (p1, p2), (k1, k2) = out["z"], out["p"], out["momentum_z"]
        temperature = self.cfg.method_kwargs.temperature
        found = self.neighbours((k1, k2), batch[2], _NEIGHBOURS)
        nn1, nn2 = (near[:, 0] for near in found)
        neighbour = (
            cross_view_loss(nn1, p2, temperature) + cross_view_loss(nn2, p1, temperature)
        ) / 2
        centroid = self._centroid_loss((z1, z2), found)
        feature = feature_contrast_loss(z1, z2, k1, k2)
        loss = (neighbour + centroid + feature) / 2
        self.log_epoch(
            train_loss=loss,
            train_nnclr_loss=neighbour,
            train_att_nnclr_loss=centroid,
            train_feature_loss=feature,
            train_z_std=spread((z1, z2)),
        )
        return loss + out["loss"]


def _encoding(length: int, dim: int) -> torch.Tensor:
    """Return sines and cosines (length, dim) along the features; two rows share a wavelength."""
    waves = math.ceil(length / 2)
    rate = 10000.0 ** (-torch.arange(waves) / waves)
    angle = rate[:, None] * torch.arange(dim)
    return torch.stack((angle.sin(), angle.cos()), dim=1).flatten(0, 1)[:length]
