"""All4One's loss on features."""

import torch
import torch.nn.functional as F

from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.precision import in_float32
from clsp_plugin.losses.vicreg import off_diagonal

__all__ = ["feature_contrast_loss"]


@in_float32
def feature_contrast_loss(
    z1: torch.Tensor, z2: torch.Tensor, k1: torch.Tensor, k2: torch.Tensor
) -> torch.Tensor:
    """Match each feature of a view to the same feature of the other view's momentum embedding.

    Different features are pushed towards orthogonality. All4One (Estepa et al., ICCV 2023) as in
    solo-learn: with ``C_1 = n(k_1)^T n(z_2)`` and ``C_2 = n(k_2)^T n(z_1)``, where ``n`` brings
    each feature to unit norm over the batch::

        loss = 5 * sqrt( mean over C_1 and C_2 of (1 - C_ii)^2 )
             + 5 * sqrt( mean over C_1 and C_2 of C_ij^2, i != j )

    Args:
        z1: (B, D) embeddings of view 1.
        z2: (B, D) embeddings of view 2.
        k1: (B, D) momentum embeddings of view 1.
        k2: (B, D) momentum embeddings of view 2.

    Returns:
        The loss, a scalar. With a process group, it is computed over the batch of all processes.
    """
    z1, z2, k1, k2 = (F.normalize(gather(x), dim=0) for x in (z1, z2, k1, k2))
    products = (k1.T @ z2, k2.T @ z1)
    on = torch.stack([(1 - c.diagonal()).square().mean() for c in products]).mean()
    off = torch.stack([off_diagonal(c).square().mean() for c in products]).mean()
    return 5 * (on.sqrt() + off.sqrt())
