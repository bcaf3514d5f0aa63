"""Which of several processes this one is, as torchrun or SLURM says, and the device it works on."""

import os
import re

from clsp_plugin.errors import ClspError

__all__ = ["check_environment", "device_of", "is_first", "number_of", "process"]

# Numbers that torchrun, Lightning and SLURM give to each of several processes.
_FIRST = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
_NUMBERS = (
    *_FIRST, "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_LOCALID",
    "SLURM_NODEID", "MASTER_PORT",
)  # fmt: skip


def number_of(variable: str, default: int) -> int:
    """A number that the environment gives to this process.

    Args:
        variable: its name, such as ``RANK``.
        default: where it is absent.

    Raises:
        ClspError: it is no number.
    """
    text = os.environ.get(variable)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ClspError(
            f"The environment variable {variable}={text!r} is not a number; it says which of "
            f"several processes this one is: `unset {variable}` where there is one process."
        )
    return int(text)


def check_environment() -> None:
    """Refuse variables that do not number this process, which Lightning and torch would read.

    Raises:
        ClspError: naming the first of them.
    """
    for variable in _NUMBERS:
        number_of(variable, 0)
    process()


def process() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are, as torchrun tells."""
    rank, world_size = number_of("RANK", 0), number_of("WORLD_SIZE", 1)
    if rank >= world_size:
        raise ClspError(
            f"RANK={rank} and WORLD_SIZE={world_size} do not name one of so many processes; ranks "
            f"count from 0."
        )
    return rank, world_size


def is_first() -> bool:
    """Whether no variable numbers this process as another than the first."""
    return all(number_of(variable, 0) == 0 for variable in _FIRST)


def _gpu() -> int:
    """Number of this process's GPU: every process of a machine has its own, as far as they go."""
    import torch

    return number_of("LOCAL_RANK", process()[0]) % max(1, torch.cuda.device_count())


def device_of(name: str):
    """The torch device of a name, ``cuda`` being this process's GPU.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ClspError: there is no such device here, or nothing can be computed on it.
    """
    import torch

    try:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", _gpu())
        torch.zeros(1, device=device).item()  # a device without values, such as meta, has none
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ClspError(
            f"device={name!r} cannot be used here ({reason}); give device=auto or device=cpu."
        ) from error
    return device
