"""StableRep's loss: a cross entropy whose target is spread over several positives."""

from collections.abc import Callable

import torch

from clsp_plugin.losses.nt_xent import similarities

__all__ = ["multi_positive_loss"]


def multi_positive_loss(
    z: torch.Tensor,
    indexes: torch.Tensor,
    temperature: float,
    weigh: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """StableRep's multi-positive contrastive loss (Tian et al., NeurIPS 2023).

    For a row ``i`` with positives ``P(i)`` (other rows of the same image) and the cosine
    similarity ``s``::

        q_ij = exp(s_ij / T) / sum_{k != i} exp(s_ik / T)
        p_ij = 1 / |P(i)| for j in P(i), 0 for other rows
        loss_i = - sum_j p_ij log q_ij

    averaged over the rows. With one positive a row this is NT-Xent, see :func:`nt_xent_loss`; with
    more it asks for all of them, where NT-Xent, which sums inside of the logarithm, is content with
    the nearest. SynCLR (Tian et al., CVPR 2024) has the same loss.

    Args:
        z: (V * B, D) embeddings of any norm, the views one after another; V > 1.
        indexes: int64 (V * B,), the index of the image that each row shows.
        temperature: T > 0.
        weigh: from a mask of the positive pairs, bool (V * B, V * B * world size), to their weights
            of mean 1; ``p_ij`` is multiplied by them. None weighs all alike.

    Returns:
        The loss, a scalar. With a process group, negatives come from all processes.

    Example:
        >>> z = torch.eye(2).repeat(2, 1)
        >>> round(multi_positive_loss(z, torch.tensor([0, 1, 0, 1]), 1.0).item(), 4)
        0.5514
    """
    logits, positive, itself = similarities(z, indexes, temperature)
    everything = logits.masked_fill(itself, torch.finfo(logits.dtype).min).logsumexp(1)
    target = positive / positive.sum(1, keepdim=True)
    if weigh is not None:
        target = target * weigh(positive)
    return (target * (everything[:, None] - logits)).sum(1).mean()
