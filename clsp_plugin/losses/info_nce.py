"""MoCo's loss against a queue of negatives."""

import torch
import torch.nn.functional as F

__all__ = ["info_nce_loss"]


def info_nce_loss(
    query: torch.Tensor,
    key: torch.Tensor,
    queue: torch.Tensor,
    temperature: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE of a query with its key against a queue (He et al., CVPR 2020, eq. 1).

    ``loss_i = -log( exp(q_i k_i / T) / (exp(q_i k_i / T) + sum_j exp(q_i queue_j / T)) )``,
    averaged over the batch. lightly's loss keeps a queue of its own; MoCo v2+ saves one queue
    per view in its checkpoint, so this function takes the queue as an argument.

    Args:
        query: (B, D), unit norm.
        key: (B, D), unit norm; the positives.
        queue: (D, K), columns of unit norm; the negatives.
        temperature: T > 0.
        weights: (B,) weights of mean 1, which the loss of each row is multiplied by.

    Returns:
        The loss, a scalar.
    """
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.to(query.dtype)], dim=1).float() / temperature
    first = torch.zeros(len(query), dtype=torch.long, device=query.device)
    if weights is not None:
        return (weights * F.cross_entropy(logits, first, reduction="none")).mean()
    return F.cross_entropy(logits, first)
