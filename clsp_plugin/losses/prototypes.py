"""Losses over prototypes: SwAV's and DINO's swapped prediction, DeepCluster-v2's assignments."""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F

__all__ = ["assignment_loss", "sinkhorn", "swapped_prediction_loss"]


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Assign images to prototypes in equal shares (Caron et al., NeurIPS 2020, eq. 3).

    ``Q = diag(u) exp(scores / epsilon) diag(v)``, where ``u`` and ``v`` are updated alternately
    so that every prototype gets the same mass and every image has mass one. Computed in
    logarithms, so that a small ``epsilon`` does not overflow.

    Args:
        scores: (B, K), cosine similarities of images and prototypes.
        epsilon: > 0; the smaller, the harder the assignment.
        iterations: number of updates of ``u`` and ``v``, at least 1.

    Returns:
        The assignments, float32 (B, K); rows sum to 1.
    """
    q = scores.float() / epsilon
    for _ in range(iterations):
        q = q - q.logsumexp(0, keepdim=True)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()


def swapped_prediction_loss(
    scores: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], temperature: float
) -> torch.Tensor:
    """Predict the target of a view from every other view.

    ``mean over targets v and views u != v of  mean_i -sum_k q_v(i, k) log softmax(p_u(i) / T)_k``:
    SwAV's loss (Caron et al., NeurIPS 2020, eq. 2) where ``q`` is :func:`sinkhorn`'s, DINO's
    (Caron et al., ICCV 2021, eq. 3) where it is the teacher's softmax.

    Args:
        scores: ``p``, one (B, K) tensor per view.
        targets: ``q``, one (B, K) tensor for each of the first (large) views; rows sum to 1.
        temperature: T > 0.

    Returns:
        The loss, a scalar.
    """
    logs = [F.log_softmax(p.float() / temperature, dim=-1) for p in scores]
    terms = [
        -(target * log).sum(-1).mean()
        for view, target in enumerate(targets)
        for other, log in enumerate(logs)
        if other != view
    ]
    return reduce(torch.add, terms) / len(terms)


def assignment_loss(
    scores: Sequence[torch.Tensor], assignments: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Classify every view into its image's cluster: DeepCluster-v2 (Caron et al., NeurIPS 2020).

    ``mean of -log softmax(p(i) / T)_a(i)`` over all views of the images ``i`` that have a
    cluster.

    Args:
        scores: ``p``, one (B, K) tensor per view.
        assignments: ``a``, int64 (B,), cluster numbers; -1 where an image has none.
        temperature: T > 0.

    Returns:
        The loss, a scalar; 0 where no image has a cluster.
    """
    logits = torch.cat(list(scores)).float() / temperature
    targets = assignments.repeat(len(scores))
    count = (targets >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / count
