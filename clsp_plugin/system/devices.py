"""Copies between the host and a device."""

from collections.abc import Callable

import torch

__all__ = ["fetch", "fits", "to_device"]

_SHARE = 0.25  # of the free memory of a GPU, that images may take


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device; the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether images may lie in the memory of a device all the time; on a CPU they are there."""
    return device.type != "cuda" or nbytes < _SHARE * torch.cuda.mem_get_info(device)[0]


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
