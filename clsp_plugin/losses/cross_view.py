"""InfoNCE from one view to another, used by MoCo v3, NNCLR and All4One."""

import torch
import torch.nn.functional as F

from clsp_plugin.losses.distributed import gather, rank
from clsp_plugin.losses.precision import in_float32

__all__ = ["cross_view_loss"]


@in_float32
def cross_view_loss(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE with the other images of the batch as negatives, in one direction.

    ``loss_i = -log( exp(cos(x_i, y_i) / T) / sum_j exp(cos(x_i, y_j) / T) )``, averaged over the
    rows of ``x``. MoCo v3 (Chen et al., ICCV 2021, eq. 1) passes queries as ``x`` and keys as
    ``y``, and multiplies the loss by ``2 T``; NNCLR (Dwibedi et al., ICCV 2021) passes nearest
    neighbours as ``x`` and predictions as ``y``.

    Args:
        x: (B, D), any norm.
        y: (B, D), any norm; row ``i`` is the positive of row ``i`` of ``x``.
        temperature: T > 0.

    Returns:
        The loss, a scalar. With a process group, ``y`` is gathered from all processes, with
        gradients.
    """
    y = gather(F.normalize(y, dim=-1))
    logits = F.normalize(x, dim=-1) @ y.T / temperature
    own = torch.arange(len(x), device=x.device) + len(x) * rank()
    return F.cross_entropy(logits, own)
