"""Which of several processes this is, and which device is its own."""

import os
from collections.abc import Mapping

import torch

from clsp_plugin.errors import ClspError
from clsp_plugin.rules import short

__all__ = ["check_launch", "device_named", "number_of", "process"]

# What launchers tell their processes, each with the smallest number that makes sense.
_VARIABLES = {
    "RANK": 0,
    "LOCAL_RANK": 0,
    "GROUP_RANK": 0,
    "NODE_RANK": 0,
    "WORLD_SIZE": 1,
    "LOCAL_WORLD_SIZE": 1,
    "MASTER_PORT": 0,
    "OMP_NUM_THREADS": 1,
    "SLURM_PROCID": 0,
    "SLURM_LOCALID": 0,
    "SLURM_NODEID": 0,
    "SLURM_NTASKS": 1,
    "SLURM_NNODES": 1,
    "SLURM_JOB_NUM_NODES": 1,
}
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def number_of(
    name: str, default: int, low: int = 0, environment: Mapping[str, str] | None = None
) -> int:
    """A whole number among the variables of the environment.

    Args:
        name: of the variable.
        default: where it is not set, or empty.
        low: the smallest that makes sense.
        environment: the process's, if none is given.

    Raises:
        ClspError: it is something else.
    """
    text = (os.environ if environment is None else environment).get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= low):
        raise ClspError(
            f"The environment says {name}={short(text)}, which is not a whole number of at least "
            f"{low}; unset {name}, or start with a launcher that sets it, such as torchrun."
        )
    return int(text)


def process() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are, as torchrun tells.

    Raises:
        ClspError: the variables are not such numbers.
    """
    rank, world_size = number_of("RANK", 0), number_of("WORLD_SIZE", 1, low=1)
    if rank >= world_size:
        raise ClspError(
            f"RANK={rank} and WORLD_SIZE={world_size} do not name one of so many processes; ranks "
            f"count from 0."
        )
    return rank, world_size


def check_launch() -> None:
    """Look at every variable that a library would read as a number without looking.

    Raises:
        ClspError: one is none.
    """
    for name, low in _VARIABLES.items():
        number_of(name, low, low)
    process()


def device_named(name: str) -> torch.device:
    """The device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...

    Raises:
        ClspError: there is no such device, here or at all.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise ValueError
    except (RuntimeError, ValueError, TypeError):
        raise ClspError(
            f"device={short(name)} is no device that computes; give auto, cpu, cuda or cuda:NUMBER."
        ) from None
    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there |= {"mps": torch.backends.mps.is_available()}
    there |= {"xpu": hasattr(torch, "xpu") and torch.xpu.is_available()}
    beyond = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if not there[device.type] or beyond:
        raise ClspError(f"device={name} is not on this machine; give device=auto or device=cpu.")
    return device
