"""Copies between the host and a device."""

from collections.abc import Callable

import torch

__all__ = ["fetch", "to_device"]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device; the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fetch(*tensors: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Begin to copy tensors from a device to the host; the returned function waits for them."""
    if tensors[0].device.type != "cuda":
        return lambda: tuple(tensor.cpu() for tensor in tensors)
    there = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for tensor, target in zip(tensors, there, strict=True):
        target.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensors[0].device))

    def wait() -> tuple[torch.Tensor, ...]:
        done.synchronize()
        return tuple(there)

    return wait
