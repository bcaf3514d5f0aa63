"""Which of several candidates: by how similar they are to their anchor."""

import torch

__all__ = ["at_quantile"]


def at_quantile(similarity: torch.Tensor, quantile: float, number: int = 1) -> torch.Tensor:
    """Choose candidates at a quantile of their similarity to the anchor.

    Of n candidates in the order of their similarity those of ``number`` successive ranks are
    chosen, beginning at the rank nearest to ``quantile * (n - number)``.

    Args:
        similarity: (B, n), of each anchor and its candidates.
        quantile: 0 for the least similar, the hardest positives; 1 for the most similar.
        number: how many to choose, 1 to n.

    Returns:
        int64 (B, number), their positions among the n, the least similar first.
    """
    first = round(quantile * (similarity.shape[1] - number))
    return similarity.argsort(dim=1, stable=True)[:, first : first + number]
