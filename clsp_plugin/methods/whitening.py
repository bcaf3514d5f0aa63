"""Whitening of a batch: exact by Cholesky (W-MSE), or approximate by iteration (VIbCReg)."""

import torch
from torch import nn

from clsp_plugin.losses.precision import in_float32

__all__ = ["IterNorm", "whiten"]


@in_float32
def whiten(x: torch.Tensor, eps: float = 0.0) -> torch.Tensor:
    """Give a batch zero mean and the identity as its covariance (Ermolov et al., ICML 2021).

    ``L^-1 (x - mean)`` with ``L L^T = (1 - eps) cov(x) + eps I``, the unbiased covariance.

    Args:
        x: (..., N, D); each (N, D) is whitened on its own. N > D unless ``eps`` is above 0.
        eps: shrinkage of the covariance to the identity, in [0, 1].

    Returns:
        float32, of the shape of ``x``; NaN where a covariance is not positive definite.
    """
    number, dim = x.shape[-2:]
    x = x - x.mean(dim=-2, keepdim=True)
    covariance = x.mT @ x / (number - 1)
    identity = torch.eye(dim, device=x.device)
    # torch.linalg.cholesky would make the host wait for a GPU, to raise an error
    factor, failed = torch.linalg.cholesky_ex((1 - eps) * covariance + eps * identity)
    factor = factor.masked_fill((failed != 0)[..., None, None], torch.nan)
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


class IterNorm(nn.Module):
    """Iterative normalisation (Huang et al., CVPR 2019): whitening without a decomposition.

    Each group of features is whitened on its own. With ``S = cov / tr(cov)`` of the centred batch,
    Newton's iteration ``P_{k+1} = (3 P_k - P_k^3 S) / 2`` from ``P_0 = I`` converges to
    ``S^(-1/2)``. Evaluation uses running means of the mean and of the whitening matrix. Each
    process whitens its own batch. Layer, buffers and defaults are solo-learn's; the backward pass
    is autograd's.

    Args:
        num_features: D.
        num_groups: sets the size of a group: ``(D - 1) // num_groups + 1`` features, halved
            until the size divides D.
        iterations: number of Newton iterations.
        eps: value that is added to the variances.
        momentum: share of the new batch in the running means.
    """

    running_mean: torch.Tensor
    running_wm: torch.Tensor

    def __init__(
        self,
        num_features: int,
        num_groups: int = 64,
        iterations: int = 5,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        super().__init__()
        self.iterations, self.eps, self.momentum = iterations, eps, momentum
        size = (num_features - 1) // num_groups + 1
        while num_features % size:
            size //= 2
        self.groups, self.size = num_features // size, size
        self.weight = nn.Parameter(torch.ones(1, num_features))
        self.bias = nn.Parameter(torch.zeros(1, num_features))
        self.register_buffer("running_mean", torch.zeros(self.groups, size, 1))
        self.register_buffer("running_wm", torch.eye(size).repeat(self.groups, 1, 1))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Whiten features (B, D); the result is float32 (B, D)."""
        return self._normalise(X) * self.weight + self.bias

    def _normalise(self, X: torch.Tensor) -> torch.Tensor:
        with torch.autocast(X.device.type, enabled=False):
            x = X.float().T.reshape(self.groups, self.size, -1)
            if not self.training:
                whitened = self.running_wm @ (x - self.running_mean)
                return whitened.reshape(X.shape[1], X.shape[0]).T
            mean = x.mean(dim=-1, keepdim=True)
            x = x - mean
            matrix = self._inverse_root(x)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_wm.lerp_(matrix, self.momentum)
            return (matrix @ x).reshape(X.shape[1], X.shape[0]).T

    def _inverse_root(self, x: torch.Tensor) -> torch.Tensor:
        """Return the whitening matrices (G, d, d) of centred features (G, d, B)."""
        identity = torch.eye(self.size, device=x.device)
        covariance = x @ x.mT / x.shape[-1] + self.eps * identity
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        covariance, root = covariance / trace, identity.expand_as(covariance)
        for _ in range(self.iterations):
            root = 1.5 * root - 0.5 * torch.matrix_power(root, 3) @ covariance
        return root / trace.sqrt()
