"""SimCLR's loss on transformed embeddings: extrapolated positives, interpolated negatives.

"Improving Contrastive Learning by Visualizing Feature Transformation" (Zhu et al., ICCV 2021).
"""

import torch
import torch.nn.functional as F

from clsp_plugin.losses.distributed import gather

__all__ = ["draw_weight", "extrapolate", "interpolate", "transformed_nt_xent_loss"]


def draw_weight(alpha: float) -> float:
    """Draw a weight in (0, 1) from Beta(alpha, alpha) with the global random generator."""
    return torch.distributions.Beta(alpha, alpha).sample().item()


def extrapolate(
    x: torch.Tensor, y: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move two positives away from each other, on the line through them.

    ``x' = w x + (1 - w) y`` and ``y' = w y + (1 - w) x``. For unit norms and the dot product
    ``s = x y``, the new score is ``x' y' = s - 2 w (w - 1) (1 - s)``. It is lower than ``s``, so
    the positive is harder.

    Args:
        x: (B, D), unit norm.
        y: (B, D), unit norm.
        weight: w >= 1; 1 changes nothing.

    Returns:
        ``x'`` and ``y'``, not normalised again.
    """
    return weight * x + (1 - weight) * y, weight * y + (1 - weight) * x


def interpolate(negatives: torch.Tensor, order: torch.Tensor, weight: float) -> torch.Tensor:
    """Blend every negative with another: ``w n_j + (1 - w) n_order(j)``, not normalised again.

    Args:
        negatives: (N, D), unit norm.
        order: int64 (N,), a permutation.
        weight: w in [0, 1]; 1 changes nothing.
    """
    return weight * negatives + (1 - weight) * negatives[order]


def transformed_nt_xent_loss(
    z: torch.Tensor,
    indexes: torch.Tensor,
    temperature: float,
    extrapolation: float,
    interpolation: float,
    order: torch.Tensor,
) -> torch.Tensor:
    """SimCLR's loss for two views with extrapolated positives and interpolated negatives.

    With ``z'`` the extrapolated pair and ``n`` the interpolated rows, for a row ``i`` whose other
    view is ``p``::

        loss_i = -log( exp(z'_i z'_p / T) / (exp(z'_i z'_p / T) + sum_j exp(z'_i n_j / T)) )

    averaged over the rows; ``j`` runs over the rows of ``n`` that contain no part of the image
    of row ``i``.

    Args:
        z: (2 * B, D) embeddings of any norm, the views one after the other.
        indexes: int64 (2 * B,), the index of the image that each row shows.
        temperature: T > 0.
        extrapolation: the weight of :func:`extrapolate`, >= 1.
        interpolation: the weight of :func:`interpolate`, in [0, 1].
        order: int64, a permutation of the 2 * B rows of all processes.

    Returns:
        The loss, a scalar. With a process group, negatives come from all processes.
    """
    views = F.normalize(z.float(), dim=-1).chunk(2)
    # view 1 of all processes, then view 2: the order of a single process with the whole batch
    all_z = torch.cat([gather(view) for view in views])
    all_indexes = torch.cat([gather(half) for half in indexes.chunk(2)])
    first, second = extrapolate(views[0], views[1], extrapolation)
    anchors, positives = torch.cat([first, second]), torch.cat([second, first])
    negatives = interpolate(all_z, order, interpolation)
    own = indexes[:, None] == all_indexes
    own = own | own[:, order]
    scores = (anchors @ negatives.T).masked_fill(own, -torch.inf)
    positive = (anchors * positives).sum(1, keepdim=True)
    logits = torch.cat([positive, scores], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.long, device=z.device))
