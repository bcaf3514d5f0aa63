"""A loss of two views for any number of them."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch

__all__ = ["mean_over_pairs"]


def mean_over_pairs(
    loss: Callable[..., torch.Tensor], views: Sequence[torch.Tensor], **settings: Any
) -> torch.Tensor:
    """Return the mean of a symmetric loss of two views over all pairs of views.

    Of two views it is the loss itself, to the last bit; with more it stays of the same size.

    Args:
        loss: takes the embeddings (B, D) of two views and returns a scalar.
        views: the embeddings (B, D) of two or more views.
        settings: further arguments of the loss.
    """
    return torch.stack([loss(a, b, **settings) for a, b in combinations(views, 2)]).mean()
