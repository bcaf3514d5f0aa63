"""SwAV: swapped assignments between views (Caron et al., NeurIPS 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.losses.distributed import gather, rank
from clsp_plugin.losses.prototypes import sinkhorn, swapped_prediction_loss
from clsp_plugin.methods.base import WIDTH, BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.prototypes import Prototypes
from clsp_plugin.methods.queue import Queue
from clsp_plugin.methods.registry import register_method


@register_method("swav")
class SwAV(Queue, BaseMethod):
    """Every view predicts which prototypes the other large views are assigned to.

    Assignments are balanced over the images of all processes and, from ``epoch_queue_starts`` on,
    a queue of past embeddings; see :func:`sinkhorn` and :func:`swapped_prediction_loss` for the
    formulas. solo-learn's queue starts with zeros, which it assigns as if they were images; here
    entries that are not filled yet are left out.
    """

    takes_small_crops = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of SwAV.

        Attributes:
            temperature: temperature of the predictions.
            num_prototypes: number of prototypes.
            sk_epsilon: entropy regularisation of the assignment; the smaller, the harder.
            sk_iters: iterations of the assignment.
            queue_size: past embeddings that are kept; a multiple of the batch of all processes, or
                0 for none.
            epoch_queue_starts: number of first epochs without the queue.
            freeze_prototypes_epochs: number of first epochs in which the prototypes do not learn.
        """

        temperature: float = ranged(0.1, above=0)
        num_prototypes: int = ranged(3000, WIDTH)
        sk_epsilon: float = ranged(0.05, above=0)
        sk_iters: int = ranged(3, low=1)
        queue_size: int = ranged(65536, low=0)
        epoch_queue_starts: int = ranged(15, low=0)
        freeze_prototypes_epochs: int = ranged(1, low=0)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.kwargs = kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.add_head("projector", mlp(self.features_dim, hidden, out, norm=True))
        self.add_head("prototypes", Prototypes(out, kwargs.num_prototypes))
        self.register_queue(torch.zeros(kwargs.queue_size, self.num_large_crops, out))

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim), unit norm, and its scores ``p`` (B, num_prototypes)."""
        out = super().forward(X)
        z = F.normalize(self.projector(out["feats"]), dim=-1)
        return {**out, "z": z, "p": self.prototypes(z)}

    @torch.no_grad()
    def _assign(self, scores: torch.Tensor, view: int) -> torch.Tensor:
        """Return balanced assignments of this process's images, (B, num_prototypes)."""
        everything = gather(scores.detach())
        if self.current_epoch >= self.kwargs.epoch_queue_starts:
            queued = self.queue[:, view]
            queued = self.prototypes(queued[queued.any(dim=1)])  # entries not filled yet are zero
            everything = torch.cat([everything, queued.to(everything.dtype)])
        q = sinkhorn(everything, self.kwargs.sk_epsilon, self.kwargs.sk_iters)
        return q[rank() * len(scores) :][: len(scores)]

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The swapped prediction over all views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        large = range(self.num_large_crops)
        targets = [self._assign(out["p"][view], view) for view in large]
        loss = swapped_prediction_loss(out["p"], targets, self.kwargs.temperature)
        if self.queue_size:
            self.enqueue((self.queue, torch.stack([out["z"][view] for view in large], dim=1)))
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]

    def on_after_backward(self) -> None:
        super().on_after_backward()
        if self.current_epoch < self.kwargs.freeze_prototypes_epochs:
            for parameter in self.prototypes.parameters():
                parameter.grad = None
