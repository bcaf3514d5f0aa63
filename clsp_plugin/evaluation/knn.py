"""The weighted nearest-neighbour classifier on cached features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from clsp_plugin.errors import ClspError

__all__ = ["weighted_knn"]

_CHUNK = 2**23  # similarities held at once: 32 MiB

_OVERFLOWS = 0.0125  # 1 / 80, and float32 holds exp(80); cosines are at most 1


@torch.no_grad()
def weighted_knn(
    train_feats: torch.Tensor,
    train_targets: torch.Tensor,
    test_feats: torch.Tensor,
    test_targets: torch.Tensor,
    ks: Sequence[int],
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> dict[int, tuple[float, float]]:
    """Classify by the k most similar training images (Wu et al., CVPR 2018, section 3.4).

    With the cosine similarity ``s`` and the neighbours ``N_k(x)``, class ``c`` gets::

        votes_c(x) = sum_{i in N_k(x), y_i = c} exp(s(x, x_i) / temperature)

    The neighbours are searched once, for the largest k. A k above the number of training images
    counts as that number, and top-5 looks at ``min(5, k, classes)`` predictions, classes with equal
    votes in the order of their numbers: both as in solo-learn. (With a small k few classes have any
    vote, and top-5 says little.)

    Args:
        train_feats: features of the bank, (N, D), of any norm.
        train_targets: int64 (N,).
        test_feats: features to classify, (M, D).
        test_targets: int64 (M,).
        ks: numbers of neighbours, each at least 1.
        temperature: temperature of the votes, above 0.
        num_classes: number of classes; by default one more than the largest training target.

    Returns:
        For each k: top-1 and top-5 accuracy in percent.

    Raises:
        ClspError: there is no k, or one below 1.
    """
    if not ks or min(ks) < 1:
        raise ClspError(f"k={list(ks)} is not a list of numbers of neighbours of 1 or more.")
    assert len(train_feats) == len(train_targets)
    assert len(test_feats) == len(test_targets)
    num_classes = num_classes or int(train_targets.max()) + 1
    train = F.normalize(train_feats.float(), dim=1)
    chunk = max(1, _CHUNK // len(train))
    hits = {k: [0, 0] for k in ks}
    for start in range(0, len(test_feats), chunk):
        test = F.normalize(test_feats[start : start + chunk].float(), dim=1)
        similar, neighbours = (test @ train.T).topk(min(max(ks), len(train)), dim=1)
        # at small temperatures exp would overflow; a common factor changes no vote
        shift = similar[:, :1] if temperature < _OVERFLOWS else 0.0
        weights, labels = ((similar - shift) / temperature).exp(), train_targets[neighbours]
        targets = test_targets[start : start + chunk, None]
        votes = test.new_zeros(len(test), num_classes)
        counted = 0
        for k in sorted(hits):
            now = min(k, len(train))
            votes.scatter_add_(1, labels[:, counted:now], weights[:, counted:now])
            counted = now
            hit = votes.argsort(dim=1, descending=True, stable=True) == targets
            hits[k][0] += int(hit[:, 0].sum())
            hits[k][1] += int(hit[:, : min(5, now)].sum())
    total = len(test_feats)
    return {k: (100.0 * top1 / total, 100.0 * top5 / total) for k, (top1, top5) in hits.items()}
