"""VIbCReg's loss."""

import torch
import torch.nn.functional as F

from clsp_plugin.losses.precision import in_float32
from clsp_plugin.losses.vicreg import off_diagonal, regularized_invariance

__all__ = ["vibcreg_loss"]


def _correlation_loss(z: torch.Tensor) -> torch.Tensor:
    """Return ``sum_{i != j} corr(z)_ij^2 / D^2`` for z (B, D)."""
    z = F.normalize(z - z.mean(dim=0), dim=0)
    return off_diagonal(z.T @ z).square().sum() / z.shape[1] ** 2


@in_float32
def vibcreg_loss(
    *views: torch.Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 200.0,
) -> torch.Tensor:
    """VICReg with correlations in place of covariances (Lee and Aune, 2021).

    ``loss = sim * s(z_1, z_2) + var * (v(z_1) + v(z_2)) + cov * (c(z_1) + c(z_2))`` with ``s`` and
    ``v`` of :func:`~clsp_plugin.losses.vicreg.vicreg_loss` and
    ``c(z) = sum_{i != j} corr(z)_ij^2 / D^2``, as in solo-learn. Of more
    than two views it is the mean over their pairs.

    Args:
        views: (B, D) embeddings of two or more views, B > 1.
        sim_loss_weight: weight of the invariance term.
        var_loss_weight: weight of the variance term.
        cov_loss_weight: weight of the correlation term.

    Returns:
        The loss, a scalar. With a process group, variance and correlation are computed over the
        batch of all processes.
    """
    return regularized_invariance(
        views, _correlation_loss, sim_loss_weight, var_loss_weight, cov_loss_weight
    )
