"""Optimisers, learning-rate schedules and the momentum update."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import Lars
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from clsp_plugin.config.rules import check_finite
from clsp_plugin.errors import ClspError, nearest, short

__all__ = [
    "OPTIMIZERS",
    "SCHEDULERS",
    "WarmupCosine",
    "at_step",
    "build_optimizer",
    "build_optimizers",
    "ema_tau",
    "ema_update",
]

SCHEDULERS = ("warmup_cosine", "step", "none")


def _lars(groups, *, eta=1e-3, clip_lr=False, exclude_bias_n_norm=False, **kwargs):
    """timm's LARS with solo-learn's names of arguments.

    ``exclude_bias_n_norm`` exempts one-dimensional parameters from both the adaptation and the
    weight decay, by a weight decay of 0: timm then skips the adaptation.
    """
    if exclude_bias_n_norm:
        groups = _split_one_dimensional(groups)
    return Lars(
        groups,
        trust_coeff=eta,
        trust_clip=clip_lr,
        always_adapt=not exclude_bias_n_norm,
        **kwargs,
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "lars": _lars,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def _split_one_dimensional(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move one-dimensional parameters (biases, norms) to groups without weight decay."""
    out = []
    for group in groups:
        parameters = list(group["params"])
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        if matrices:
            out.append({**group, "params": matrices})
        if vectors:
            out.append({**group, "params": vectors, "weight_decay": 0.0})
    return out


def build_optimizer(groups: list[dict[str, Any]], cfg) -> torch.optim.Optimizer:
    """Make the optimiser of a configuration's ``optimizer`` block.

    Args:
        groups: parameter groups with ``name``, ``params`` and optional settings of their own.
        cfg: ``name``, ``lr`` (already scaled), ``weight_decay``, ``exclude_bias_n_norm_wd``,
            ``kwargs``.

    Raises:
        ClspError: the optimiser is unknown, or it refuses its arguments.
    """
    if cfg.name not in OPTIMIZERS:
        raise ClspError(f"optimizer.name={cfg.name} is not known{nearest(cfg.name, OPTIMIZERS)}")
    for key, value in dict(cfg.kwargs).items():
        if isinstance(value, str):  # no argument is a text; some would fail only during a step
            raise ClspError(f"optimizer.kwargs.{key}={short(value)} is a text; give a number.")
        check_finite(f"optimizer.kwargs.{key}", value)
    groups = [{**group, "params": list(group["params"])} for group in groups]
    if cfg.exclude_bias_n_norm_wd:
        groups = _split_one_dimensional(groups)
    try:
        return OPTIMIZERS[cfg.name](
            groups, lr=cfg.lr, weight_decay=cfg.weight_decay, **dict(cfg.kwargs)
        )
    except (TypeError, ValueError) as error:
        raise ClspError(f"optimizer.kwargs do not fit {cfg.name}: {error}") from error


