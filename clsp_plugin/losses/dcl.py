"""The decoupled contrastive loss."""

import torch

from clsp_plugin.losses.nt_xent import similarities

__all__ = ["dcl_loss"]


def dcl_loss(z: torch.Tensor, indexes: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's loss without the positive in the denominator (Yeh et al., ECCV 2022).

    For a row ``i`` with positives ``P(i)`` (other rows of the same image) and the cosine
    similarity ``s``::

        loss_i = -mean_{p in P(i)} s_ip / T + log( sum_{j not in P(i), j != i} exp(s_ij / T) )

    averaged over the rows. With two views per image this is the paper's formula. Unlike
    SimCLR's loss, this one may be negative.

    Args:
        z: (V * B, D) embeddings of any norm, the views one after another.
        indexes: int64 (V * B,), the index of the image that each row shows; at least two images.
        temperature: T > 0.

    Returns:
        The loss, a scalar. With a process group, negatives come from all processes.
    """
    logits, positive, itself = similarities(z, indexes, temperature)
    lowest = torch.finfo(logits.dtype).min
    negatives = logits.masked_fill(positive | itself, lowest).logsumexp(1)
    return (negatives - (logits * positive).sum(1) / positive.sum(1)).mean()
