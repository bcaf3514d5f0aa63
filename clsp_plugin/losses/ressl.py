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
    """Loss of relational self-supervised learning (Zheng et al., NeurIPS 2021).

    ``loss_i = -sum_j P(k_i)_j log P(q_i)_j`` with ``P(x)_j = softmax_j(x queue_j / T)``, averaged
    over the batch; query and key have separate temperatures. The query's similarities to past
    keys learn to match those of the key, which is from a weakly augmented view of the same image.

    Args:
        query: (B, D), unit norm, of the strong view.
        key: (B, D), unit norm, of the weak view; takes no gradient.
        queue: (K, D), unit norm; past keys.
        temperature_q: temperature of the query, > 0.
        temperature_k: temperature of the key, > 0; lower than ``temperature_q`` for a sharper
            target.

    Returns:
        The loss, a scalar.
    """
    target = (key.detach() @ queue.T / temperature_k).softmax(dim=1)
    return -(target * (query @ queue.T / temperature_q).log_softmax(dim=1)).sum(dim=1).mean()
