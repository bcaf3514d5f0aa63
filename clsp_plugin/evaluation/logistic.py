"""L2-regularised multinomial logistic regression on cached features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import Features

__all__ = ["L2", "Classifier", "fit_logistic"]

# 45 values, spaced evenly in their logarithm, from 1e-6 to 1e5.
L2 = tuple(10.0 ** (-6 + 11 * step / 44) for step in range(45))
_TOLERANCE = 1e-5  # of the largest entry of the gradient, as it is met


@dataclass(frozen=True)
class Classifier:
    """A linear layer.

    Attributes:
        weight: float32 (C, D).
        bias: float32 (C,).
        converged: whether the solver ended before its last step.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    converged: bool = True

    @torch.no_grad()
    def scores(self, test: Features) -> dict[str, float]:
        """In percent, on the plain images: ``top1`` and ``mean_class``.

        The latter is the mean of each class's top-1, over the classes that ``test`` has.
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
    """Fit a linear layer for every weight of the penalty, by L-BFGS.

    With the features x of image i, its class y, N images and a weight ``a`` of the penalty::

        min over W, b of   1/N sum_i -log softmax(W x_i + b)[y_i]  +  a/2 ||W||^2

    The bias is free. This is the classifier of Kornblith et al. (CVPR 2019) and of SimCLR
    (ICML 2020, B.8.1) up to how ``a`` is scaled. From the strongest penalty on each solution
    starts from the one before; the minimum is one, so that this saves time alone.

    Args:
        train: plain features (view 0) and targets, each class below ``classes``.
        classes: C.
        l2: the values of ``a``, each above 0.
        max_iter: steps of the solver for one value.
        device: where it runs; the classifiers come back to the CPU.
        desc: what the progress bar is called; none without it.

    Returns:
        The values of ``l2``, strongest first, to their classifiers.

    Raises:
        ClspError: no value or one that is not above 0, or ``max_iter`` below 1.
    """
    values = sorted({float(value) for value in l2}, reverse=True)
    if not values or not all(0 < value < float("inf") for value in values):
        raise ClspError(f"l2={list(l2)} must be one or more numbers above 0.")
    if max_iter < 1:
        raise ClspError(f"max_iter={max_iter} must be at least 1.")
    x, y = train.feats[0].to(device), train.targets.to(device)
    # A shift of the features is taken up by the bias, and without it the solver is faster.
    centre = x.mean(0)
    x = x - centre
    weight, bias = x.new_zeros(classes, train.dim), x.new_zeros(classes)
    out = {}
    for value in tqdm(values, desc=desc, disable=not desc, unit="fit"):
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
    """Minimise in place; whether it ended before ``max_iter``.

    The solver sees the weights in a unit in which they are about as stiff as the biases: in
    float32 a strong penalty or large features would stop it far from the minimum.
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
