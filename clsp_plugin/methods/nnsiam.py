"""NNSiam: SimSiam with nearest neighbours (Dwibedi et al., ICCV 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from clsp_plugin.config.rules import ranged
from clsp_plugin.methods.queue import NearestNeighbours
from clsp_plugin.methods.registry import register_method
from clsp_plugin.methods.simsiam import SimSiam


@register_method("nnsiam")
class NNSiam(NearestNeighbours, SimSiam):
    """SimSiam with each target replaced by its nearest neighbour among past embeddings."""

    @dataclass
    class Kwargs(SimSiam.Kwargs):
        """SimSiam's settings and the queue.

        Attributes:
            queue_size: past embeddings that are kept; a multiple of the batch of all processes.
        """

        queue_size: int = ranged(65536, low=1)

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        self.register_support_set(self.cfg.method_kwargs.proj_output_dim)

    def forward(self, X: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what SimSiam's returns, with ``z`` of unit norm."""
        out = super().forward(X)
        return {**out, "z": F.normalize(out["z"], dim=-1)}

    def regression_targets(
        self, out: dict[str, Any], targets: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        return [found[:, 0] for found in self.neighbours(out["z"], targets)]
