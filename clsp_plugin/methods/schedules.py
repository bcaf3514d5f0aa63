"""What changes over a training with synthetic positives: how strong they are, and which."""

import math
from typing import Any

__all__ = ["quantile_at", "strength_at"]


def strength_at(block: Any, epoch: int, epochs: int) -> float:
    """Return the share of the full weight or probability in an epoch, in [0, 1].

    It is 0 before ``from_epoch``, rises linearly to 1 over the ``warmup_epochs`` that follow, and
    then goes to ``final`` in the last epoch: with the ``schedule`` ``linear`` evenly, with
    ``cosine`` along half a cosine (slow at both ends), while ``constant`` stays at 1. By default it
    is 1 throughout, as in the paper. To rise over a whole training, warm up over all its epochs.

    Args:
        block: the ``synthetic`` settings.
        epoch: the epoch, counted from 0.
        epochs: epochs of the training.
    """
    since, warmup = epoch - block.from_epoch, block.warmup_epochs
    if since < warmup or since < 0:
        return max(0.0, since / warmup) if warmup else 0.0
    if block.schedule == "constant":
        return 1.0
    left = epochs - 1 - block.from_epoch - warmup
    done = min(1.0, (since - warmup) / left) if left > 0 else 1.0
    fallen = done if block.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return 1.0 + (block.final - 1.0) * fallen


def quantile_at(block: Any, epoch: int, epochs: int) -> float:
    """Return at which quantile of the similarity candidates are chosen: 0 is hardest, 1 easiest.

    A ``curriculum`` goes evenly from 1 in the first epoch to 0 in the last.

    Args:
        block: the ``synthetic`` settings.
        epoch: the epoch, counted from 0.
        epochs: epochs of the training.
    """
    if block.choice == "curriculum":
        return max(0.0, 1.0 - epoch / max(1, epochs - 1))
    return {"hardest": 0.0, "easiest": 1.0}.get(block.choice, block.quantile)
