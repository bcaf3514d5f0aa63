"""Communication between processes: rank, mean, and gathering with gradients."""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather

__all__ = ["as_many", "average", "gather", "rank", "world_size"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def average(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes, without a gradient; may change ``x``."""
    if _active():
        dist.all_reduce(x)
        x /= dist.get_world_size()
    return x


def as_many(x: torch.Tensor) -> torch.Tensor:
    """Return the first rows of a tensor, as many as every process has, for :func:`gather`.

    Args:
        x: (B, ...), where B may differ between processes.
    """
    if not _active():
        return x
    number = torch.tensor(len(x), device=x.device)
    dist.all_reduce(number, op=dist.ReduceOp.MIN)
    return x[: int(number)]


def gather(x: torch.Tensor) -> torch.Tensor:
    """Concatenate the tensors of all processes along the first dimension.

    Args:
        x: (B, ...), the same shape in every process.

    Returns:
        (B * world size, ...), in the order of the ranks; ``x`` itself in a single process.
        Gradients flow back to the process that a row came from.
    """
    if not _active():
        return x
    if not x.requires_grad:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(x.contiguous()))
