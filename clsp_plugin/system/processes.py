"""The rank of this process, as torchrun or SLURM sets it, and the device it works on."""

import os

from clsp_plugin.errors import ClspError, first_line, short

__all__ = ["check_launch", "cores", "device_of", "is_first", "number_of", "process"]

# The variables that launchers set for their processes, each with its smallest valid number.
_VARIABLES = {
    "RANK": 0,
    "LOCAL_RANK": 0,
    "GROUP_RANK": 0,
    "NODE_RANK": 0,
    "WORLD_SIZE": 1,
    "LOCAL_WORLD_SIZE": 1,
    "MASTER_PORT": 0,
    "SLURM_PROCID": 0,
    "SLURM_LOCALID": 0,
    "SLURM_NODEID": 0,
    "SLURM_NTASKS": 1,
    "SLURM_NNODES": 1,
    "SLURM_JOB_NUM_NODES": 1,
}


def number_of(name: str, default: int) -> int:
    """Return a whole number from a variable of the environment.

    Args:
        name: name of the variable.
        default: value where it is not set, or empty.

    Raises:
        ClspError: the variable is something else, or too small.
    """
    text = os.environ.get(name, "").strip()
    low = _VARIABLES.get(name, 0)
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= low):
        raise ClspError(
            f"The environment says {name}={short(text)}, which is not a whole number of at least "
            f"{low}; unset {name}, or start with a launcher that sets it, such as torchrun."
        )
    return int(text)


def process() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are, as torchrun sets them.

    Raises:
        ClspError: the variables are not such numbers.
    """
    rank, world_size = number_of("RANK", 0), number_of("WORLD_SIZE", 1)
    if rank >= world_size:
        raise ClspError(
            f"RANK={rank} and WORLD_SIZE={world_size} do not name one of so many processes; ranks "
            f"count from 0."
        )
    return rank, world_size


def check_launch() -> None:
    """Check every variable that Lightning and torch would read as a number without a check.

    Raises:
        ClspError: one is not a valid number.
    """
    for name, low in _VARIABLES.items():
        number_of(name, low)
    process()


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_first() -> bool:
    """Whether this process is the first: no variable gives it another rank than 0."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(number_of(name, 0) == 0 for name in names)


def _gpu() -> int:
    """Return the number of this process's GPU; processes share one only where there are too few."""
    import torch

    return number_of("LOCAL_RANK", process()[0]) % max(1, torch.cuda.device_count())


def device_of(name: str):
    """Return the torch device of a name; ``cuda`` is this process's GPU.

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
        torch.zeros(1, device=device).item()  # fails on a device without values, such as meta
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ImportError) as error:
        reason = first_line(error)
        raise ClspError(
            f"device={short(repr(name))} cannot be used here ({short(reason)}); give device=auto "
            f"or device=cpu."
        ) from error
    return device
