"""Whether to compile with torch: what was asked for, what this machine has, what pays."""

import contextlib
import shutil
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING

from clsp_plugin.errors import ClspError

if TYPE_CHECKING:
    import torch

__all__ = ["can_compile", "to_compile", "uncompiled"]


def to_compile(
    wanted: bool | str | None, device: "torch.device", setting: str, *, pays: bool = False
) -> bool:
    """Return whether to compile.

    Args:
        wanted: the setting's value: True, False, or ``auto`` or None, which compiles if it pays
            and this machine can.
        device: the device that the compiled code runs on.
        setting: the setting's name, for the message.
        pays: whether the work is long enough, and of a kind, for compiling to save time.

    Raises:
        ClspError: it is to be compiled, and this machine lacks what that needs.
    """
    assert wanted in ("auto", None, True, False), wanted
    if wanted in ("auto", None):
        return pays and can_compile(device)
    if wanted and not can_compile(device):
        needed = "Triton, a C compiler" if device.type == "cuda" else "a C++ compiler"
        raise ClspError(
            f"{setting}=True needs {needed} and the headers of Python to compile for "
            f"{device.type}, and not all of that is here; install it, or leave the setting out."
        )
    return bool(wanted)


def can_compile(device: "torch.device | str") -> bool:
    """Whether ``torch.compile`` has what it needs on this machine. Nothing is compiled.

    It needs a compiler (C++ for the CPU; C and Triton for CUDA) and the headers of Python, which
    the compiled code includes.

    Args:
        device: the device to compile for, or its name.
    """
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return False
    if str(device).startswith("cuda"):
        return find_spec("triton") is not None and _found("CC", ("gcc", "clang", "cc"))
    return _found("CXX", ("g++", "clang++", "c++", "cl"))


def uncompiled(compiled: bool = True) -> contextlib.AbstractContextManager:
    """Return a block in which nothing is compiled: no graph for each size of a test's batches.

    Args:
        compiled: whether anything that runs in the block was compiled; without it the block does
            nothing, since torch takes a moment for it.
    """
    if not compiled:
        return contextlib.nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")


def _found(variable: str, names: Sequence[str]) -> bool:
    names = [environ[variable].split()[0]] if environ.get(variable, "").strip() else names
    return any(shutil.which(name) for name in names)
