"""A child process that ends with its parent, whatever ends the parent.

Nothing slow is imported here: the first thing that a process does is to look for its parent.
"""

import os
import threading
import time
from collections.abc import Mapping

__all__ = ["end_with_parent", "environment_of_a_child"]

_PARENT = "CLSP_PARENT"  # variable with the number of the process that started this one
_POLL = 0.5  # seconds


def environment_of_a_child(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that calls :func:`end_with_parent`.

    Args:
        environment: variables to add to; by default those of this process.
    """
    return {**(os.environ if environment is None else environment), _PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """End this process, with exit code 130, once the process that started it is gone.

    The parent's number is read from the environment: if the parent is gone before this process can
    ask for its number, the system has given it another parent by then. Processes that this one
    starts are told its number in the same way.

    On Windows it goes on to its end: a parent's number stays the same there when the parent is
    gone, and the ``python`` of a virtual environment is a process of its own between the two.
    """
    if os.name == "nt":
        return
    parent = int(os.environ.get(_PARENT, os.getppid()))
    os.environ[_PARENT] = str(os.getpid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os._exit(130)

    if os.getppid() != parent:
        os._exit(130)
    threading.Thread(target=watch, daemon=True).start()
