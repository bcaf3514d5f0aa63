"""MoCo v2+: momentum contrast, symmetric (Chen et al., 2020, and Chen and He, CVPR 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.info_nce import info_nce_loss
from clsp_plugin.methods.base import BaseMomentumMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.queue import Queue
from clsp_plugin.methods.registry import register_method


@register_method("mocov2plus")
class MoCoV2Plus(Queue, BaseMomentumMethod):
    """Contrasts each view's query with the other view's key and past keys, which are queued.

    See :func:`info_nce_loss` for the formula.
    """

    weighs_pairs = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of MoCo v2+.

        Attributes:
            temperature: temperature of the similarities.
            queue_size: past keys that are kept; a multiple of the batch of all processes.
        """

        temperature: float = ranged(0.2, above=0)
        queue_size: int = ranged(65536, low=1)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        self.temperature: float = kwargs.temperature
        sizes = (self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        self.add_momentum_head("projector", lambda: mlp(*sizes))
        queue = torch.randn(2, kwargs.proj_output_dim, kwargs.queue_size)
        self.register_queue(F.normalize(queue, dim=1))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim), unit norm."""
        out = super().forward(X)
        return {**out, "z": F.normalize(self.projector(out["feats"]), dim=-1)}

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        out = super().momentum_forward(X)
        return {**out, "z": F.normalize(self.momentum_projector(out["feats"]), dim=-1)}

    def contrast(self, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
        """The loss of queries (B, D) with their keys (B, D) against a queue (D, queue_size)."""
        return info_nce_loss(query, key, queue, self.temperature, self.pair_weights)

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The symmetric contrastive loss of the two views plus the probe's."""
        out = super().training_step(batch, batch_idx)
        q1, q2 = out["z"]
        k1, k2 = out["momentum_z"]
        queue = self.queue.clone()  # enqueueing would change what the backward pass needs
        loss = (self.contrast(q1, k2, queue[1]) + self.contrast(q2, k1, queue[0])) / 2
        self.enqueue((self.queue.permute(2, 0, 1), torch.stack((k1, k2), dim=1)))
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
