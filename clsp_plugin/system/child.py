"""A process that does not outlive the one that started it, whatever ends that one.

Nothing here imports what takes long: the first thing that a process does is to look for its parent.
"""

import os
import threading
import time
from collections.abc import Mapping

__all__ = ["end_with_parent", "environment_of_a_child"]

_PARENT = "CLSP_PARENT"  # the number of the process that started this one
_POLL = 0.5  # seconds


def environment_of_a_child(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What to start a process with that calls :func:`end_with_parent`.

    Args:
        environment: to which it is added; by default that of this process.
    """
    return {**(os.environ if environment is None else environment), _PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """End this process, with exit code 130, once the one that started it is gone.

    It is told the number of that one, since a process whose parent is gone before it can ask has
    another by then. Where processes are started by this one, it is their parent.
    """
    parent = int(os.environ.get(_PARENT, os.getppid()))
    os.environ[_PARENT] = str(os.getpid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL)
        os._exit(130)

    if os.getppid() != parent:
        os._exit(130)
    threading.Thread(target=watch, daemon=True).start()
