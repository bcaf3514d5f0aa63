"""ReSSL: relational self-supervised learning (Zheng et al., NeurIPS 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import MISSING, DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.ressl import ressl_loss
from clsp_plugin.methods.base import BaseMomentumMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.queue import Queue
from clsp_plugin.methods.registry import register_method


@register_method("ressl")
class ReSSL(Queue, BaseMomentumMethod):
    """Matches the similarities of view 1 to past keys with the similarities of view 2 to them.

    See :func:`ressl_loss` for the formula. View 1 is strongly augmented, by the configuration's
    first augmentation; view 2 is weakly augmented, by the second.
    """

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of ReSSL.

        Attributes:
            temperature_q: temperature of the query, the strongly augmented view.
            temperature_k: temperature of the key, the weakly augmented view.
            queue_size: past keys that are kept; a multiple of the batch of all processes.
        """

        temperature_q: float = ranged(MISSING, above=0)
        temperature_k: float = ranged(MISSING, above=0)
        queue_size: int = ranged(65536, low=1)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        sizes = (self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        self.add_momentum_head("projector", lambda: mlp(*sizes))
        queue = torch.randn(kwargs.queue_size, kwargs.proj_output_dim)
        self.register_queue(F.normalize(queue, dim=1))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim), unit norm."""
        out = super().forward(X)
        return {**out, "z": F.normalize(self.projector(out["feats"]), dim=-1)}

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        out = super().momentum_forward(X)
        return {**out, "z": F.normalize(self.momentum_projector(out["feats"]), dim=-1)}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The relational loss of view 1 against view 2 plus the probe's."""
        out = super().training_step(batch, batch_idx)
        query, key = out["z"][0], out["momentum_z"][1]
        kwargs = self.cfg.method_kwargs
        # a copy, since enqueueing would change what the backward pass needs
        queue = self.queue.clone()
        loss = ressl_loss(query, key, queue, kwargs.temperature_q, kwargs.temperature_k)
        self.enqueue((self.queue, key))
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]
