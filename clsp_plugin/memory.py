"""What the processor's memory costs."""

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees, instead of giving it back at once.

    glibc returns large blocks to the system when they are freed, and the activations of a batch
    are large: without this every layer of every step has the system clear fresh pages for it.
    Elsewhere than in glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    # older versions accept no more than the second
    mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)
