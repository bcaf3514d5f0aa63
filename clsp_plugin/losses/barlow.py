"""Barlow Twins' loss."""

import torch
import torch.nn.functional as F

from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.precision import in_float32

__all__ = ["barlow_loss"]


@in_float32
def barlow_loss(
    z1: torch.Tensor, z2: torch.Tensor, lamb: float = 0.0051, scale_loss: float = 0.024
) -> torch.Tensor:
    """Barlow Twins' redundancy-reduction loss (Zbontar et al., ICML 2021, eq. 1).

    With ``C_ij = mean_b n(z_1)_bi n(z_2)_bj``, where ``n`` standardises each feature over the
    batch (plus 1e-5 on its variance)::

        loss = scale_loss * ( sum_i (1 - C_ii)^2 + lamb * sum_{i != j} C_ij^2 )

    The paper has no ``scale_loss``; its code and solo-learn do.

    Args:
        z1: (B, D) embeddings of view 1, B > 1.
        z2: (B, D) embeddings of view 2.
        lamb: weight of the off-diagonal entries.
        scale_loss: factor of the whole loss.

    Returns:
        The loss, a scalar. With a process group, ``C`` is computed over the batch of all
        processes.
    """
    z1, z2 = (F.batch_norm(gather(z), None, None, training=True) for z in (z1, z2))
    correlation = z1.T @ z2 / len(z1)
    identity = torch.eye(len(correlation), device=z1.device)
    weight = identity + lamb * (1 - identity)
    return scale_loss * (weight * (correlation - identity).square()).sum()
