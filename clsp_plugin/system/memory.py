"""Main memory (RAM): how much there is, how much work needs, and the reuse of freed memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clsp_plugin.system.c_library import c_function

if TYPE_CHECKING:
    import torch

__all__ = ["available_memory", "in_bytes", "keep_freed_memory", "memory_of", "total_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # constants of malloc.h


def keep_freed_memory(device: "torch.device") -> None:
    """Let this process reuse the memory that it frees, instead of giving it back at once.

    glibc returns large blocks to the system when they are freed, and the activations of a batch are
    large: without this, every layer of every step makes the system clear fresh pages for it.

    Args:
        device: the device that computes; nothing is done unless it is the CPU and the C library is
            glibc.
    """
    mallopt = c_function("mallopt")
    if device.type != "cpu" or mallopt is None:
        return
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    # older versions of glibc accept no more than 2**25
    mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)


def _resident() -> int | None:
    """Return the bytes of memory that this process has now; None without Linux' /proc."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")
    except (AttributeError, OSError, ValueError, IndexError):
        return None


def memory_of(work: Callable[[], object]) -> int | None:
    """Do some work, and return how many bytes it takes at its peak beyond those in use before.

    This works after :func:`keep_freed_memory`, with which the process still has these bytes when
    the work is done.

    Args:
        work: called once.

    Returns:
        The bytes; None, and the work is not done, where there is no Linux or no glibc.
    """
    trim = c_function("malloc_trim")
    if trim is None or _resident() is None:
        return None
    trim(0)
    before = _resident() or 0
    work()
    return max(0, (_resident() or 0) - before)


def total_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory of this machine, or of the control group that limits it to fewer.

    Args:
        root: root of the file system that has ``proc`` and ``sys``.

    Returns:
        The bytes; None where the system does not tell them.
    """
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    return min([machine, *(limit for limit, _ in _limits(root))])


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take, by its machine and its control groups.

    Args:
        root: root of the file system that has ``proc`` and ``sys``.

    Returns:
        The bytes, or None where Linux does not tell them.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        found = [free["MemAvailable"] * 1024]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return min(found + [max(0, limit - used) for limit, used in _limits(root)])


# By version of control groups: the files of the limit and the use, and the key of the part of the
# use that is cached files, which can be dropped.
_GROUP_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _limits(root: Path) -> list[tuple[int, int]]:
    """Return the limit of each control group of this process, and what is used of it, in bytes."""
    try:
        rows = [
            row.split(":", 2)
            for row in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        ]
    except OSError:
        return []
    limits = []
    for _, controllers, own in rows:
        version = 2 if controllers == "" else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if version == 2 else "memory")
        group = mount / own.lstrip("/")  # may be absent in a container: then the mount is it
        folders = [group, *group.parents]
        for folder in folders[: folders.index(mount) + 1]:
            limit, used, files = _GROUP_FILES[version]
            try:
                stat = dict(
                    line.split()
                    for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
                )
                taken = int((folder / used).read_text(encoding="utf-8")) - int(stat.get(files, 0))
                limits.append((int((folder / limit).read_text(encoding="utf-8")), taken))
            except (OSError, ValueError):  # without a limit, the file says "max"
                continue
    return limits


def in_bytes(number: int) -> str:
    """Return a number of bytes for people, such as ``1.5 GiB``."""
    unit, name = next(
        (unit, name)
        for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))
        if number >= unit / 2 or unit == 1
    )
    return f"{number / unit:.1f} {name}" if unit > 1 else f"{number} {name}"
