"""L2-regularised multinomial logistic regression on cached features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import Features
from clsp_plugin.system.progress import Progress

__all__ = ["L2", "Classifier", "fit_logistic"]

# 45 values, spaced evenly in their logarithm, from 1e-6 to 1e5.
L2 = tuple(10.0 ** (-6 + 11 * step / 44) for step in range(45))
_TOLERANCE = 1e-5  # the solver ends where no entry of the gradient is larger


@dataclass(frozen=True)
class Classifier:
    """A linear layer.

    Attributes:
        weight: float32 (C, D).
        bias: float32 (C,).
        converged: whether the solver ended before it reached ``max_iter`` steps.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    converged: bool = True

    @torch.no_grad()
    def scores(self, test: Features) -> dict[str, float]:
        """Return ``top1`` and ``mean_class`` in percent, on the plain images (view 0).

        ``mean_class`` is the mean of each class's top-1, over the classes that ``test`` has.
        """
        hits = (test.feats[0] @ self.weight.T + self.bias).argmax(1) == test.targets
        number = len(self.weight)
        right = test.targets[hits].bincount(minlength=number).double()
        every = test.targets.bincount(minlength=number).double()
        own = right[every > 0] / every[every > 0]
        return {
            "top1": 100.0 * right.sum().item() / len(test),
            "mean_class": 100.0 * own.mean().item(),
        }


def fit_logistic(
    train: Features,
    classes: int,
    l2: Sequence[float],
    *,
    max_iter: int = 1000,
    device: torch.device | str = "cpu",
    desc: str = "",
) -> dict[float, Classifier]:
    """Fit a linear layer for every weight of the L2 penalty, by L-BFGS.

    With the features x of image i, its class y, N images and a weight ``a`` of the penalty::

        min over W, b of   1/N sum_i -log softmax(W x_i + b)[y_i]  +  a/2 ||W||^2

    The bias is not penalised. This is the classifier of Kornblith et al. (CVPR 2019) and of SimCLR
    (ICML 2020, B.8.1) up to how ``a`` is scaled. The strongest penalty is fitted first, and each
    fit starts from the solution of the one before. The minimum is unique, so this only saves time.

    Args:
        train: plain features (view 0) and targets, each class below ``classes``.
        classes: C.
        l2: the values of ``a``, each above 0.
        max_iter: largest number of solver steps for one value.
        device: where the solver runs; the classifiers come back to the CPU.
        desc: title of the progress bar; no bar if empty.

    Returns:
        The values of ``l2``, strongest first, to their classifiers.

    Raises:
        ClspError: there is no value or one that is not above 0, or ``max_iter`` is below 1.
    """
    values = sorted({float(value) for value in l2}, reverse=True)
    if not values or not all(0 < value < float("inf") for value in values):
        raise ClspError(f"l2={list(l2)} must be one or more numbers above 0.")
    if max_iter < 1:
        raise ClspError(f"max_iter={max_iter} must be at least 1.")
    x, y = train.feats[0].to(device), train.targets.to(device)
    # The solver is faster on centred features; the bias takes up the shift afterwards.
    centre = x.mean(0)
    x = x - centre
    weight, bias = x.new_zeros(classes, train.dim), x.new_zeros(classes)
    out = {}
    for value in Progress(values, desc=desc, disable=not desc, unit="fit"):
        converged = _minimise(weight, bias, x, y, value, max_iter)
        shifted = bias - weight @ centre
        out[value] = Classifier(weight.cpu().clone(), shifted.cpu(), converged)
    return out


def _minimise(
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    l2: float,
    max_iter: int,
) -> bool:
    """Minimise the loss in place, and return whether the solver ended before ``max_iter`` steps.

    The solver sees rescaled weights, so that the loss curves about as much along them as along the
    biases. Without that, in float32, a strong penalty or large features would stop it far from the
    minimum.
    """
    unit = (l2 + x.square().mean().item()) ** -0.5
    scaled = (weight / unit).requires_grad_()
    parameters = [scaled, bias.requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters, max_iter=max_iter, max_eval=25 * max_iter, tolerance_grad=_TOLERANCE,
        tolerance_change=1e-12, history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> torch.Tensor:
        solver.zero_grad()
        weight = unit * scaled
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    weight.copy_(unit * scaled.detach())
    bias.requires_grad_(False).grad = None
    return solver.state[scaled]["n_iter"] < max_iter
