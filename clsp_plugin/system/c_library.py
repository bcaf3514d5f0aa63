"""Functions of the C library of this process."""

import ctypes
from typing import Any

__all__ = ["c_function"]


def c_function(name: str) -> Any:
    """Return a function of the C library, or None where it has none of this name.

    Windows gives no access to the library of a process by no name, and then there is none at all.
    Functions are not shared between callers, so that each can set the types of its arguments.
    """
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (AttributeError, OSError, TypeError):
        return None
