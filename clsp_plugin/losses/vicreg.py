"""VICReg's loss."""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F

from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.precision import in_float32

__all__ = ["off_diagonal", "regularized_invariance", "variance_loss", "vicreg_loss"]


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return the off-diagonal entries of a (D, D) matrix, as (D * (D - 1),)."""
    size = len(matrix)
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()


def variance_loss(z: torch.Tensor) -> torch.Tensor:
    """Return ``mean_d max(0, 1 - sqrt(var(z_d) + 1e-4))`` for z (B, D); unbiased variance."""
    return F.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean()


def _covariance_loss(z: torch.Tensor) -> torch.Tensor:
    """Return ``sum_{i != j} cov(z)_ij^2 / D`` for z (B, D), with the unbiased covariance."""
    z = z - z.mean(dim=0)
    return off_diagonal(z.T @ z / (len(z) - 1)).square().sum() / z.shape[1]


def regularized_invariance(
    views: Sequence[torch.Tensor],
    redundancy_loss: Callable[[torch.Tensor], torch.Tensor],
    sim_loss_weight: float,
    var_loss_weight: float,
    cov_loss_weight: float,
) -> torch.Tensor:
    """Return VICReg's three terms of two views, or their mean over the pairs of more.

    What is of one view alone is computed once for it, whatever number of pairs it is in.

    Args:
        views: (B, D) embeddings of two or more views, B > 1.
        redundancy_loss: takes (B, D) and returns a scalar.
        sim_loss_weight, var_loss_weight, cov_loss_weight: weights of the terms.
    """
    invariance = torch.stack([F.mse_loss(a, b) for a, b in combinations(views, 2)]).mean()
    views = [gather(z) for z in views]
    of_a_pair = 2 / len(views)  # of the sum over views
    variance = of_a_pair * sum(map(variance_loss, views))
    redundancy = of_a_pair * sum(map(redundancy_loss, views))
    return sim_loss_weight * invariance + var_loss_weight * variance + cov_loss_weight * redundancy


@in_float32
def vicreg_loss(
    *views: torch.Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
) -> torch.Tensor:
    """VICReg's loss: variance, invariance and covariance terms (Bardes et al., ICLR 2022).

    ``loss = sim * s(z_1, z_2) + var * (v(z_1) + v(z_2)) + cov * (c(z_1) + c(z_2))`` with
    ``s`` the mean squared difference of entries, ``v(z) = mean_d max(0, 1 - std(z_d))`` and
    ``c(z) = sum_{i != j} cov(z)_ij^2 / D``. As in solo-learn; the paper's ``s`` sums over the
    features, and the authors' code halves ``v``. Of more than two views it is the mean over their
    pairs.

    Args:
        views: (B, D) embeddings of two or more views, B > 1.
        sim_loss_weight: weight of the invariance term.
        var_loss_weight: weight of the variance term.
        cov_loss_weight: weight of the covariance term.

    Returns:
        The loss, a scalar. With a process group, variance and covariance are computed over the
        batch of all processes.
    """
    return regularized_invariance(
        views, _covariance_loss, sim_loss_weight, var_loss_weight, cov_loss_weight
    )
