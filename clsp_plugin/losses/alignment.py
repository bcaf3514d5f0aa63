"""The distance of normalised embeddings, used for synthetic positives and by BYOL."""

import torch
import torch.nn.functional as F

__all__ = ["alignment_loss"]


def alignment_loss(
    x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared distance of normalised embeddings.

    ``mean_i || n(x_i) - n(y_i) ||^2 = mean_i (2 - 2 cos(x_i, y_i))``: CLSP's additional term
    (Zeng et al., ECCV 2024, eq. 3) and BYOL's regression (Grill et al., NeurIPS 2020, eq. 2).

    Args:
        x: (B, D) embeddings of any norm.
        y: (B, D) embeddings of any norm.
        weights: (B,) weights of mean 1, which the distance of each pair is multiplied by.

    Returns:
        The distance, a scalar in [0, 4] without weights.
    """
    cosine = F.cosine_similarity(x.float(), y.float(), dim=-1)
    if weights is not None:
        return (weights * (2 - 2 * cosine)).mean()
    return 2 - 2 * cosine.mean()