class WarmupCosine(LRScheduler):
    """Linear warm-up from a start rate to the base rate, then a cosine to an end rate.

    At time ``t`` (steps or epochs)::

        t <  warmup:  start + t (base - start) / (warmup - 1)
        t >= warmup:  end + (base - end) (1 + cos(pi (t - warmup) / (total - warmup))) / 2

    The schedule of solo-learn and of the authors of CLSP, in closed form, so that it depends only
    on ``t``. Parameter groups with ``static_lr`` keep their rate.

    Args:
        optimizer: the optimiser that gets the learning rates.
        warmup: length of the warm-up, in steps or epochs.
        total: length of the training, in the same unit.
        start: rate at t = 0 if there is a warm-up.
        end: rate at t = total.
    """

    def __init__(self, optimizer, warmup: float, total: float, start: float, end: float = 0.0):
        self.warmup, self.total, self.start, self.end = warmup, total, start, end
        super().__init__(optimizer)

    def _at(self, base: float | torch.Tensor) -> float | torch.Tensor:
        t = self.last_epoch
        if t < self.warmup:
            return self.start + t * (base - self.start) / max(self.warmup - 1, 1)
        progress = (t - self.warmup) / max(self.total - self.warmup, 1)
        return self.end + (base - self.end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    def get_lr(self) -> list[float | torch.Tensor]:
        return [
            base if group.get("static_lr") else self._at(base)
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]


def at_step(scheduler: LRScheduler, steps: int) -> None:
    """Move a new schedule, and the learning rates that it sets, to a later step.

    Args:
        scheduler: a schedule of :func:`build_scheduler` that was not stepped yet.
        steps: number of steps, or of epochs if its interval is ``epoch``.
    """
    scheduler.last_epoch, scheduler._step_count = steps, steps + 1
    if isinstance(scheduler, MultiStepLR):  # its get_lr only goes from one step to the next
        rates = scheduler._get_closed_form_lr()
    else:
        rates = scheduler.get_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = list(rates)


def build_scheduler(optimizer, cfg, total_steps: int, max_epochs: int) -> dict[str, Any] | None:
    """Make the schedule of a configuration's ``scheduler`` block, as Lightning takes it.

    Args:
        optimizer: the optimiser that gets the learning rates.
        cfg: ``name``, ``interval`` (``step`` or ``epoch``), ``warmup_epochs``,
            ``warmup_start_lr``, ``min_lr``, ``lr_decay_steps``.
        total_steps: optimiser steps of the whole training.
        max_epochs: epochs of the whole training.
    """
    if cfg.name not in SCHEDULERS:
        raise ClspError(f"scheduler.name={cfg.name} is not known{nearest(cfg.name, SCHEDULERS)}")
    if cfg.name == "none":
        return None
    if cfg.name == "step":
        if not cfg.lr_decay_steps:
            raise ClspError("scheduler.name=step needs scheduler.lr_decay_steps=[EPOCH, ...].")
        return {"scheduler": MultiStepLR(optimizer, list(cfg.lr_decay_steps)), "interval": "epoch"}
    if cfg.interval not in ("step", "epoch"):
        raise ClspError(f"scheduler.interval={cfg.interval} is neither step nor epoch.")
    unit = total_steps / max_epochs if cfg.interval == "step" else 1
    schedule = WarmupCosine(
        optimizer,
        warmup=cfg.warmup_epochs * unit,
        total=max_epochs * unit,
        start=cfg.warmup_start_lr,
        end=cfg.min_lr,
    )
    return {"scheduler": schedule, "interval": cfg.interval}


def build_optimizers(
    groups: list[dict[str, Any]], cfg, total_steps: int
) -> torch.optim.Optimizer | tuple[list, list]:
    """Make the optimiser and the schedule of a training, as ``configure_optimizers`` returns them.

    Args:
        groups: see :func:`build_optimizer`.
        cfg: a whole configuration: ``optimizer``, ``scheduler``, ``max_epochs``.
        total_steps: optimiser steps of the whole training.
    """
    optimizer = build_optimizer(groups, cfg.optimizer)
    scheduler = build_scheduler(
        optimizer, cfg.scheduler, total_steps=total_steps, max_epochs=cfg.max_epochs
    )
    return optimizer if scheduler is None else ([optimizer], [scheduler])


def ema_tau(step: int, total_steps: int, base: float, final: float) -> float:
    """The momentum coefficient at an optimiser step.

    ``final - (final - base) (1 + cos(pi step / total)) / 2``.
    """
    return final - (final - base) * (1 + math.cos(math.pi * step / total_steps)) / 2


@torch.no_grad()
def ema_update(online: nn.Module, momentum: nn.Module, tau: float) -> None:
    """Move every momentum parameter to ``tau * momentum + (1 - tau) * online``, in place."""
    targets: list[torch.Tensor] = list(momentum.parameters())
    sources: list[torch.Tensor] = list(online.parameters())
    torch._foreach_mul_(targets, tau)
    torch._foreach_add_(targets, sources, alpha=1 - tau)
