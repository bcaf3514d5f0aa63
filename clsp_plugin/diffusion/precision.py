"""Precisions of the denoiser, under Lightning's names."""

import torch

from clsp_plugin.errors import ClspError

__all__ = ["PRECISIONS", "precision_name"]

# What autocast computes in (None: no autocast) under Lightning's names of precisions.
PRECISIONS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


def precision_name(precision: str | int) -> str:
    """Return the canonical name of a precision, a key of :data:`PRECISIONS`.

    Args:
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; ``"32"`` and 32 stand for
            ``"32-true"``.

    Raises:
        ClspError: the precision is another.
    """
    name = "32-true" if str(precision) == "32" else precision
    if name not in PRECISIONS:
        raise ClspError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}.")
    return name
