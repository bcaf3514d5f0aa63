"""Files that appear whole or not at all."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["write_whole"]


def write_whole(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it appears whole or not at all, even after a power cut.

    Args:
        target: what to write; replaced if it exists. Its folder is made if absent.
        write: called with the open file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
