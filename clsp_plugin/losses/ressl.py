"""ReSSL's loss."""

import torch

from clsp_plugin.losses.precision import in_float32

__all__ = ["ressl_loss"]


@in_float32
def ressl_loss(
    query: torch.Tensor,
    key: torch.Tensor,
    queue: torch.Tensor,
    temperature_q: float,
    temperature_k: float,
) -> torch.Tensor:
    """Relational self-supervised learning (Zheng et al., NeurIPS 2021).

    ``loss_i = -sum_j P(k_i)_j log P(q_i)_j`` with ``P(x)_j = softmax_j(x queue_j / T)`` and a
    temperature each, averaged over the batch: the query's similarities to past keys follow those
    of its image's weak view.

    Args:
        query: (B, D), unit norm, of the strong view.
        key: (B, D), unit norm, of the weak view; takes no gradient.
        queue: (K, D), unit norm.
        temperature_q: of the query, > 0.
        temperature_k: of the key, > 0 and lower, for a sharper target.

    Returns:
        The loss, a scalar.
    """
    target = (key.detach() @ queue.T / temperature_k).softmax(dim=1)
    return -(target * (query @ queue.T / temperature_q).log_softmax(dim=1)).sum(dim=1).mean()
