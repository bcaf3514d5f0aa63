"""Precisions that a device has no instructions for, which torch then computes with others."""

import warnings

import torch

__all__ = ["warn_if_emulated"]


def warn_if_emulated(precision: str, device: torch.device) -> None:
    """Warn that a device has no arithmetic for bfloat16, which costs far more time than it saves.

    Args:
        precision: Lightning's name of it.
        device: where it is computed.
    """
    if not precision.startswith("bf16") or _has_bfloat16(device):
        return
    what, advice = ("processor", "32-true") if device.type == "cpu" else ("GPU", "16-mixed")
    warnings.warn(
        f"this {what} has no instructions for bfloat16, with which precision={precision} takes "
        f"several times as long as precision={advice}; set that.",
        stacklevel=2,
    )


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # what torch itself asks before it gives a convolution or a product to oneDNN
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
