"""Time work on a device."""

import time
from collections.abc import Callable

import torch

from benchmarks.augmentation import synchronize

__all__ = ["peak_flops", "rates", "synchronize"]


def rates(
    step: Callable[[], object],
    device: torch.device,
    *,
    number: int,
    steps: int,
    rounds: int = 3,
    warm_up: int = 3,
) -> list[float]:
    """Return how many things a second are done in each of a few rounds.

    Args:
        step: the work.
        device: where it is done; waited for at the end of a round only.
        number: things that one call does.
        steps: calls in a round.
        rounds: number of rounds.
        warm_up: calls before the first round.
    """
    for _ in range(warm_up):
        step()
    out = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        out.append(number * steps / (time.perf_counter() - began))
    return out


def peak_flops(device: torch.device, dtype: torch.dtype, size: int) -> list[float]:
    """Return floating-point operations a second of a large matrix product on random data."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return rates(lambda: a @ b, device, number=2 * size**3, steps=10)
