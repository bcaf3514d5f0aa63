"""Losses in float32, whatever precision the training around them runs in."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

__all__ = ["in_float32"]


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function to run in float32, with autocast switched off.

    Floating-point tensors among its positional arguments are cast to float32. In 16 bits, second
    moments over a batch would lose their small entries.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(arg.device.type for arg in args if isinstance(arg, torch.Tensor))
        with torch.autocast(device, enabled=False):
            return function(*map(_float32, args), **kwargs)

    return run


def _float32(value: Any) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if floating else value
