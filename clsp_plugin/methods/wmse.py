"""W-MSE: whitening for self-supervision (Ermolov et al., ICML 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.errors import ClspError
from clsp_plugin.losses.alignment import alignment_loss
from clsp_plugin.methods.base import WIDTH, BaseMethod, ProjectorKwargs, mlp
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.whitening import whiten
from clsp_plugin.system.devices import to_device


@register_method("wmse")
class WMSE(BaseMethod):
    """Attracts whitened embeddings of the views of an image; the whitening prevents collapse.

    ``loss = mean over pairs of views u < v of 2 - 2 cos(w_u, stopgrad(w_v))`` with ``w`` the
    embeddings after :func:`whiten`. Each process splits its batch at random into parts of
    ``whitening_size`` images, the same for all views, and whitens each part of a view on its own;
    this is repeated ``whitening_iters`` times with new parts. The stopped gradient is
    solo-learn's; the paper has none.
    """

    takes_more_views = True

    @dataclass
    class Kwargs(ProjectorKwargs):
        """Settings of W-MSE.

        Attributes:
            whitening_iters: how often a batch is split anew and whitened.
            whitening_size: images that are whitened together; divides the batch of a process.
            whitening_eps: shrinkage of the covariance to the identity.
        """

        whitening_iters: int = ranged(1, low=0)
        whitening_size: int = ranged(256, WIDTH)
        whitening_eps: float = ranged(0.0, low=0)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = self.cfg.method_kwargs
        sizes = (self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim)
        self.add_head("projector", mlp(*sizes, norm=True))

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        cfg = super().add_and_assert_specific_cfg(cfg)
        _check_whitening(cfg.method_kwargs, cfg.optimizer.batch_size)
        return cfg

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds ``z`` (B, proj_output_dim)."""
        out = super().forward(X)
        return {**out, "z": self.projector(out["feats"])}

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> torch.Tensor:
        """The distances between whitened views plus the probe's loss."""
        out = super().training_step(batch, batch_idx)
        kwargs = self.cfg.method_kwargs
        views = out["z"][: self.num_large_crops]
        distances = []
        for _ in range(kwargs.whitening_iters):
            # from the global generator, which the engine seeds for every step
            parts = torch.randperm(len(views[0])).view(-1, kwargs.whitening_size)
            parts = to_device(parts, views[0].device)
            whitened = [whiten(z[parts], kwargs.whitening_eps).flatten(0, 1) for z in views]
            distances += [alignment_loss(w, v.detach()) for w, v in combinations(whitened, 2)]
        loss = torch.stack(distances).mean()
        self.log_epoch(train_loss=loss)
        return loss + out["loss"]


def _check_whitening(kwargs: DictConfig, batch_size: int) -> None:
    size, dim = kwargs.whitening_size, kwargs.proj_output_dim
    if kwargs.whitening_iters < 1:
        raise ClspError(
            f"method_kwargs.whitening_iters={kwargs.whitening_iters} must be at least 1."
        )
    if size < 1 or batch_size % size:
        raise ClspError(
            f"method_kwargs.whitening_size={size} does not divide the {batch_size} images of a "
            f"batch; set it to a divisor of optimizer.batch_size."
        )
    if not 0 <= kwargs.whitening_eps <= 1:
        raise ClspError(
            f"method_kwargs.whitening_eps={kwargs.whitening_eps} is not between 0 and 1."
        )
    if size <= dim and kwargs.whitening_eps == 0:
        raise ClspError(
            f"method_kwargs.whitening_size={size} images cannot whiten {dim} features, their "
            f"covariance is singular; set method_kwargs.whitening_size above "
            f"method_kwargs.proj_output_dim, or a whitening_eps above 0."
        )
