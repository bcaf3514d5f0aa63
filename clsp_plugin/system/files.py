"""Files and folders that appear whole or not at all."""

import glob
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from clsp_plugin.errors import ClspError
from clsp_plugin.system.locks import is_locked, locked

__all__ = ["check_regular", "unfinished", "whole_folder", "write_text", "write_whole"]

# Seconds in which to try again to replace a file: Windows refuses it while anybody has it open.
_PATIENCE = 2.0 if os.name == "nt" else 0.0


def check_regular(path: str | Path) -> None:
    """Refuse a pipe, a socket or a device without opening it: a pipe would wait for a writer.

    Raises:
        ClspError: the path is a pipe, a socket or a device.
        OSError: it does not exist, or the system refuses to look at it.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # the system refuses folders itself
        raise ClspError(f"{path} is not a file but a pipe, a socket or a device; remove it.")


class _Plain:
    """An open file as any other object with its methods.

    To a file of the system numpy writes by itself, and its error of a full disk does not say so.
    """

    def __init__(self, file: BinaryIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


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
            write(cast(BinaryIO, _Plain(file)))
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, target)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # without a name, as of a full disk
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, target: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return os.replace(temporary, target)
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Make a folder so that it appears whole or not at all.

    Args:
        target: its path, where there may be nothing when the block ends.

    Yields:
        The empty folder beside it that becomes it. A killed process leaves this behind, and the
        next one that makes the same folder deletes it.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if left.is_dir() and not is_locked(left):
            shutil.rmtree(left, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        with locked(temporary):
            yield temporary
            _share(temporary)
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _share(folder: Path) -> None:
    """Let those read the files who may read the folder: safetensors writes for the owner alone."""
    allowed = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(file.stat().st_mode | allowed)


def write_text(target: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all, unless the file holds it already.

    Args:
        target: what to write; replaced if it holds something else.
        text: its content.
    """
    content = text.encode()
    try:
        check_regular(target)
        if target.read_bytes() == content:
            return
    except OSError:  # absent, or not readable, and then writing raises too
        pass
    write_whole(target, lambda file: file.write(content))


def unfinished(folder: Path, target: str = "*") -> Iterator[Path]:
    """Find what :func:`write_whole` leaves in a folder when its process is killed.

    Args:
        folder: folder of the target.
        target: pattern of its name.
    """
    return folder.glob(f".{target}.*.*.tmp")
