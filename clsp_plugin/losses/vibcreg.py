"""VIbCReg's loss."""

import torch
import torch.nn.functional as F

from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.precision import in_float32
from clsp_plugin.losses.vicreg import off_diagonal, variance_loss

__all__ = ["vibcreg_loss"]


def _correlation_loss(z: torch.Tensor) -> torch.Tensor:
    """Return ``sum_{i != j} corr(z)_ij^2 / D^2`` for z (B, D)."""
    z = F.normalize(z - z.mean(dim=0), dim=0)
    return off_diagonal(z.T @ z).square().sum() / z.shape[1] ** 2


@in_float32
def vibcreg_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 200.0,
) -> torch.Tensor:
    """VICReg with correlations in place of covariances (Lee and Aune, 2021).

    ``loss = sim * s(z_1, z_2) + var * (v(z_1) + v(z_2)) + cov * (c(z_1) + c(z_2))`` with ``s`` and
    ``v`` of :func:`~clsp_plugin.losses.vicreg.vicreg_loss` and
    ``c(z) = sum_{i != j} corr(z)_ij^2 / D^2``, as in solo-learn.

    Args:
        z1: (B, D) embeddings of view 1, B > 1.
        z2: (B, D) embeddings of view 2.
        sim_loss_weight: weight of the invariance term.
        var_loss_weight: weight of the variance term.
        cov_loss_weight: weight of the correlation term.

    Returns:
        The loss, a scalar. With a process group, variance and correlation are computed over the
        batch of all processes.
    """
    invariance = F.mse_loss(z1, z2)
    z1, z2 = gather(z1), gather(z2)
    variance = variance_loss(z1) + variance_loss(z2)
    correlation = _correlation_loss(z1) + _correlation_loss(z2)
    return sim_loss_weight * invariance + var_loss_weight * variance + cov_loss_weight * correlation
