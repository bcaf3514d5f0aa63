"""SwAV: swapped assignments between views (Caron et al., NeurIPS 2020)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from clsp_plugin.errors import ClspError
from clsp_plugin.losses.distributed import gather, rank
from clsp_plugin.losses.prototypes import sinkhorn, swapped_prediction_loss
from clsp_plugin.methods.base import BaseMethod, check_method_kwargs, mlp
from clsp_plugin.methods.prototypes import Prototypes


class SwAV(BaseMethod):
    """Every view predicts which prototypes the large views are assigned to.

    Assignments are even over the images of all processes and, later, a queue of past ones; see
    :func:`sinkhorn` and :func:`swapped_prediction_loss` for the formulas. solo-learn starts its
    queue with zeros and assigns them as if they were images; here only what was queued counts.

    ``method_kwargs``: ``proj_hidden_dim``, ``proj_output_dim`` (sizes of the projector),
    ``temperature`` (default 0.1), ``num_prototypes`` (default 3000), ``sk_epsilon`` (default
    0.05) and ``sk_iters`` (default 3) of the assignment, ``queue_size`` in images of all
    processes (default 65536; 0: none), ``epoch_queue_starts`` (default 15),
    ``freeze_prototypes_epochs`` (default 1; prototypes do not learn before).
    """

    takes_small_crops = True

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.kwargs = kwargs = self.cfg.method_kwargs
        hidden, out = kwargs.proj_hidden_dim, kwargs.proj_output_dim
        self.projector = mlp(self.features_dim, hidden, out, norm=True)
        self.prototypes = Prototypes(out, kwargs.num_prototypes)
        self.register_buffer("queue", torch.zeros(self.num_large_crops, kwargs.queue_size, out))
        self.register_buffer("queued", torch.zeros(1, dtype=torch.long))  # ever, in images

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        cfg = BaseMethod.add_and_assert_specific_cfg(cfg)
        cfg = check_method_kwargs(
            cfg,
            {
                "proj_hidden_dim": int,
                "proj_output_dim": int,
                "temperature": 0.1,
                "num_prototypes": 3000,
                "sk_epsilon": 0.05,
                "sk_iters": 3,
                "queue_size": 65536,
                "epoch_queue_starts": 15,
                "freeze_prototypes_epochs": 1,
            },
        )
        if cfg.method_kwargs.sk_iters < 1 or not cfg.method_kwargs.sk_epsilon > 0:
            raise ClspError(
                f"method_kwargs.sk_iters={cfg.method_kwargs.sk_iters} must be at least 1 and "
                f"sk_epsilon={cfg.method_kwargs.sk_epsilon} above 0."
            )
        _check_queue(cfg.method_kwargs.queue_size, cfg.optimizer.batch_size)
        return cfg

    @property
    def learnable_params(self) -> list[dict[str, Any]]:
        return [
            *super().learnable_params,
            {"name": "projector", "params": self.projector.parameters()},
            {"name": "prototypes", "params": self.prototypes.parameters()},
        ]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        step = self.cfg.optimizer.batch_size * self.trainer.world_size
        _check_queue(self.kwargs.queue_size, step)

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim), unit norm, and its scores ``p`` (B, num_prototypes)."""
        out = super().forward(X)
        z = F.normalize(self.projector(out["feats"]), dim=-1)
        return {**out, "z": z, "p": self.prototypes(z)}

    @torch.no_grad()
    def _assign(self, scores: torch.Tensor, view: int) -> torch.Tensor:
        """Even assignments of this process's images: (B, num_prototypes)."""
        everything = gather(scores.detach())
        if self.current_epoch >= self.kwargs.epoch_queue_starts:
            filled = min(int(self.queued), self.kwargs.queue_size)
            queued = self.prototypes(self.queue[view, :filled])
            everything = torch.cat([everything, queued.to(everything.dtype)])
        q = sinkhorn(everything, self.kwargs.sk_epsilon, self.kwargs.sk_iters)
        return q[rank() * len(scores) :][: len(scores)]

    @torch.no_grad()
    def _enqueue(self, z: torch.Tensor) -> None:
        """Replace the oldest embeddings: (large crops, B, D) of all processes."""
        if self.kwargs.queue_size == 0:
            return
        places = torch.arange(z.shape[1], device=z.device) + self.queued
        self.queue[:, places % self.kwargs.queue_size] = z.to(self.queue.dtype)
        self.queued += z.shape[1]

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The swapped prediction over all views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        large = range(self.num_large_crops)
        targets = [self._assign(out["p"][view], view) for view in large]
        loss = swapped_prediction_loss(out["p"], targets, self.kwargs.temperature)
        self._enqueue(torch.stack([gather(out["z"][view].detach()) for view in large]))
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]

    def on_after_backward(self) -> None:
        super().on_after_backward()
        if self.current_epoch < self.kwargs.freeze_prototypes_epochs:
            for parameter in self.prototypes.parameters():
                parameter.grad = None


def _check_queue(queue_size: int, step: int) -> None:
    if queue_size and queue_size < step:
        raise ClspError(
            f"method_kwargs.queue_size={queue_size} does not hold the {step} images of a step; "
            f"set method_kwargs.queue_size={step} or more, or 0 for none."
        )
