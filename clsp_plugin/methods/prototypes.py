"""Prototypes, which embeddings are compared with, and spherical k-means."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from clsp_plugin.data.keyed_random import keys_for

__all__ = ["Prototypes", "cluster"]

_ROWS = 8192  # points that are compared with all centroids at once


class Prototypes(nn.Module):
    """Maps unit embeddings (B, dim) to their cosine similarities with prototypes (B, number).

    Args:
        dim: width of the embeddings.
        number: number of prototypes.
        scaled: whether to learn a factor for each prototype's scores, which starts at 1.
    """

    def __init__(self, dim: int, number: int, scaled: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.scale = nn.Parameter(torch.ones(number)) if scaled else None

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        scores = F.linear(z, F.normalize(self.weight, dim=-1))
        return scores if self.scale is None else scores * self.scale


@torch.no_grad()
def cluster(
    points: torch.Tensor, number: int, iterations: int, key: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run k-means on the unit sphere, starting from points that ``key`` picks at random.

    Args:
        points: (N, D), unit norm; N >= number.
        number: number of clusters.
        iterations: number of updates of the centroids.
        key: the random key; see :func:`clsp_plugin.data.keyed_random.derive_key`.

    Returns:
        Assignments int64 (N,) and centroids (number, D) of unit norm. A cluster that loses all
        its points keeps its centroid.
    """
    assert len(points) >= number
    order = torch.argsort(keys_for(key, torch.arange(len(points), device=points.device)))
    centroids = points[order[:number]].clone()
    for _ in range(iterations):
        nearest = _nearest(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        held = torch.bincount(nearest, minlength=number) > 0
        centroids = torch.where(held[:, None], F.normalize(sums, dim=-1), centroids)
    return _nearest(points, centroids), centroids


def _nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return torch.cat([(rows @ centroids.T).argmax(1) for rows in points.split(_ROWS)])
