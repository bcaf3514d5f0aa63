"""NNBYOL: BYOL with nearest neighbours (Dwibedi et al., ICCV 2021)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from clsp_plugin.methods.base import BaseMomentumMethod, check_method_kwargs
from clsp_plugin.methods.byol import BYOL, KWARGS
from clsp_plugin.methods.queue import NearestNeighbours, check_queue_size
from clsp_plugin.methods.registry import register_method


@register_method("nnbyol")
class NNBYOL(NearestNeighbours, BYOL):
    """The predictor regresses the nearest past momentum embedding to the other view's.

    ``method_kwargs``: those of BYOL, and ``queue_size`` (default 65536; a multiple of the batch
    of all processes).
    """

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.register_support_set(self.cfg.method_kwargs.proj_output_dim)

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        cfg = BaseMomentumMethod.add_and_assert_specific_cfg(cfg)
        cfg = check_method_kwargs(cfg, {**KWARGS, "queue_size": 65536})
        check_queue_size(cfg)
        return cfg

    @torch.no_grad()
    def momentum_forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """As BYOL's, with ``z`` of unit norm."""
        out = super().momentum_forward(X)
        return {**out, "z": F.normalize(out["z"], dim=-1)}

    def regression_targets(
        self, out: dict[str, Any], targets: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        return [found[:, 0] for found in self.neighbours(out["momentum_z"], targets)]
