"""LeJEPA's loss: agreement of views, and embeddings that are distributed like a Gaussian."""

from collections.abc import Sequence

import torch

from clsp_plugin.losses.distributed import gather
from clsp_plugin.losses.precision import in_float32

__all__ = ["lejepa_loss", "sigreg"]


def sigreg(
    z: torch.Tensor, directions: torch.Tensor, knots: int = 17, t_max: float = 3.0
) -> torch.Tensor:
    """Measure how far embeddings are from a standard Gaussian, along random directions.

    The statistic of Epps and Pulley (Biometrika 1983) of each direction's projections ``x``,

    ``N * integral over [-t_max, t_max] of |mean_n exp(i t x_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)``,

    by the trapezoidal rule, averaged over the directions: SIGReg of Balestriero and LeCun,
    "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics" (2025).

    Args:
        z: (..., N, D) embeddings; each leading index is a sample of its own.
        directions: (D, M) of unit norm each.
        knots: points of the integral in [0, t_max], at least 2.
        t_max: largest frequency, above 0.

    Returns:
        A scalar, not below 0.
    """
    x = z @ directions.to(z.dtype)
    t = torch.linspace(0, t_max, knots, device=z.device, dtype=z.dtype)
    target = torch.exp(-t.square() / 2)
    rule = torch.full_like(t, 2 * t_max / (knots - 1))  # the integrand is even
    for edge in (rule[0], rule[-1]):  # filled: for an assignment the host would wait for a GPU
        edge.fill_(t_max / (knots - 1))
    angles = x.unsqueeze(-1) * t
    real, imaginary = angles.cos().mean(-3), angles.sin().mean(-3)
    distance = (real - target).square() + imaginary.square()
    return (x.shape[-2] * distance @ (rule * target)).mean()


@in_float32
def lejepa_loss(
    views: Sequence[torch.Tensor],
    large: int,
    directions: torch.Tensor,
    sigreg_weight: float = 0.05,
    knots: int = 17,
    t_max: float = 3.0,
) -> torch.Tensor:
    """LeJEPA's loss (Balestriero and LeCun, 2025).

    ``(1 - lambda) * mean_v |z_v - centre|^2 / D + lambda * SIGReg(z)``, where ``centre`` is the
    mean of the embeddings of an image's large views, and SIGReg the mean over the views of
    :func:`sigreg`. No gradient is stopped.

    Args:
        views: (B, D) embeddings of each view of the images, the large ones first.
        large: how many of them are large, at least 1.
        directions: (D, M), see :func:`sigreg`; the same in every process.
        sigreg_weight: lambda, in [0, 1].
        knots: see :func:`sigreg`.
        t_max: see :func:`sigreg`.

    Returns:
        The loss, a scalar. With a process group, SIGReg is computed over the batch of all
        processes.
    """
    z = torch.stack(list(views))
    agreement = (z - z[:large].mean(0)).square().mean()
    everything = torch.stack([gather(view) for view in views])
    gaussian = sigreg(everything, directions, knots, t_max)
    return (1 - sigreg_weight) * agreement + sigreg_weight * gaussian
