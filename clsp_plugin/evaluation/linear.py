"""The linear probe on cached features."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from clsp_plugin.data.keyed_random import Purpose, derive_key, key_uniform, keys_for
from clsp_plugin.errors import ClspError
from clsp_plugin.evaluation.features import Features
from clsp_plugin.system.progress import Progress

__all__ = ["Probe", "train_probe"]

_ROWS = 4096  # test images with logits in memory at once
# Rows of weights per thread; with fewer, handing out the work takes longer than doing it.
_ROWS_A_THREAD = 256


@dataclass(frozen=True)
class Probe:
    """Linear classifiers on the same features, one per learning rate.

    Attributes:
        lrs: the learning rates, L of them.
        weights: float32 (L, C, D).
        biases: float32 (L, C).
    """

    lrs: tuple[float, ...]
    weights: torch.Tensor
    biases: torch.Tensor

    @property
    def finite(self) -> tuple[bool, ...]:
        """For each learning rate, whether the weights and biases are finite."""
        return tuple(
            bool(torch.isfinite(weight).all() and torch.isfinite(bias).all())
            for weight, bias in zip(self.weights, self.biases, strict=True)
        )

    @torch.no_grad()
    def accuracy(self, test: Features) -> dict[float, tuple[float, float]]:
        """Return top-1 and top-5 accuracy in percent, on the plain images, for each learning rate.

        A rate that diverged has NaN for both.
        """
        feats = test.feats[0]
        hits = torch.zeros(2, len(self.lrs), dtype=torch.float64)
        top = min(5, self.biases.shape[1])
        for start in range(0, len(feats), _ROWS):
            logits = feats[start : start + _ROWS] @ self.weights.mT + self.biases[:, None]
            best = logits.topk(top, dim=2).indices  # (L, rows, top)
            hit = best == test.targets[None, start : start + _ROWS, None]
            hits += torch.stack([hit[..., 0].sum(1), hit.sum((1, 2))]).cpu()
        percent = (100.0 * hits / len(feats)).T.tolist()
        return {
            lr: tuple(both) if finite else (math.nan, math.nan)
            for lr, both, finite in zip(self.lrs, percent, self.finite, strict=True)
        }


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Limit torch to ``number`` threads (at least one), and restore the old number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(number, before)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _initial(dim: int, classes: int, seed: int, device: torch.device) -> torch.Tensor:
    """Return a linear layer initialised as by torch, U(-1, 1) / sqrt(D): (C, D + 1), bias last."""
    keys = keys_for(derive_key(seed, Purpose.PROBE), torch.arange(classes, device=device))
    return (2.0 * key_uniform(keys, dim + 1) - 1.0) / math.sqrt(dim)


def _visits(
    num_views: int, num_images: int, epoch: int, seed: int, device: torch.device
) -> torch.Tensor:
    """Return the rows of the flattened (V * N, D) features in the order of an epoch: int64 (N,).

    Every image comes once, in a random view.
    """
    images = torch.arange(num_images, device=device)
    uniform = key_uniform(keys_for(derive_key(seed, Purpose.PROBE, epoch), images), 1)[:, 0]
    view = (uniform * num_views).long()
    order = keys_for(derive_key(seed, Purpose.ORDER, Purpose.PROBE, epoch), images).argsort()
    return (view * num_images + images)[order]


def _batches(
    train: Features, epoch: int, batch_size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield features (B, D) and targets (B,) of every image once; the last batch may be smaller."""
    num_views, num_images, dim = train.feats.shape
    flat = train.feats.reshape(-1, dim)
    for rows in _visits(num_views, num_images, epoch, seed, flat.device).split(batch_size):
        yield flat.index_select(0, rows), train.targets[rows % num_images]


def _step(
    weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, y: torch.Tensor, rate: torch.Tensor
) -> None:
    """Take one SGD step on the cross entropy of L classifiers at once, in place.

    The classifiers are stacked, weight (L * C, D) and bias (L * C, 1), and the batch is the last
    axis: that way narrow products take a third of the time. With ``p = softmax(logits)`` the
    gradient of the logits is ``(p - onehot) / B``.

    Args:
        weight: (L * C, D).
        bias: (L * C, 1).
        x: features (B, D).
        y: int64 (B,).
        rate: the learning rates, (L, 1, 1).
    """
    number = len(rate)
    step = torch.addmm(bias, weight, x.T).view(number, -1, len(x)).softmax(1)
    where = y.expand(number, 1, -1)
    step.scatter_add_(1, where, step.new_full((1,), -1.0).expand(where.shape))
    step = step.mul_(rate / len(x)).view(len(weight), len(x))
    weight.addmm_(step, x, alpha=-1)
    bias.sub_(step.sum(1, keepdim=True))


@torch.no_grad()
def train_probe(
    train: Features,
    classes: int,
    lrs: Sequence[float],
    epochs: int = 100,
    milestones: Sequence[int] = (60, 80),
    batch_size: int = 256,
    seed: int = 0,
    desc: str = "",
) -> Probe:
    """Train a linear layer for every learning rate at once, on the schedule of the CLSP paper.

    Cross entropy with plain SGD (no momentum, no weight decay); the rate is divided by ten at each
    milestone. Each epoch shows each image once, plain or mirrored at random if there are two views.
    All rates share the initial weights and the batches.

    Args:
        train: features and targets of the training images.
        classes: C, the number of classes.
        lrs: learning rates, each above 0.
        epochs: passes over the images.
        milestones: epochs (from 0) from which the rate is a tenth of what it was.
        batch_size: images per step.
        seed: seed of the initial weights, the order and the choice of views.
        desc: title of the progress bar; no bar if empty.

    Raises:
        ClspError: there is no learning rate or one that is not above 0, or every rate diverged.
    """
    lrs = tuple(dict.fromkeys(float(lr) for lr in lrs))
    if not lrs or not all(lr > 0 for lr in lrs):
        raise ClspError(
            f"The learning rates of the linear probe are {list(lrs)}; give one or more above 0."
        )
    start = _initial(train.dim, classes, seed, train.feats.device)
    weight, bias = start[:, :-1].repeat(len(lrs), 1), start[:, -1:].repeat(len(lrs), 1)
    rates = torch.tensor(lrs, device=start.device)[:, None, None]
    with _threads(len(weight) // _ROWS_A_THREAD):
        for epoch in Progress(range(epochs), desc=desc, disable=not desc, unit="epoch"):
            rate = rates * 0.1 ** sum(milestone <= epoch for milestone in milestones)
            for x, y in _batches(train, epoch, batch_size, seed):
                _step(weight, bias, x, y, rate)
    shape = (len(lrs), classes)
    probe = Probe(lrs, weight.view(*shape, train.dim), bias.view(*shape))
    if not any(probe.finite):
        raise ClspError(
            f"The linear probe diverged at every learning rate given ({', '.join(map(str, lrs))}); "
            f"give smaller ones."
        )
    return probe
