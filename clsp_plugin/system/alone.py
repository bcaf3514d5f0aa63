"""One process at a time in a folder of results; others wait, and say so."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from clsp_plugin.system.locks import locked

__all__ = ["alone"]


@contextlib.contextmanager
def alone(place: Path, doing: str) -> Iterator[None]:
    """Hold a lock while the block runs; while another process holds it, say so and wait.

    The system takes the lock back from a process that dies.

    Args:
        place: a folder, or a file of its own in one, which is created.
        doing: what the process that holds the lock does, for the message: "writes to figures".
    """
    with contextlib.ExitStack() as held:
        if not held.enter_context(locked(place)):
            print(f"Waiting for another process that {doing}.", file=sys.stderr, flush=True)
            held.enter_context(locked(place, wait=True))
        yield
